package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/image"
)

func pid() int { return os.Getpid() }

func (s *server) jobs(w http.ResponseWriter, r *http.Request) error {
	jobs, err := s.a.Jobs(r.Context())
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, nonNil(jobs))
}

func (s *server) job(w http.ResponseWriter, r *http.Request) error {
	j, err := s.a.Job(r.Context(), variable(r, "id"))
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, j)
}

func (s *server) cancelJob(w http.ResponseWriter, r *http.Request) error {
	if err := s.a.CancelJob(r.Context(), variable(r, "id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// jobEvents streams a job as server-sent events named "job", each the whole job,
// until it is final. What ends the stream before that is told by an event named
// "error", a Problem.
func (s *server) jobEvents(w http.ResponseWriter, r *http.Request) error {
	begun := false
	event := func(name string, v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, b); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
	err := s.a.WatchJob(r.Context(), variable(r, "id"), func(j appliance.Job) error {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "no-store")
		}
		return event("job", j)
	})
	if err == nil || !begun {
		return err
	}
	e := appliance.AsError(err)
	_ = event("error", newProblem("Stream ended", e)) // the client may be gone
	return nil
}

// DraftEvent is one line of the answer to POST /v1/drafts. The first line holds
// the draft; the answer then stays open for as long as the draft does, and so
// does the draft for as long as the answer: a client that goes away without a
// commit discards it. The last line says how the draft ended, if it did so by
// itself.
type DraftEvent struct {
	Draft *appliance.DraftInfo `json:"draft,omitempty"`
	Ended *Problem             `json:"ended,omitempty"`
}

func (s *server) beginDraft(w http.ResponseWriter, r *http.Request) error {
	var req appliance.BeginRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	d, err := s.a.BeginBackup(r.Context(), req)
	if err != nil {
		return err
	}
	info := d.Info()
	w.Header().Set("Content-Type", "application/jsonl")
	w.WriteHeader(http.StatusCreated)
	send(w, DraftEvent{Draft: &info})
	if err := http.NewResponseController(w).Flush(); err != nil {
		d.Abort(gone)
		return nil
	}
	select {
	case <-r.Context().Done():
		d.Abort(gone)
	case <-d.Ended():
		if err := d.Err(); err != nil {
			p := newProblem("Draft ended", appliance.AsError(err))
			send(w, DraftEvent{Ended: &p})
		}
	}
	return nil
}

var gone = &appliance.Error{Code: appliance.CodeInterrupted, Msg: "The capture agent went away before the backup was done.",
	Hint: "The draft is discarded and earlier points are as they were. Find out why the agent ended, and start the backup again."}

// draft finds the draft that a request is about.
func (s *server) draft(r *http.Request) (*appliance.Draft, error) {
	return s.a.Draft(variable(r, "id"))
}

// DiskRequest adds a disk to a draft.
type DiskRequest struct {
	Key  string `json:"key"`
	Size int64  `json:"size"` // bytes
}

func (s *server) addDisk(w http.ResponseWriter, r *http.Request) error {
	var req DiskRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	d, err := s.draft(r)
	if err != nil {
		return err
	}
	info, err := d.AddDisk(r.Context(), req.Key, req.Size)
	if err != nil {
		return err
	}
	return reply(w, http.StatusCreated, info)
}

// DiffersRequest holds the digests of clusters that follow one another.
type DiffersRequest struct {
	First int64  `json:"first"` // number of the first cluster
	Sums  []byte `json:"sums"`  // digests, one behind the other
}

// DiffersReply says for each of them whether it differs from the parent's.
type DiffersReply struct {
	Differs []bool `json:"differs"`
}

func (s *server) differs(w http.ResponseWriter, r *http.Request) error {
	var req DiffersRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	d, err := s.draft(r)
	if err != nil {
		return err
	}
	index, err := strconv.Atoi(variable(r, "disk"))
	if err != nil || len(req.Sums)%image.DigestSize != 0 {
		return &appliance.Error{Code: appliance.CodeInvalid, Msg: "The digests are cut off.", Hint: "Send whole digests of 32 bytes each."}
	}
	sums := make([]image.Digest, len(req.Sums)/image.DigestSize)
	for i := range sums {
		sums[i] = image.Digest(req.Sums[i*image.DigestSize:])
	}
	differs, err := d.Differs(r.Context(), index, req.First, sums)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, DiffersReply{nonNil(differs)})
}

// ProgressReport says how far a capture is.
type ProgressReport struct {
	Phase string `json:"phase"`
	Disk  string `json:"disk"`
	Done  int64  `json:"done_bytes"`
	Total int64  `json:"total_bytes"`
}

func (s *server) report(w http.ResponseWriter, r *http.Request) error {
	var p ProgressReport
	if err := decode(r, &p); err != nil {
		return err
	}
	d, err := s.draft(r)
	if err != nil {
		return err
	}
	if err := d.Report(capture.Progress(p)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) commit(w http.ResponseWriter, r *http.Request) error {
	var req appliance.CommitRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	d, err := s.draft(r)
	if err != nil {
		return err
	}
	p, err := d.Commit(r.Context(), req)
	if err != nil {
		return err
	}
	return reply(w, http.StatusCreated, p)
}

// AbortRequest says why a draft is given up.
type AbortRequest struct {
	Code   appliance.Code `json:"code"`
	Reason string         `json:"reason"`
	Hint   string         `json:"hint,omitempty"`
}

func (s *server) abort(w http.ResponseWriter, r *http.Request) error {
	var req AbortRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	d, err := s.draft(r)
	if err != nil {
		return err
	}
	if statuses[req.Code] == 0 {
		req.Code = appliance.CodeInternal
	}
	if req.Reason == "" {
		req.Reason = "The capture agent gave the backup up."
	}
	d.Abort(&appliance.Error{Code: req.Code, Msg: req.Reason, Hint: req.Hint})
	w.WriteHeader(http.StatusNoContent)
	return nil
}
