// Package host runs an appliance in a process: the control plane's daemon, which
// owns a repository and listens for clients, or a command that works without a
// daemon and is its own only client. Both run the same code behind the same
// interface.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/dir"
	"github.com/sendense/sendense/internal/state"
)

// stateDir is the folder of the host's own records inside a repository.
const stateDir = ".sendense"

// Options configure a Host.
type Options struct {
	Repository string // path of its folder
	RunDir     string // where sockets are made; exists and is private to the host
	Create     bool   // make the repository if it is missing
	ReadOnly   bool   // open the repository only to read
	Exclusive  bool   // own the repository: the control plane
	Name       string // of the program, for messages to others
	Version    string
	// Authenticate refuses requests. Default: whoever the listener lets in may do
	// everything.
	Authenticate func(*http.Request) error
	Log          *slog.Logger // default: discard
}

// Host is an appliance together with what it stands on.
type Host struct {
	repo      *dir.Repository
	journal   interface{ Close() error }
	appliance *appliance.Appliance
	handler   http.Handler
	log       *slog.Logger
}

// Open opens the repository, which recovers what a crash left, and starts the
// appliance. The caller closes it.
func Open(ctx context.Context, o Options) (_ *Host, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &Host{log: o.Log}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if h.repo, err = openRepository(o); err != nil {
		return nil, err
	}
	var keeper appliance.Journal
	var volatile error
	if s, err := openState(h.repo); err == nil {
		h.journal, keeper = s, journal{s}
	} else {
		if o.Exclusive {
			return nil, err
		}
		m := newMemory()
		h.journal, keeper, volatile = m, m, err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	h.appliance, err = appliance.Open(ctx, appliance.Options{Repository: h.repo, Journal: keeper, Volatile: volatile, RunDir: o.RunDir,
		RestoreExports: o.Exclusive, SessionDir: filepath.Join(h.repo.Root(), stateDir, "sessions"),
		ScratchDir: filepath.Join(h.repo.Root(), stateDir, "scratch"), Metrics: appliance.NewMetrics(registry), Log: o.Log})
	if err != nil {
		return nil, err
	}
	h.handler = api.Handler(h.appliance, api.Options{Version: o.Version, Repository: h.repo.Root(), Gatherer: registry,
		Authenticate: o.Authenticate, Log: o.Log})
	return h, nil
}

func openRepository(o Options) (*dir.Repository, error) {
	path, err := filepath.Abs(o.Repository)
	if err != nil {
		return nil, err
	}
	if st, err := os.Stat(path); errors.Is(err, syscall.ENOTDIR) || err == nil && !st.IsDir() {
		return nil, &appliance.Error{Code: appliance.CodeInvalid, Err: err, Msg: fmt.Sprintf("%s cannot be a repository: it is no folder.", path),
			Hint: "Give the repository's folder with --repository."}
	}
	if o.Create {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("create the repository's folder: %w", err)
		}
	}
	repo, err := dir.Open(path, dir.Options{Create: o.Create, ReadOnly: o.ReadOnly, Exclusive: o.Exclusive, Holder: o.Name, Log: o.Log})
	var locked *repository.LockedError
	switch {
	case err == nil:
		return repo, nil
	case errors.Is(err, os.ErrNotExist) && !o.Create:
		return nil, &appliance.Error{Code: appliance.CodeNotFound, Err: err, Msg: fmt.Sprintf("There is no repository at %s.", path),
			Hint: "The first backup makes it; or give another folder with --repository."}
	case errors.As(err, &locked):
		return nil, &appliance.Error{Code: appliance.CodeBusy, Err: err, Msg: fmt.Sprintf("The %v.", locked),
			Hint: "Work through the control plane that owns it, with --control unix:PATH, or stop it."}
	case errors.Is(err, repository.ErrReadOnly):
		return nil, &appliance.Error{Code: appliance.CodeDenied, Err: err, Msg: fmt.Sprintf("The repository cannot be written: %v.", err),
			Hint: "Mount it read-write, or run as a user who may write to it."}
	}
	return nil, err
}

// openState opens the folder of records. Where nothing is free the repository's
// reserve gives way.
func openState(repo *dir.Repository) (*state.Store, error) {
	path := filepath.Join(repo.Root(), stateDir)
	s, err := state.Open(path)
	if !errors.Is(err, syscall.ENOSPC) || repo.ReadOnly() != nil {
		return s, err
	}
	defer repo.SpendReserve()()
	return state.Open(path)
}

// Serve answers requests on l until ctx ends, then ends jobs and exports, finishes
// the requests in flight and closes l.
func (h *Host) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: h.handler, ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		// Jobs go first: who waits for them is told why they end.
		ended := h.appliance.Close()
		grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		err := server.Shutdown(grace)
		if err != nil { // a job takes longer to end than clients are made to wait
			err = server.Close()
		}
		stopped <- errors.Join(ended, err)
	})
	err := server.Serve(l)
	if !stop() && errors.Is(err, http.ErrServerClosed) {
		return <-stopped
	}
	return err
}

// Close ends jobs and exports, then gives the repository up.
func (h *Host) Close() error {
	var errs []error
	if h.appliance != nil {
		errs = append(errs, h.appliance.Close())
	}
	if h.journal != nil {
		errs = append(errs, h.journal.Close())
	}
	if h.repo != nil {
		errs = append(errs, h.repo.Close())
	}
	return errors.Join(errs...)
}
