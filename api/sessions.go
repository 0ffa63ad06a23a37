package api

import (
	"net/http"

	"github.com/sendense/sendense/appliance"
)

// SessionEnd says how a session ends.
type SessionEnd struct {
	// Force stops the session's machine at once, as if its plug were pulled, where
	// it would have to be shut down; and discards a session also if its hypervisor
	// does not answer, or disks of it are elsewhere, which stay there.
	Force bool `json:"force,omitempty"`
}

func (s *server) sessions(w http.ResponseWriter, r *http.Request) error {
	all, err := s.a.Sessions(r.Context())
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, nonNil(all))
}

func (s *server) session(w http.ResponseWriter, r *http.Request) error {
	x, err := s.a.Session(r.Context(), variable(r, "id"))
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, x)
}

func (s *server) boot(w http.ResponseWriter, r *http.Request) error {
	var spec appliance.SessionSpec
	if err := decode(r, &spec); err != nil {
		return err
	}
	x, err := s.a.Boot(r.Context(), spec)
	if err != nil {
		return err
	}
	return reply(w, http.StatusCreated, x)
}

func (s *server) startSession(w http.ResponseWriter, r *http.Request) error {
	var start appliance.SessionStart
	if err := decode(r, &start); err != nil {
		return err
	}
	x, err := s.a.StartSession(r.Context(), variable(r, "id"), start)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, x)
}

// SessionResume says how a session goes on.
type SessionResume struct {
	// QuotaBytes replaces the quota; 0: there is none any more. Absent: it stays.
	QuotaBytes *int64 `json:"quota_bytes,omitempty"`
}

func (s *server) resumeSession(w http.ResponseWriter, r *http.Request) error {
	var how SessionResume
	if err := decode(r, &how); err != nil {
		return err
	}
	x, err := s.a.ResumeSession(r.Context(), variable(r, "id"), how.QuotaBytes)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, x)
}

func (s *server) migrateSession(w http.ResponseWriter, r *http.Request) error {
	var req appliance.MigrateRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	job, err := s.a.Migrate(r.Context(), variable(r, "id"), req)
	if err != nil {
		return err
	}
	return reply(w, http.StatusAccepted, job)
}

func (s *server) keepSession(w http.ResponseWriter, r *http.Request) error {
	var end SessionEnd
	if err := decode(r, &end); err != nil {
		return err
	}
	job, err := s.a.Keep(r.Context(), variable(r, "id"), end.Force)
	if err != nil {
		return err
	}
	return reply(w, http.StatusAccepted, job)
}

func (s *server) discardSession(w http.ResponseWriter, r *http.Request) error {
	var end SessionEnd
	if err := decode(r, &end); err != nil {
		return err
	}
	if err := s.a.Discard(r.Context(), variable(r, "id"), end.Force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
