package api

import (
	"net/http"

	"github.com/sendense/sendense/appliance"
)

func (s *server) check(w http.ResponseWriter, r *http.Request) error {
	var req appliance.CheckRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	job, err := s.a.Check(r.Context(), req)
	if err != nil {
		return err
	}
	return reply(w, http.StatusAccepted, job)
}

func (s *server) lastCheck(w http.ResponseWriter, r *http.Request) error {
	c, err := s.a.LastCheck(r.Context(), variable(r, "vm"), variable(r, "point"))
	if err != nil {
		return err
	}
	c.Volumes = nonNil(c.Volumes)
	return reply(w, http.StatusOK, c)
}

func (s *server) checkScreen(w http.ResponseWriter, r *http.Request) error {
	b, err := s.a.CheckScreen(r.Context(), variable(r, "vm"), variable(r, "point"))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "image/png")
	_, err = w.Write(b)
	return err
}
