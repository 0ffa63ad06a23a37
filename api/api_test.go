package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/api/client"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/capturetest"
	"github.com/sendense/sendense/internal/host"
)

const mib = 1 << 20

// served is a host behind a socket.
type served struct {
	client *client.Client
	http   *http.Client
	stop   func() // ends the host
}

// serve runs a host on a repository of its own.
func serve(t *testing.T, authenticate func(*http.Request) error) *served {
	t.Helper()
	run, err := os.MkdirTemp("", "sd-")
	if err != nil {
		t.Fatal(err)
	}
	h, err := host.Open(t.Context(), host.Options{Repository: filepath.Join(t.TempDir(), "repo"), RunDir: run, Create: true,
		Exclusive: true, Name: "test", Version: "1.2.3", Authenticate: authenticate})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(run, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, l) }()
	c, err := client.New("unix:" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.Addr().String())
	}
	s := &served{client: c, http: &http.Client{Transport: &http.Transport{DialContext: dial},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, h.Close(), os.RemoveAll(run)); err != nil {
			t.Errorf("end host: %v", err)
		}
		c.Close()
		s.http.CloseIdleConnections()
	})
	t.Cleanup(s.stop)
	return s
}

// do makes a request and returns the answer with its body read.
func (s *served) do(t *testing.T, method, path, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://control"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// backup makes a point of a machine of one disk.
func (s *served) backup(t *testing.T, name string) (*capturetest.Source, capture.Summary) {
	t.Helper()
	src := capturetest.NewSource(t, name)
	src.Add("vda", mib)
	src.Write("vda", bytes.Repeat([]byte("sendense"), 64<<10/8), 128<<10)
	sum, err := capture.Run(t.Context(), src, s.client.Target(), capture.Options{VM: name, Source: "test"})
	if err != nil {
		t.Fatalf("back up %s: %v", name, err)
	}
	return src, sum
}

func TestErrorsAreProblems(t *testing.T) {
	s := serve(t, nil)
	s.backup(t, "web1")
	d, err := s.client.Target().Begin(t.Context(), capture.Begin{Source: "test",
		VM: capture.VM{UUID: "3f0c7d52-7b8e-4b6e-9a41-0d5f1c2e3b4a", Name: "web2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort(t.Context(), errors.New("the test is over"))
	disk, err := d.AddDisk(t.Context(), capture.DiskSpec{Key: "vda", Size: mib})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	draft := "/v1/drafts/" + d.JobID()
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		code                     appliance.Code
	}{
		{"a path that leads nowhere", "GET", "/v2/vms", "", 404, "not_found"},
		{"the root", "GET", "/", "", 404, "not_found"},
		{"a method that the path does not have", "DELETE", "/v1/vms", "", 405, "invalid"},
		{"a method that no path has", "BREW", "/v1/vms/web1/points/latest", "", 405, "invalid"},
		{"a machine that is not there", "GET", "/v1/vms/web9", "", 404, "not_found"},
		{"a machine that is no folder", "GET", "/v1/vms/..", "", 404, "not_found"},
		{"points of a machine that is not there", "GET", "/v1/vms/web9/points", "", 404, "not_found"},
		{"usage of a machine that is not there", "GET", "/v1/vms/web9/usage", "", 404, "not_found"},
		{"a point that is not there", "GET", "/v1/vms/web1/points/20200101-000000", "", 404, "not_found"},
		{"a point that is none", "GET", "/v1/vms/web1/points/yesterday", "", 400, "invalid"},
		{"deleting a point that is not there", "DELETE", "/v1/vms/web1/points/latest~5", "", 404, "not_found"},
		{"verifying a machine that is not there", "POST", "/v1/verify", `{"vm":"web9"}`, 404, "not_found"},
		{"verifying a point of no machine", "POST", "/v1/verify", `{"point":"latest"}`, 400, "invalid"},
		{"a member that is not known", "POST", "/v1/verify", `{"vn":"web1"}`, 400, "invalid"},
		{"a body that is empty", "POST", "/v1/verify", "", 400, "invalid"},
		{"a body that is cut off", "POST", "/v1/verify", `{"vm":"we`, 400, "invalid"},
		{"a body with something behind it", "POST", "/v1/verify", `{} {}`, 400, "invalid"},
		{"a body of another type", "POST", "/v1/exports", `{"vm":7}`, 400, "invalid"},
		{"a body that is too long", "POST", "/v1/verify", `{"vm":"` + strings.Repeat("x", 17*mib) + `"}`, 413, "invalid"},
		{"an export of nothing", "POST", "/v1/exports", `{}`, 404, "not_found"},
		{"an export to the world", "POST", "/v1/exports", `{"vm":"web1","point":"latest","listen":"0.0.0.0:0"}`, 400, "invalid"},
		{"an export that is not there", "DELETE", "/v1/exports/x", "", 404, "not_found"},
		{"a job that is not there", "GET", "/v1/jobs/x", "", 404, "not_found"},
		{"events of a job that is not there", "GET", "/v1/jobs/x/events", "", 404, "not_found"},
		{"cancelling a job that is not there", "POST", "/v1/jobs/x/cancel", "", 404, "not_found"},
		{"a draft of no machine", "POST", "/v1/drafts", `{"name":"x","uuid":"x"}`, 400, "invalid"},
		{"a draft with a compression that there is not", "POST", "/v1/drafts",
			`{"name":"x","uuid":"11111111-7b8e-4b6e-9a41-0d5f1c2e3b4a","compress":"rar"}`, 400, "invalid"},
		{"a draft of a machine that has one", "POST", "/v1/drafts", `{"name":"web2","uuid":"3f0c7d52-7b8e-4b6e-9a41-0d5f1c2e3b4a"}`, 409, "busy"},
		{"a disk of a draft that is not there", "POST", "/v1/drafts/x/disks", `{"key":"vda","size":512}`, 404, "not_found"},
		{"progress of a draft that is not there", "PUT", "/v1/drafts/x/progress", `{}`, 404, "not_found"},
		{"commit of a draft that is not there", "POST", "/v1/drafts/x/commit", `{}`, 404, "not_found"},
		{"abort of a draft that is not there", "POST", "/v1/drafts/x/abort", `{}`, 404, "not_found"},
		{"digests for a draft that is not there", "POST", "/v1/drafts/x/disks/0/differs", `{}`, 404, "not_found"},
		{"digests that are cut off", "POST", draft + "/disks/0/differs", `{"first":0,"sums":"AAAA"}`, 400, "invalid"},
		{"digests that are no base64", "POST", draft + "/disks/0/differs", `{"first":0,"sums":"?"}`, 400, "invalid"},
		{"digests of a disk that is not there", "POST", draft + "/disks/7/differs", `{"first":0,"sums":""}`, 404, "not_found"},
		{"digests of a disk that no number names", "POST", draft + "/disks/vda/differs", `{"first":0,"sums":""}`, 404, "not_found"},
		{"a member of a commit that is not known", "POST", draft + "/commit", `{"disk":[]}`, 400, "invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := s.do(t, c.method, c.path, c.body)
			var p api.Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatalf("body: got %q (%v), want a problem", body, err)
			}
			if resp.StatusCode != c.status || p.Status != c.status || p.Code != c.code {
				t.Errorf("problem: got %d and %+v, want %d %s", resp.StatusCode, p, c.status, c.code)
			}
			if got := resp.Header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("type: got %s, want application/problem+json", got)
			}
			if p.Type != "about:blank" || p.Title != http.StatusText(c.status) || p.Detail == "" || p.Hint == "" {
				t.Errorf("problem: got %+v, want type, title, detail and hint", p)
			}
			if c.status == 405 && !strings.Contains(resp.Header.Get("Allow"), "GET") {
				t.Errorf("Allow: got %q, want GET in it", resp.Header.Get("Allow"))
			}
		})
	}
}

func TestTheAuthenticatorIsAskedOnEveryRoute(t *testing.T) {
	var asked atomic.Int32
	s := serve(t, func(*http.Request) error {
		asked.Add(1)
		return &appliance.Error{Code: appliance.CodeDenied, Msg: "You may not.", Hint: "Ask somebody."}
	})
	refused := func(method, path string) {
		t.Helper()
		asked.Store(0)
		resp, body := s.do(t, method, path, "{}")
		if resp.StatusCode != 403 || asked.Load() != 1 || !strings.Contains(body, "You may not.") {
			t.Errorf("%s %s: got %d after asking %d times: %s", method, path, resp.StatusCode, asked.Load(), body)
		}
	}
	n := 0
	router := api.Handler(nil, api.Options{Gatherer: prometheus.NewRegistry()}).(*mux.Router)
	err := router.Walk(func(r *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		methods, err := r.GetMethods()
		if err != nil {
			return nil //nolint:nilerr // a prefix of others
		}
		path, err := r.GetPathTemplate()
		for _, m := range methods {
			n++
			refused(m, strings.NewReplacer("{vm}", "x", "{point}", "latest", "{id}", "x", "{disk:[0-9]+}", "0").Replace(path))
		}
		return err
	})
	if err != nil || n < 22 {
		t.Errorf("routes: got %d (%v), want at least 22", n, err)
	}
	refused("GET", "/nowhere")
	refused("GET", "//v1/vms")
	refused("PATCH", "/v1/vms")
	refused("GET", "/metrics")
}

func TestMachinesMayHaveAnyName(t *testing.T) {
	s := serve(t, nil)
	for _, name := range []string{"a/b", "two words", "100%", "%2F", "Müller", "..", "a?b#c", "points", "a+b", "数据库"} {
		t.Run(name, func(t *testing.T) {
			_, sum := s.backup(t, name)
			vm, err := s.client.VM(t.Context(), name)
			if err != nil || vm.Name != name {
				t.Errorf("VM: got %q (%v), want %q", vm.Name, err, name)
			}
			p, err := s.client.Point(t.Context(), name, "latest")
			if err != nil || string(p.Point.ID) != sum.PointID {
				t.Errorf("point: got %s (%v), want %s", p.Point.ID, err, sum.PointID)
			}
			if points, err := s.client.Points(t.Context(), name); err != nil || len(points) != 1 {
				t.Errorf("points: got %v (%v), want one", points, err)
			}
			if u, err := s.client.Usage(t.Context(), name); err != nil || len(u.Points) != 1 {
				t.Errorf("usage: got %v (%v), want one point", u, err)
			}
			j, err := s.client.Delete(t.Context(), name, "latest")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.client.Wait(t.Context(), j.ID, nil); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
	}
}

func TestEventsTellOfAJobUntilItIsFinal(t *testing.T) {
	s := serve(t, nil)
	d, err := s.client.Target().Begin(t.Context(), capture.Begin{Source: "test",
		VM: capture.VM{UUID: "3f0c7d52-7b8e-4b6e-9a41-0d5f1c2e3b4a", Name: "web1"}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.http.Get("http://control/v1/jobs/" + d.JobID() + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("type: got %s, want text/event-stream", got)
	}
	events := bufio.NewReader(resp.Body)
	next := func() (j appliance.Job) {
		t.Helper()
		var lines [3]string
		for i := range lines {
			if lines[i], err = events.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		data, ok := strings.CutPrefix(lines[1], "data: ")
		if lines[0] != "event: job\n" || !ok || lines[2] != "\n" {
			t.Fatalf("event: got %q, want one named job", lines)
		}
		if err := json.Unmarshal([]byte(data), &j); err != nil {
			t.Fatal(err)
		}
		return j
	}
	if j := next(); j.State != appliance.JobRunning || j.ID != d.JobID() {
		t.Errorf("first event: got %+v, want the running job", j)
	}
	if err := d.Report(t.Context(), capture.Progress{Phase: "read", Disk: "vda", Done: 5, Total: 10}); err != nil {
		t.Fatal(err)
	}
	if j := next(); j.Progress.Done != 5 || j.Progress.Total != 10 {
		t.Errorf("progress: got %+v, want 5 of 10", j.Progress)
	}
	if err := d.Abort(t.Context(), &appliance.Error{Code: appliance.CodeUnreachable, Msg: "The host is gone.", Hint: "Find it."}); err != nil {
		t.Fatal(err)
	}
	if j := next(); j.State != appliance.JobFailed || j.Error == nil || j.Error.Msg != "The host is gone." {
		t.Errorf("last event: got %s %+v, want failed with the reason", j.State, j.Error)
	}
	if rest, err := io.ReadAll(events); err != nil || len(rest) != 0 {
		t.Errorf("behind the last event: got %q (%v), want the end", rest, err)
	}
}

func TestMetricsAndHealthAreServed(t *testing.T) {
	s := serve(t, nil)
	s.backup(t, "web1")
	h, err := s.client.Health(t.Context())
	if err != nil || h.Status != "ok" || h.Version != "1.2.3" || h.PID != os.Getpid() {
		t.Errorf("health: got %+v (%v), want ok from this process", h, err)
	}
	resp, body := s.do(t, "GET", "/metrics", "")
	if resp.StatusCode != 200 || !strings.Contains(body, `sendense_jobs_total{state="succeeded",verb="backup"} 1`) {
		t.Errorf("metrics: got %d, want the backup counted", resp.StatusCode)
	}
	if strings.Contains(body, "web1") {
		t.Error("metrics tell the names of machines")
	}
}

func TestWhatMayBeAPassphraseIsNotTold(t *testing.T) {
	s := serve(t, nil)
	for _, body := range []string{`{"passphrases":["open sesame"]}`, `{"open sesame":1}`, `"open sesame"`, `open sesame`, `{"passphrases":"open sesame"}`, ``} {
		resp, got := s.do(t, "POST", "/v1/keyrings", body)
		if resp.StatusCode != http.StatusBadRequest || strings.Contains(got, "sesame") || !strings.Contains(got, "base64") {
			t.Errorf("%s: got %s, %s", body, resp.Status, got)
		}
	}
}
