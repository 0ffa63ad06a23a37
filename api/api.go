// Package api offers an appliance over HTTP: JSON, problem details (RFC 9457)
// for errors, server-sent events for the progress of jobs, and Prometheus
// metrics. Package api/client is the other end.
//
// Who may connect is the business of the listener and of Options.Authenticate.
// The package knows nothing of SQL and of storage.
package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sendense/sendense/appliance"
)

// maxBody bounds the body of a request, in bytes.
const maxBody = 16 << 20

// Options configure a handler.
type Options struct {
	Version    string
	Repository string              // path, for Health
	Gatherer   prometheus.Gatherer // of /metrics; default: none
	// Authenticate refuses a request by returning an error. Default: whoever the
	// listener lets in may do everything.
	Authenticate func(*http.Request) error
	Log          *slog.Logger // default: discard
}

// Health says that an appliance answers, and which.
type Health struct {
	Status     string `json:"status"` // "ok"
	Version    string `json:"version"`
	Repository string `json:"repository"`
	PID        int    `json:"pid"`
}

// VMPoint is a point together with its machine.
type VMPoint struct {
	VM    appliance.VM    `json:"vm"`
	Point appliance.Point `json:"point"`
}

// Problem is the body of an error (RFC 9457) with the product's own members.
type Problem struct {
	Type   string         `json:"type"`
	Title  string         `json:"title"`
	Status int            `json:"status"`
	Detail string         `json:"detail"`
	Code   appliance.Code `json:"code"`
	Hint   string         `json:"hint,omitempty"`
	// Guest says that something is wrong in the guest's own file systems, and that all
	// else in the point can be read.
	Guest bool `json:"guest,omitempty"`
}

// Err returns the problem as an error.
func (p *Problem) Err() error {
	return &appliance.Error{Code: p.Code, Msg: p.Detail, Hint: p.Hint, Guest: p.Guest}
}

// statuses maps each code of an error to its HTTP status.
var statuses = map[appliance.Code]int{
	appliance.CodeInternal:    http.StatusInternalServerError,
	appliance.CodeInvalid:     http.StatusBadRequest,
	appliance.CodeNotFound:    http.StatusNotFound,
	appliance.CodeBusy:        http.StatusConflict,
	appliance.CodeCorrupt:     http.StatusUnprocessableEntity,
	appliance.CodeUnproven:    http.StatusUnprocessableEntity,
	appliance.CodeUnreachable: http.StatusBadGateway,
	appliance.CodeDenied:      http.StatusForbidden,
	appliance.CodeNoSpace:     http.StatusInsufficientStorage,
	appliance.CodeCancelled:   http.StatusConflict,
	appliance.CodeInterrupted: http.StatusConflict,
}

type server struct {
	a    *appliance.Appliance
	opts Options
	log  *slog.Logger
}

// Handler returns the REST interface of a.
func Handler(a *appliance.Appliance, o Options) http.Handler {
	s := &server{a: a, opts: o, log: o.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	r := mux.NewRouter().UseEncodedPath().SkipClean(true) // names are what they are, also ".."
	v1 := r.PathPrefix("/v1").Subrouter()
	for _, route := range []struct {
		method, path string
		fn           func(http.ResponseWriter, *http.Request) error
	}{
		{"GET", "/health", s.health},
		{"GET", "/vms", s.vms},
		{"GET", "/vms/{vm}", s.vm},
		{"GET", "/vms/{vm}/points", s.points},
		{"GET", "/vms/{vm}/points/{point}", s.point},
		{"DELETE", "/vms/{vm}/points/{point}", s.deletePoint},
		{"GET", "/vms/{vm}/usage", s.usage},
		{"GET", "/vms/{vm}/versions", s.fileVersions},
		{"GET", "/vms/{vm}/points/{point}/contents", s.contents},
		{"GET", "/vms/{vm}/points/{point}/files/stat", s.statFile},
		{"GET", "/vms/{vm}/points/{point}/files/list", s.listFiles},
		{"GET", "/vms/{vm}/points/{point}/files/find", s.findFiles},
		{"GET", "/vms/{vm}/points/{point}/files/diff", s.diffFiles},
		{"GET", "/vms/{vm}/points/{point}/files/content", s.fileContent},
		{"GET", "/vms/{vm}/points/{point}/files/archive", s.archiveFiles},
		{"GET", "/vms/{vm}/points/{point}/check", s.lastCheck},
		{"GET", "/vms/{vm}/points/{point}/check/screen", s.checkScreen},
		{"GET", "/vms/{vm}/points/{point}/files/places", s.filePlaces},
		{"POST", "/keyrings", s.keyring},
		{"POST", "/verify", s.verify},
		{"POST", "/checks", s.check},
		{"GET", "/exports", s.exports},
		{"POST", "/exports", s.export},
		{"DELETE", "/exports/{id}", s.unexport},
		{"GET", "/mounts", s.mounts},
		{"POST", "/mounts", s.mount},
		{"DELETE", "/mounts", s.unmount},
		{"GET", "/sessions", s.sessions},
		{"POST", "/sessions", s.boot},
		{"GET", "/sessions/{id}", s.session},
		{"POST", "/sessions/{id}/start", s.startSession},
		{"POST", "/sessions/{id}/resume", s.resumeSession},
		{"POST", "/sessions/{id}/migrate", s.migrateSession},
		{"POST", "/sessions/{id}/keep", s.keepSession},
		{"POST", "/sessions/{id}/discard", s.discardSession},
		{"POST", "/restores", s.restore},
		{"POST", "/restores/plan", s.planRestore},
		{"GET", "/jobs", s.jobs},
		{"GET", "/jobs/{id}", s.job},
		{"GET", "/jobs/{id}/events", s.jobEvents},
		{"POST", "/jobs/{id}/cancel", s.cancelJob},
		{"POST", "/drafts", s.beginDraft},
		{"POST", "/drafts/{id}/disks", s.addDisk},
		{"POST", "/drafts/{id}/disks/{disk:[0-9]+}/differs", s.differs},
		{"PUT", "/drafts/{id}/progress", s.report},
		{"POST", "/drafts/{id}/commit", s.commit},
		{"POST", "/drafts/{id}/abort", s.abort},
	} {
		v1.HandleFunc(route.path, s.handle(route.fn)).Methods(route.method)
	}
	if o.Gatherer != nil {
		metrics := promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{})
		r.HandleFunc("/metrics", s.handle(func(w http.ResponseWriter, r *http.Request) error {
			metrics.ServeHTTP(w, r)
			return nil
		})).Methods("GET")
	}
	nothing := s.handle(func(w http.ResponseWriter, req *http.Request) error {
		if allowed := strings.Join(methods(r, req), ", "); allowed != "" {
			w.Header().Set("Allow", allowed)
			return &appliance.Error{Code: appliance.CodeInvalid, Err: errMethod,
				Msg: fmt.Sprintf("There is no %s at %s.", req.Method, req.URL.Path), Hint: "It understands " + allowed + "."}
		}
		return &appliance.Error{Code: appliance.CodeNotFound, Msg: fmt.Sprintf("There is nothing at %s.", req.URL.Path),
			Hint: "The interface is described in docs/openapi.json."}
	})
	r.NotFoundHandler, r.MethodNotAllowedHandler = nothing, nothing
	return r
}

// errMethod says that a path is there, but not with the request's method.
var errMethod = errors.New("method not allowed")

// methods lists the methods with which the path of req is there.
func methods(router *mux.Router, req *http.Request) []string {
	var found []string
	for _, m := range []string{"DELETE", "GET", "POST", "PUT"} {
		other := req.Clone(req.Context())
		other.Method = m
		var match mux.RouteMatch
		if router.Match(other, &match) && match.MatchErr == nil && match.Route != nil {
			found = append(found, m)
		}
	}
	return found
}

// handle makes an HTTP handler of fn: it authenticates, bounds the body and turns
// errors into problems.
func (s *server) handle(fn func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.opts.Authenticate != nil {
			if err := s.opts.Authenticate(r); err != nil {
				s.problem(w, r, err)
				return
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if err := fn(w, r); err != nil {
			s.problem(w, r, err)
		}
	}
}

// problem answers with err. The cause of an internal error is for the log.
func (s *server) problem(w http.ResponseWriter, r *http.Request, err error) {
	e := appliance.AsError(err)
	status := statusOf(e)
	if e.Code == appliance.CodeInternal {
		s.log.Error("request ended in an error", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	send(w, newProblem(http.StatusText(status), e))
}

// newProblem returns e as a problem with a title.
func newProblem(title string, e *appliance.Error) Problem {
	return Problem{Type: "about:blank", Title: title, Status: statusOf(e), Detail: e.Error(), Code: e.Code, Hint: e.Hint, Guest: e.Guest}
}

// statusOf returns the HTTP status of an error: that of its code, unless HTTP has
// a more telling one.
func statusOf(e *appliance.Error) int {
	var tooLong *http.MaxBytesError
	switch status := statuses[e.Code]; {
	case errors.As(e, &tooLong):
		return http.StatusRequestEntityTooLarge
	case errors.Is(e, errMethod):
		return http.StatusMethodNotAllowed
	case errors.Is(e, errRange):
		return http.StatusRequestedRangeNotSatisfiable
	case status == 0:
		return http.StatusInternalServerError
	default:
		return status
	}
}

// reply sends v as JSON.
func reply(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	send(w, v)
	return nil
}

// send writes v as a line of JSON. The client may be gone, which is no concern of
// who answers it.
func send(w io.Writer, v any) { _ = json.NewEncoder(w).Encode(v) }

// decode reads the body into v, strictly.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil && d.More() {
		err = errors.New("there is more behind the JSON value")
	}
	if err != nil {
		if err == io.EOF {
			err = errors.New("it is empty")
		}
		return &appliance.Error{Code: appliance.CodeInvalid, Err: err, Msg: fmt.Sprintf("The body of the request cannot be read: %v.", err),
			Hint: "Send a JSON value as docs/openapi.json describes it."}
	}
	return nil
}

// variable returns a variable of the route.
func variable(r *http.Request, name string) string {
	v, err := url.PathUnescape(mux.Vars(r)[name])
	if err != nil {
		return mux.Vars(r)[name]
	}
	return v
}

func (s *server) health(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, http.StatusOK, Health{Status: "ok", Version: s.opts.Version, Repository: s.opts.Repository, PID: pid()})
}

func (s *server) vms(w http.ResponseWriter, r *http.Request) error {
	vms, err := s.a.VMs(r.Context())
	if err != nil && len(vms) == 0 {
		return err
	}
	if err != nil { // some records are damaged: show the others, and say so
		w.Header().Set("Warning", fmt.Sprintf("199 - %q", err.Error()))
	}
	return reply(w, http.StatusOK, nonNil(vms))
}

func (s *server) vm(w http.ResponseWriter, r *http.Request) error {
	vm, err := s.a.VM(r.Context(), variable(r, "vm"))
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, vm)
}

func (s *server) points(w http.ResponseWriter, r *http.Request) error {
	points, err := s.a.Points(r.Context(), variable(r, "vm"))
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, nonNil(points))
}

func (s *server) point(w http.ResponseWriter, r *http.Request) error {
	vm, p, err := s.a.Point(r.Context(), variable(r, "vm"), variable(r, "point"))
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, VMPoint{vm, p})
}

func (s *server) usage(w http.ResponseWriter, r *http.Request) error {
	u, err := s.a.Usage(r.Context(), variable(r, "vm"))
	if err != nil {
		return err
	}
	u.Points = nonNil(u.Points)
	return reply(w, http.StatusOK, u)
}

func (s *server) deletePoint(w http.ResponseWriter, r *http.Request) error {
	job, err := s.a.Delete(r.Context(), variable(r, "vm"), variable(r, "point"))
	if err != nil {
		return err
	}
	return reply(w, http.StatusAccepted, job)
}

func (s *server) verify(w http.ResponseWriter, r *http.Request) error {
	var req appliance.VerifyRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	job, err := s.a.Verify(r.Context(), req)
	if err != nil {
		return err
	}
	return reply(w, http.StatusAccepted, job)
}

func (s *server) exports(w http.ResponseWriter, r *http.Request) error {
	return reply(w, http.StatusOK, nonNil(s.a.Exports(r.Context())))
}

func (s *server) export(w http.ResponseWriter, r *http.Request) error {
	var spec appliance.ExportSpec
	if err := decode(r, &spec); err != nil {
		return err
	}
	spec.ID = "" // the appliance's to choose
	e, err := s.a.Export(r.Context(), spec)
	if err != nil {
		return err
	}
	return reply(w, http.StatusCreated, e)
}

func (s *server) unexport(w http.ResponseWriter, r *http.Request) error {
	if err := s.a.Unexport(r.Context(), variable(r, "id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
