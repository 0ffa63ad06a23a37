package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/guestfs"
)

// FileLine is one line of an answer that lists files or differences. The last one
// says that all is said, or holds the problem that ended it.
type FileLine struct {
	File    *appliance.File       `json:"file,omitempty"`
	Change  *appliance.FileChange `json:"change,omitempty"`
	Places  []FilePlace           `json:"places,omitempty"`
	Problem *Problem              `json:"problem,omitempty"`
	Done    bool                  `json:"done,omitempty"`
}

// filesRequest reads what a request for files of a point names.
func filesRequest(r *http.Request) (appliance.FilesRequest, error) {
	verified, err := flag(r.URL.Query(), "verified")
	return appliance.FilesRequest{VM: variable(r, "vm"), Point: variable(r, "point"), Path: r.URL.Query().Get("path"), Verified: verified,
		Keyring: r.Header.Get(KeyringHeader)}, err
}

// flag reads a boolean of a query; false if it is not there.
func flag(q url.Values, name string) (bool, error) {
	if !q.Has(name) {
		return false, nil
	}
	v, err := strconv.ParseBool(q.Get(name))
	if err != nil {
		return false, &appliance.Error{Code: appliance.CodeInvalid, Err: err, Msg: fmt.Sprintf("%s is %q.", name, q.Get(name)), Hint: "Give true or false."}
	}
	return v, nil
}

// number reads a number of a query; 0 if it is not there.
func number(q url.Values, name string) (int64, error) {
	if !q.Has(name) {
		return 0, nil
	}
	v, err := strconv.ParseInt(q.Get(name), 10, 64)
	if err != nil || v < 0 {
		return 0, &appliance.Error{Code: appliance.CodeInvalid, Err: err, Msg: fmt.Sprintf("%s is %q.", name, q.Get(name)), Hint: "Give a whole number, 0 or more."}
	}
	return v, nil
}

func (s *server) contents(w http.ResponseWriter, r *http.Request) error {
	req, err := filesRequest(r)
	if err != nil {
		return err
	}
	c, err := s.a.Contents(r.Context(), req)
	if err != nil {
		return err
	}
	c.Volumes = nonNil(c.Volumes)
	return reply(w, http.StatusOK, c)
}

func (s *server) statFile(w http.ResponseWriter, r *http.Request) error {
	req, err := filesRequest(r)
	if err != nil {
		return err
	}
	follow, err := flag(r.URL.Query(), "follow")
	if err != nil {
		return err
	}
	f, err := s.a.Stat(r.Context(), req, follow)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, f)
}

// lines answers with what produce yields, a line for each. What goes wrong before
// the first one is a plain problem.
func (s *server) lines(w http.ResponseWriter, produce func(yield func(FileLine) error) error) error {
	begun := false
	yield := func(l FileLine) error {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/jsonl")
			w.WriteHeader(http.StatusOK)
		}
		b, err := json.Marshal(l)
		if err != nil {
			return fmt.Errorf("tell of a file: %w", err)
		}
		_, _ = w.Write(append(b, '\n')) // the client may be gone, which ends the request
		return nil
	}
	err := produce(yield)
	if err != nil && !begun {
		return err
	}
	if err != nil {
		p := newProblem("List ended", appliance.AsError(err))
		return yield(FileLine{Problem: &p})
	}
	return yield(FileLine{Done: true})
}

func (s *server) listFiles(w http.ResponseWriter, r *http.Request) error {
	req, err := filesRequest(r)
	if err != nil {
		return err
	}
	return s.lines(w, func(yield func(FileLine) error) error {
		return s.a.List(r.Context(), req, func(f appliance.File) error { return gonePast(r.Context(), yield(FileLine{File: &f})) })
	})
}

// gonePast ends a list that nobody reads any more.
func gonePast(ctx context.Context, err error) error {
	if err == nil {
		err = ctx.Err()
	}
	return err
}

func (s *server) findFiles(w http.ResponseWriter, r *http.Request) error {
	req, err := filesRequest(r)
	if err != nil {
		return err
	}
	find, err := findRequest(req, r.URL.Query())
	if err != nil {
		return err
	}
	return s.lines(w, func(yield func(FileLine) error) error {
		return s.a.Find(r.Context(), find, func(f appliance.File) error { return gonePast(r.Context(), yield(FileLine{File: &f})) })
	})
}

func findRequest(r appliance.FilesRequest, q url.Values) (appliance.FindRequest, error) {
	f := appliance.FindRequest{FilesRequest: r, Match: guestfs.Match{Name: q.Get("name"), Type: q.Get("type")}}
	var depth, atMost int64
	var errs []error
	if q.Has("max_size") {
		f.MaxSize = &atMost
	}
	for name, to := range map[string]*int64{"min_size": &f.MinSize, "max_size": &atMost, "after": &f.After, "before": &f.Before, "depth": &depth} {
		v, err := number(q, name)
		*to = v
		errs = append(errs, err)
	}
	for name, to := range map[string]*bool{"fold_case": &f.FoldCase, "xattrs": &f.Xattrs} {
		v, err := flag(q, name)
		*to = v
		errs = append(errs, err)
	}
	f.Shallow = int(min(depth, 1<<20))
	return f, errors.Join(errs...)
}

func (s *server) diffFiles(w http.ResponseWriter, r *http.Request) error {
	req, err := filesRequest(r)
	if err != nil {
		return err
	}
	return s.lines(w, func(yield func(FileLine) error) error {
		return s.a.Diff(r.Context(), req, r.URL.Query().Get("newer"), func(c appliance.FileChange) error {
			return gonePast(r.Context(), yield(FileLine{Change: &c}))
		})
	})
}

func (s *server) fileVersions(w http.ResponseWriter, r *http.Request) error {
	req, err := filesRequest(r)
	if err != nil {
		return err
	}
	list, err := s.a.Versions(r.Context(), req)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, nonNil(list))
}
