package api

import (
	"net/http"

	"github.com/sendense/sendense/appliance"
)

func (s *server) restore(w http.ResponseWriter, r *http.Request) error {
	var req appliance.RestoreRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	req.Keyring = r.Header.Get(KeyringHeader)
	j, err := s.a.Restore(r.Context(), req)
	if err != nil {
		return err
	}
	return reply(w, http.StatusAccepted, j)
}

func (s *server) planRestore(w http.ResponseWriter, r *http.Request) error {
	var req appliance.RestoreRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	req.Keyring = r.Header.Get(KeyringHeader)
	p, err := s.a.PlanRestore(r.Context(), req)
	if err != nil {
		return err
	}
	p.Notes = nonNil(p.Notes)
	return reply(w, http.StatusOK, p)
}
