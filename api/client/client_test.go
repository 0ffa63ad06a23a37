package client_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/api/client"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/internal/host"
	"github.com/sendense/sendense/internal/requires"
)

// connect runs an appliance in this process and returns a client of it.
func connect(t *testing.T) *host.Connection {
	t.Helper()
	c, err := host.Connect(t.Context(), "", host.Options{Repository: filepath.Join(t.TempDir(), "repo"), Create: true, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func begin(t *testing.T, c *client.Client) capture.Draft {
	t.Helper()
	d, err := c.Target().Begin(t.Context(), capture.Begin{Source: "test",
		VM: capture.VM{UUID: "3f0c7d52-7b8e-4b6e-9a41-0d5f1c2e3b4a", Name: "web1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Abort(context.Background(), errors.New("the test is over")) })
	return d
}

func code(err error) appliance.Code {
	var e *appliance.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func TestWaitCancelsTheJobWhenItsContextEnds(t *testing.T) {
	c := connect(t)
	d := begin(t, c.Client)
	ctx, cancel := context.WithCancel(t.Context())
	j, err := c.Wait(ctx, d.JobID(), func(appliance.Job) { cancel() })
	if j.State != appliance.JobCancelled || code(err) != appliance.CodeCancelled {
		t.Errorf("job: got %s and %v, want cancelled", j.State, err)
	}
	// The agent learns of it, and why.
	err = d.Report(t.Context(), capture.Progress{})
	if !errors.Is(err, capture.ErrCancelled) || code(err) == "" {
		t.Errorf("report: got %v, want the reason and %v", err, capture.ErrCancelled)
	}
}

// A job that is beyond being cancelled is what it became.
func TestWaitTellsOfAJobThatSucceedsAllTheSame(t *testing.T) {
	event := func(s appliance.JobState) string {
		job, err := json.Marshal(appliance.Job{ID: "x", State: s})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("event: job\ndata: %s\n\n", job)
	}
	asked := 0
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/jobs/x/events", func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked > 1 {
			fmt.Fprint(w, event(appliance.JobSucceeded))
			return
		}
		fmt.Fprint(w, event(appliance.JobRunning))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("POST /v1/jobs/x/cancel", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) })
	s := httptest.NewUnstartedServer(mux)
	socket := filepath.Join(t.TempDir(), "s")
	var err error
	if s.Listener, err = net.Listen("unix", socket); err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.Close()
	c, err := client.New("unix:" + socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	if j, err := c.Wait(ctx, "x", func(appliance.Job) { cancel() }); err != nil || j.State != appliance.JobSucceeded {
		t.Errorf("wait: got %s and %v, want that it succeeded", j.State, err)
	}
}

func TestWatchingAJobDoesNotCancelIt(t *testing.T) {
	c := connect(t)
	d := begin(t, c.Client)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.WatchJob(ctx, d.JobID(), func(appliance.Job) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("watch: got %v, want that the context ended", err)
	}
	if j, err := c.Job(t.Context(), d.JobID()); err != nil || j.State != appliance.JobRunning {
		t.Errorf("job: got %s (%v), want running", j.State, err)
	}
}

func TestADraftMayBeGivenUpWithoutAReason(t *testing.T) {
	c := connect(t)
	d := begin(t, c.Client)
	if err := d.Abort(t.Context(), nil); err != nil {
		t.Fatalf("abort: %v", err)
	}
	j, err := c.Wait(t.Context(), d.JobID(), nil)
	if j.State != appliance.JobCancelled || j.Error == nil || j.Error.Msg == "" || j.Error.Hint == "" {
		t.Errorf("job: got %s %+v (%v), want cancelled, with a sentence and a hint", j.State, j.Error, err)
	}
}

func TestDigestsAreComparedWithTheParent(t *testing.T) {
	c := connect(t)
	d := begin(t, c.Client)
	disk, err := d.AddDisk(t.Context(), capture.DiskSpec{Key: "vda", Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	zero := disk.Sum(make([]byte, disk.ClusterSize()))
	differs, err := disk.Differs(t.Context(), 0, []capture.Digest{zero, zero})
	if err != nil || len(differs) != 2 || !differs[0] || !differs[1] {
		t.Errorf("without a parent: got %v (%v), want that all differ", differs, err)
	}
	if differs, err = disk.Differs(t.Context(), 0, nil); err != nil || len(differs) != 0 {
		t.Errorf("no digests: got %v (%v), want nothing", differs, err)
	}
}

// pretend serves one answer to whatever is asked and then breaks the connection.
func pretend(t *testing.T, answer func(*bufio.ReadWriter)) *client.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd-")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			rw := bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
			if _, err := http.ReadRequest(rw.Reader); err == nil {
				answer(rw)
				rw.Flush()
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-served; os.RemoveAll(dir) })
	c, err := client.New("unix:" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestAnArchiveIsWholeOrAnError(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n"
	const trailers = "Sendense-Files: 1\r\nSendense-Bytes: 2\r\nSendense-Left-Out: 3\r\nSendense-Special: 5\r\nSendense-Changed: 4\r\nSendense-Remarks: x\r\n"
	for _, test := range []struct {
		name, answer string
		code         appliance.Code
	}{
		{"with all of it", head + "5\r\nhello\r\n0\r\n" + trailers + "\r\n", ""},
		{"that breaks off in a chunk", head + "5\r\nhel", appliance.CodeInterrupted},
		{"that breaks off between chunks", head + "5\r\nhello\r\n", appliance.CodeInterrupted},
		{"that breaks off in the trailers", head + "5\r\nhello\r\n0\r\n" + trailers[:30], appliance.CodeInterrupted},
		{"that ends without trailers", head + "5\r\nhello\r\n0\r\n\r\n", appliance.CodeInterrupted},
		{"of somebody who speaks HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nhello", appliance.CodeInterrupted},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := pretend(t, func(rw *bufio.ReadWriter) { rw.WriteString(test.answer) })
			var got bytes.Buffer
			sum, err := c.Archive(t.Context(), appliance.ArchiveRequest{VM: "web1", Point: "latest"}, &got)
			if code(err) != test.code || err == nil && (got.String() != "hello" || sum != appliance.ArchiveSummary{Files: 1, Bytes: 2, LeftOut: 3, Special: 5, Changed: 4, Remarks: "x"}) {
				t.Errorf("got %q, %+v, %v, want code %q", got.String(), sum, err, test.code)
			}
		})
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	c := pretend(t, func(rw *bufio.ReadWriter) { rw.WriteString(head + "5\r\nhello\r\n0\r\n" + trailers + "\r\n") })
	if _, err := c.Archive(t.Context(), appliance.ArchiveRequest{}, full); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("to a full disk: got %v, want that nothing is free", err)
	}
}

func TestContentIsWholeOrSaysWhyNot(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
	problem := func(code string) string {
		body := fmt.Sprintf(`{"code":%q,"detail":"So it is.","hint":"Do.","guest":true}`, code)
		return fmt.Sprintf("HTTP/1.1 422 No\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	for _, test := range []struct {
		name    string
		answers []string
		code    appliance.Code
		guest   bool
	}{
		{"all of it", []string{head + "helloworld"}, "", false},
		{"a part, the rest being damaged", []string{head + "hello", problem("corrupt")}, appliance.CodeCorrupt, true},
		{"a part, the rest being there", []string{head + "hello", "HTTP/1.1 206 Partial\r\nContent-Length: 5\r\n\r\nworld"}, appliance.CodeInterrupted, false},
		{"a part, the server being gone", []string{head + "hello"}, appliance.CodeInterrupted, false},
		{"nothing", []string{problem("denied")}, appliance.CodeDenied, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			left := test.answers
			c := pretend(t, func(rw *bufio.ReadWriter) {
				if len(left) > 0 {
					rw.WriteString(left[0])
					left = left[1:]
				}
			})
			var got []byte
			body, n, err := c.ReadFile(t.Context(), appliance.FilesRequest{VM: "web1", Point: "latest", Path: "/x"})
			if err == nil {
				got, err = io.ReadAll(body)
				body.Close()
			}
			var e *appliance.Error
			if errors.As(err, &e) && e.Guest != test.guest || code(err) != test.code || err == nil && (n != 10 || string(got) != "helloworld") {
				t.Errorf("got %q of %d, %v, want code %q", got, n, err, test.code)
			}
		})
	}
	gone, cancel := context.WithCancel(t.Context())
	c := pretend(t, func(rw *bufio.ReadWriter) { rw.WriteString(head + "hello") })
	body, _, err := c.ReadFile(gone, appliance.FilesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	cancel()
	if _, err := io.ReadAll(body); !errors.Is(err, context.Canceled) {
		t.Errorf("what nobody waits for: got %v, want that it was cancelled", err)
	}
}

func TestAServerThatGoesAwayIsUnreachable(t *testing.T) {
	job, err := json.Marshal(appliance.Job{ID: "x", State: appliance.JobRunning})
	if err != nil {
		t.Fatal(err)
	}
	event := fmt.Sprintf("event: job\ndata: %s\n\n", job)
	chunk := func(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, test := range []struct{ name, answer string }{
		{"before it answers", ""},
		{"in the head of its answer", "HTTP/1.1 200"},
		{"before the first event", head},
		{"behind an event", head + chunk(event)},
		{"within an event", head + chunk(event+event[:30])},
		{"in good order while the job runs", head + chunk(event) + "0\r\n\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := pretend(t, func(rw *bufio.ReadWriter) { rw.WriteString(test.answer) })
			_, err := c.Wait(t.Context(), "x", nil)
			if code(err) != appliance.CodeUnreachable {
				t.Errorf("wait: got %v, want code %s", err, appliance.CodeUnreachable)
			}
			if _, err = c.Jobs(t.Context()); code(err) != appliance.CodeUnreachable {
				t.Errorf("jobs: got %v, want code %s", err, appliance.CodeUnreachable)
			}
			_, err = c.Target().Begin(t.Context(), capture.Begin{})
			if code(err) != appliance.CodeUnreachable {
				t.Errorf("begin: got %v, want code %s", err, appliance.CodeUnreachable)
			}
		})
	}
}

func TestADraftWhoseServerGoesAwayIsOver(t *testing.T) {
	hold := make(chan struct{})
	c := pretend(t, func(rw *bufio.ReadWriter) {
		first, _ := json.Marshal(api.DraftEvent{Draft: &appliance.DraftInfo{Job: "backup-x", Digest: "blake3-256"}})
		fmt.Fprintf(rw, "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\n\r\n", len(first)+1, first)
		rw.Flush()
		<-hold
	})
	d, err := c.Target().Begin(t.Context(), capture.Begin{})
	if err != nil {
		t.Fatal(err)
	}
	close(hold)
	for err == nil || code(err) == "" { // until the end of the stream is noticed
		err = d.Report(t.Context(), capture.Progress{})
	}
	if code(err) != appliance.CodeUnreachable {
		t.Errorf("report: got %v, want code %s", err, appliance.CodeUnreachable)
	}
	if err := d.Abort(t.Context(), errors.New("given up")); err != nil {
		t.Errorf("abort: got %v, want none: there is nothing left", err)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		want         appliance.Code
	}{
		{"an error that is no problem", "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops", appliance.CodeInternal},
		{"a problem without code", "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", appliance.CodeInternal},
		{"a list that is none", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\noops", appliance.CodeUnreachable},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := pretend(t, func(rw *bufio.ReadWriter) { rw.WriteString(test.answer) })
			if _, err := c.VMs(t.Context()); code(err) != test.want {
				t.Errorf("code: got %v, want %s", err, test.want)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	for _, address := range []string{"", "unix:", "/run/x", "http://x", "tcp:127.0.0.1:1"} {
		if _, err := client.New(address); code(err) != appliance.CodeInvalid {
			t.Errorf("address %q: got %v, want code %s", address, err, appliance.CodeInvalid)
		}
	}
	c, err := client.New("unix:" + filepath.Join(t.TempDir(), "nobody"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Health(t.Context()); code(err) != appliance.CodeUnreachable {
		t.Errorf("nobody there: got %v, want code %s", err, appliance.CodeUnreachable)
	}
}

func TestAKeyringLastsAsLongAsItsClient(t *testing.T) {
	c := connect(t)
	if _, err := c.AddKeyring(t.Context(), nil); code(err) != appliance.CodeInvalid {
		t.Errorf("a keyring without passphrases: got %v", err)
	}
	secret := []byte("open sesame")
	k, err := c.AddKeyring(t.Context(), [][]byte{secret})
	if err != nil {
		t.Fatal(err)
	}
	if string(secret) != "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" {
		t.Errorf("passphrase that was given: got %q, want it overwritten", secret)
	}
	mount := func() error {
		_, err := c.Mount(t.Context(), api.MountRequest{Dir: "/none/at/all"}, k.ID)
		return err
	}
	if err := mount(); err == nil || strings.Contains(err.Error(), "passphrases") {
		t.Errorf("a request with the keyring: got %v, want that there is no such folder", err)
	}
	k.Close()
	requires.Until(t, "a request finds that the keyring is closed", func() bool {
		err := mount()
		return code(err) == appliance.CodeNotFound && strings.Contains(err.Error(), "The passphrases")
	})
}

func TestAnApplianceEndsThatKeepsPassphrases(t *testing.T) {
	c, err := host.Connect(t.Context(), "", host.Options{Repository: filepath.Join(t.TempDir(), "repo"), Create: true, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	k, err := c.AddKeyring(t.Context(), [][]byte{[]byte("open sesame")})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	k.Close()
}
