package appliance_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/api/client"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/capturetest"
	"github.com/sendense/sendense/internal/nbdclient"
	"github.com/sendense/sendense/internal/repository/dir"
	"github.com/sendense/sendense/internal/requires"
)

// mib is a mebibyte in bytes.
const mib = 1 << 20

// rig is an appliance on a real repository, behind its real interface.
type rig struct {
	*appliance.Appliance
	client  *client.Client
	repo    *dir.Repository
	root    string // of the repository
	run     string // the run directory
	journal *journal
	close   func() // the appliance and its interface
}

// open starts an appliance on a repository of its own. change may be nil.
func open(t *testing.T, change func(*appliance.Options)) *rig {
	t.Helper()
	root := filepath.Join(t.TempDir(), "repo")
	repo, err := dir.Open(root, dir.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	return start(t, repo, newJournal("owner-1"), shortDir(t), change)
}

// start starts an appliance on what there is.
func start(t *testing.T, repo *dir.Repository, j *journal, run string, change func(*appliance.Options)) *rig {
	t.Helper()
	o := appliance.Options{Repository: repo, Journal: j, RunDir: run}
	if change != nil {
		change(&o)
	}
	a, err := appliance.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(run, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: api.Handler(a, api.Options{})}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(l) }()
	c, err := client.New("unix:" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Appliance: a, client: c, repo: repo, root: repo.Root(), run: run, journal: j}
	r.close = sync.OnceFunc(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close appliance: %v", err)
		}
		c.Close()
		server.Close()
		<-served
	})
	t.Cleanup(r.close)
	return r
}

// shortDir returns a folder whose path leaves room for the names of sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "sd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

// machine returns a source with one machine that has one disk of random content.
func machine(t *testing.T, name string, size int64) *capturetest.Source {
	t.Helper()
	s := capturetest.NewSource(t, name)
	s.Add("vda", size)
	s.Write("vda", noise(1, size), 0)
	return s
}

// noise returns n bytes that no two seeds share.
func noise(seed uint64, n int64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// backup makes a point of the source's machine.
func (r *rig) backup(t *testing.T, s *capturetest.Source, name string) capture.Summary {
	t.Helper()
	sum, err := capture.Run(t.Context(), s, r.client.Target(), capture.Options{VM: name, Source: "test"})
	if err != nil {
		t.Fatalf("back up %s: %v", name, err)
	}
	return sum
}

// wait follows a job that was just started to its end.
func (r *rig) wait(t *testing.T, j appliance.Job, err error) appliance.Job {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return r.final(t, j.ID)
}

// final follows a job to its end.
func (r *rig) final(t *testing.T, id string) (last appliance.Job) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.WatchJob(ctx, id, func(j appliance.Job) error { last = j; return nil }); err != nil {
		t.Fatalf("watch job %s: %v", id, err)
	}
	return last
}

// wantCode checks that err is an appliance's error that has a code, a sentence
// with each of the words, and a hint.
func wantCode(t *testing.T, err error, code appliance.Code, words ...string) {
	t.Helper()
	var e *appliance.Error
	if !errors.As(err, &e) {
		t.Errorf("error: got %v, want one with code %s", err, code)
		return
	}
	if e.Code != code {
		t.Errorf("code: got %s (%v), want %s", e.Code, err, code)
	}
	for _, w := range words {
		if !strings.Contains(e.Error(), w) {
			t.Errorf("error: got %q, want it to tell of %q", e.Error(), w)
		}
	}
	if e.Hint == "" {
		t.Errorf("error %q has no hint", e.Error())
	}
}

// wantNoDrafts checks that nothing of an unfinished point is left.
func (r *rig) wantNoDrafts(t *testing.T) {
	t.Helper()
	filepath.WalkDir(r.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && (strings.Contains(d.Name(), ".partial") || d.Name() == "draft.json") {
			t.Errorf("left behind: %s", path)
		}
		return nil
	})
}

// command runs a program and returns what it prints.
func command(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// read copies an NBD export with nbdcopy and returns its content.
func read(t *testing.T, uri string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy")
	requires.Run(t, "nbdcopy", uri, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// journal is a journal in memory that outlives an appliance, and whose other
// owners live as long as the test says.
type journal struct {
	mu       sync.Mutex // guards the fields below
	owner    string
	alive    map[string]bool
	jobs     map[string]appliance.Job
	exports  map[string]appliance.ExportSpec
	sessions map[string]appliance.Session
	fail     error // what PutJob returns
}

func newJournal(owner string) *journal {
	return &journal{owner: owner, alive: map[string]bool{owner: true}, jobs: map[string]appliance.Job{},
		exports: map[string]appliance.ExportSpec{}, sessions: map[string]appliance.Session{}}
}

// reborn returns the journal as the next process finds it.
func (j *journal) reborn(owner string) *journal {
	n := newJournal(owner)
	maps.Copy(n.jobs, j.jobs)
	maps.Copy(n.exports, j.exports)
	return n
}

func (j *journal) Owner() string { return j.owner }

func (j *journal) Alive(owner string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.alive[owner]
}

// refuse makes the journal take no job any more, for a reason; nil ends that.
func (j *journal) refuse(why error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fail = why
}

// spawn and kill begin and end the process of another owner.
func (j *journal) spawn(owner string) { j.setAlive(owner, true) }
func (j *journal) kill(owner string)  { j.setAlive(owner, false) }

func (j *journal) setAlive(owner string, alive bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.alive[owner] = alive
}

func (j *journal) Job(id string) (appliance.Job, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	job, ok := j.jobs[id]
	if !ok {
		return job, fmt.Errorf("read job %s: %w", id, fs.ErrNotExist)
	}
	return job, nil
}

func (j *journal) AddJob(job appliance.Job) error {
	j.mu.Lock()
	_, taken := j.jobs[job.ID]
	taken = taken && j.fail == nil // without room for it nobody finds out
	j.mu.Unlock()
	if taken {
		return fs.ErrExist
	}
	return j.PutJob(job)
}

func (j *journal) PutJob(job appliance.Job) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fail != nil {
		return fmt.Errorf("store job %s: %w", job.ID, j.fail)
	}
	j.jobs[job.ID] = job
	return nil
}

func (j *journal) DeleteJob(id string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.jobs, id)
	return nil
}

func (j *journal) Jobs() ([]appliance.Job, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.jobs)), nil
}

func (j *journal) PutExport(s appliance.ExportSpec) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.exports[s.ID] = s
	return nil
}

func (j *journal) DeleteExport(id string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.exports, id)
	return nil
}

func (j *journal) Exports() ([]appliance.ExportSpec, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.exports)), nil
}

func (j *journal) PutSession(s appliance.Session) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sessions[s.ID] = s
	return nil
}

func (j *journal) DeleteSession(id string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.sessions, id)
	return nil
}

func (j *journal) Sessions() ([]appliance.Session, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Collect(maps.Values(j.sessions)), nil
}

// dropAgent opens a draft as an agent that ends without a word once it has
// written to it, and returns the id of its job.
func (r *rig) dropAgent(t *testing.T, b capture.Begin) string {
	t.Helper()
	var conns []net.Conn
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(r.run, "control.sock"))
		conns = append(conns, c)
		return c, err
	}}
	body := fmt.Sprintf(`{"uuid":%q,"name":%q,"source":"test"}`, b.VM.UUID, b.VM.Name)
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://control/v1/drafts", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e api.DraftEvent
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Draft == nil {
		t.Fatalf("read draft: %v", err)
	}
	d, err := r.Draft(e.Draft.Job)
	if err != nil {
		t.Fatal(err)
	}
	info, err := d.AddDisk(t.Context(), "vda", mib)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := nbdclient.Open(t.Context(), info.URI, nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if err := block.Write(t.Context(), dev, noise(9, 64<<10), 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range conns {
		c.Close()
	}
	return e.Draft.Job
}
