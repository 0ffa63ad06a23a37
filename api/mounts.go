package api

import (
	"net/http"

	"github.com/sendense/sendense/appliance"
)

// MountRequest says what is mounted where.
type MountRequest struct {
	Dir        string `json:"dir"` // an empty folder, as an absolute path
	Writable   bool   `json:"writable,omitempty"`
	Verified   bool   `json:"verified,omitempty"`
	AllowOther bool   `json:"allow_other,omitempty"` // than the user whose process serves
}

func (s *server) mounts(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, http.StatusOK, nonNil(s.a.Mounts()))
}

func (s *server) mount(w http.ResponseWriter, r *http.Request) error {
	var req MountRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	m, err := s.a.Mount(r.Context(), appliance.MountSpec{Dir: req.Dir, Writable: req.Writable, Verified: req.Verified, AllowOther: req.AllowOther}, r.Header.Get(KeyringHeader))
	if err != nil {
		return err
	}
	return reply(w, http.StatusCreated, m)
}

func (s *server) unmount(w http.ResponseWriter, r *http.Request) error {
	if err := s.a.Unmount(r.Context(), r.URL.Query().Get("dir")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
