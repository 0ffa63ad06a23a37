package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
	"github.com/sendense/sendense/nbdserver/tlstest"
)

func TestServeIsWhatStockClientsRead(t *testing.T) {
	requires.Tool(t, "nbdcopy", "nbdinfo")
	chain := newChain(t)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	clitest.Tool(t, "qemu-img", "convert", "-O", "raw", chain[2], raw)
	for _, c := range []struct {
		name string
		args []string
	}{
		{"on a socket of its own", []string{chain[2]}},
		{"on a socket that is named", []string{"--socket", filepath.Join(t.TempDir(), "a socket"), chain[2]}},
		{"on an address of this machine", []string{"--listen", "127.0.0.1:0", chain[2]}},
		{"a raw image", []string{raw}},
		{"under a name", []string{"--export", "web1 disk/0", "--read-only", chain[2]}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, c.args...)
			var clients sync.WaitGroup
			for range 3 {
				clients.Go(func() {
					copied := filepath.Join(t.TempDir(), "copy")
					if out, err := exec.Command("nbdcopy", s.uri, copied).CombinedOutput(); err != nil {
						t.Errorf("nbdcopy %s: %v: %s", s.uri, err, out)
					} else if r := call(t, "image", "compare", copied, raw); r.Code != 0 {
						t.Errorf("copy: got %+v, want equal", r)
					}
				})
			}
			clients.Wait()
			if got := clitest.Tool(t, "nbdinfo", "--is", "read-only", s.uri); got != "" {
				t.Errorf("nbdinfo --is read-only: got %q, want nothing", got)
			}
			type export struct {
				Size     int64
				ReadOnly bool `json:"read_only"`
			}
			info := clitest.Decode[struct{ Exports []export }](t, call(t, "nbd", "info", "--json", s.uri))
			if len(info.Exports) != 1 || info.Exports[0] != (export{64 << 20, true}) {
				t.Errorf("nbd info: got %+v, want one read-only export of 64 MiB", info)
			}
			s.stop(t)
			s.stop(t)
			if r := s.Wait(); r.Stderr != "" {
				t.Errorf("stderr of the server: got %q, want nothing", r.Stderr)
			}
		})
	}
}

func TestServeKeepsItsSocketToTheUserAndCleansUp(t *testing.T) {
	chain := newChain(t)
	t.Setenv("XDG_RUNTIME_DIR", shortDir(t))
	pidFile := filepath.Join(t.TempDir(), "pid")
	s := serve(t, "--pid-file", pidFile, chain[2])
	_, socket, _ := strings.Cut(s.uri, "socket=")
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: got %v, %v, want mode 0600", st, err)
	}
	if !strings.HasPrefix(socket, os.Getenv("XDG_RUNTIME_DIR")) {
		t.Errorf("socket: got %s, want it in the runtime folder", socket)
	}
	if b, err := os.ReadFile(pidFile); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(s.PID) {
		t.Errorf("pid file: got %q, %v, want %d", b, err, s.PID)
	}
	s.stop(t)
	for _, path := range []string{socket, filepath.Dir(socket), pidFile} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("after the end: got %v for %s, want it gone", err, path)
		}
	}
}

func TestServeReplacesTheSocketOfADeadServer(t *testing.T) {
	chain := newChain(t)
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	first := serve(t, "--socket", socket, chain[2])
	if r := call(t, "nbd", "serve", "--socket", socket, chain[2]); r.Code != 4 {
		t.Errorf("a socket in use: got %+v, want exit code 4", r)
	}
	first.kill()
	serve(t, "--socket", socket, chain[2])
	clitest.Tool(t, "nbdinfo", "--size", "nbd+unix:///?socket="+socket)
}

func TestServeTellsWhatChangedSince(t *testing.T) {
	requires.Tool(t, "nbdinfo")
	chain := newChain(t)
	s := serve(t, "--since", chain[0], "--since", chain[1], chain[2])
	for name, want := range map[string]string{"full": "[524288 1572864] [2097152 2293760] [8388608 8454144]", "incr-1": "[2097152 2293760]"} {
		var list []struct {
			Offset, Length int64
			Type           int
		}
		out := clitest.Tool(t, "nbdinfo", "--json", "--map=qemu:dirty-bitmap:since-"+name, s.uri)
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range list {
			if e.Type == 1 {
				got = append(got, fmt.Sprint([]int64{e.Offset, e.Offset + e.Length}))
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("changed since %s: got %v, want %s", name, got, want)
		}
	}
}

func TestServeWritable(t *testing.T) {
	requires.Tool(t, "nbdcopy")
	content := filepath.Join(t.TempDir(), "content")
	clitest.Tool(t, "qemu-img", "create", "-q", "-f", "raw", content, "64M")
	clitest.Tool(t, "qemu-io", "-f", "raw", "-c", "write -P 5 3M 9M", "-c", "write -P 6 40000000 12345", content)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	clitest.Tool(t, "qemu-img", "create", "-q", "-f", "raw", raw, "64M")
	for _, c := range []struct {
		name string
		args func(chain []string) []string
	}{
		{"an overlay", func(chain []string) []string { return []string{"--writable", chain[2]} }},
		{"an image with nothing below", func(chain []string) []string { return []string{"--writable", chain[0]} }},
		{"a raw image", func([]string) []string { return []string{"--writable", "--format", "raw", raw} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := c.args(newChain(t))
			path := args[len(args)-1]
			s := serve(t, args...)
			clitest.Tool(t, "nbdcopy", "--flush", content, s.uri)
			r := clitest.Run(t, "qemu-io", "-r", "-c", "read 0 512", path)
			if path != raw && (r.Code == 0 || !strings.Contains(r.Stderr, "lock")) { // QEMU lets raw images be read meanwhile
				t.Errorf("qemu-io beside it: got %+v, want it refused", r)
			}
			if r := call(t, append([]string{"nbd", "serve"}, args...)...); r.Code != 4 {
				t.Errorf("a second writer: got %+v, want exit code 4", r)
			}
			s.stop(t)
			if r := call(t, "image", "compare", path, content); r.Code != 0 {
				t.Errorf("after the copy: got %+v, want equal", r)
			}
			clitest.Tool(t, "qemu-img", "compare", path, content)
			if path != raw {
				clitest.Tool(t, "qemu-img", "check", "-q", path)
			}
		})
	}
}

func TestServeWritableRefusesWhatQEMUHasOpen(t *testing.T) {
	requires.Tool(t, "qemu-nbd")
	chain := newChain(t)
	socket := filepath.Join(t.TempDir(), "qemu.sock")
	qemu := exec.Command("qemu-nbd", "-t", "-r", "-f", "qcow2", "-k", socket, chain[2])
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = qemu.Process.Kill(), qemu.Wait() })
	requires.Until(t, "qemu-nbd listens", func() bool { _, err := os.Stat(socket); return err == nil })
	if r := call(t, "nbd", "serve", "--writable", chain[2]); r.Code != 4 || !strings.Contains(r.Stderr, "open in another program") {
		t.Errorf("got %+v, want exit code 4", r)
	}
	serve(t, chain[2]) // to read is fine
}

func TestServeAsksForCertificates(t *testing.T) {
	requires.Tool(t, "nbdinfo")
	chain := newChain(t)
	dir := tlstest.Certificates(t)
	s := serve(t, "--listen", "127.0.0.1:0", "--tls-dir", dir, chain[2])
	if !strings.HasPrefix(s.uri, "nbds://") {
		t.Fatalf("URI: got %s, want nbds", s.uri)
	}
	if r := call(t, "nbd", "info", "--tls-dir", dir, s.uri); r.Code != 0 || !strings.Contains(r.Stdout, ", encrypted") {
		t.Errorf("with a certificate: got %+v, want the export", r)
	}
	clitest.Tool(t, "nbdinfo", s.uri+"?tls-certificates="+dir)
	without := t.TempDir()
	b, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(without, "ca-cert.pem"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"without a certificate": {"--tls-dir", without, s.uri},
		"without TLS":           {strings.Replace(s.uri, "nbds:", "nbd:", 1)},
	} {
		if r := call(t, append([]string{"nbd", "info"}, args...)...); r.Code != 6 {
			t.Errorf("%s: got %+v, want exit code 6", name, r)
		}
	}
}

func TestSignals(t *testing.T) {
	chain := newChain(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		s := serve(t, chain[2])
		if r := s.Signal(sig); r.Code != 0 {
			t.Errorf("a server, at %v: got %+v, want it to end well", sig, r)
		}
	}
}

func TestAKilledServerLeavesNoFolderForLong(t *testing.T) {
	chain := newChain(t)
	dir := shortDir(t)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	socket := func(s *server) string {
		_, path, _ := strings.Cut(s.uri, "socket=")
		return path
	}
	live, dead := serve(t, chain[0]), serve(t, chain[1])
	dead.kill()
	next := serve(t, chain[2])
	for _, s := range []*server{live, next} {
		if _, err := os.Stat(socket(s)); err != nil || !strings.HasPrefix(socket(s), dir) {
			t.Errorf("socket of a server that runs: %s: %v", s.uri, err)
		}
	}
	if _, err := os.Stat(filepath.Dir(socket(dead))); err == nil {
		t.Errorf("folder of the server that was killed: %s is still there", filepath.Dir(socket(dead)))
	}
	live.stop(t)
	next.stop(t)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}
