package main_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
)

func TestBadInputGetsASentenceAHintAndAnExitCode(t *testing.T) {
	chain := newChain(t)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	image := chain[2]
	raw, notes := file("disk.raw", strings.Repeat("x", 4096)), file("notes", "hello")
	cut := file("cut.qcow2", "QFI\xfb\x00\x00\x00\x03")
	orphan := filepath.Join(dir, "orphan.qcow2")
	clitest.Tool(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "gone.qcow2", orphan, "1M")
	luks := filepath.Join(dir, "luks.qcow2")
	clitest.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", luks, "1M")
	setByte(t, luks, 35, 2) // crypt_method of the header
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	busy := listener.Addr().String()

	for _, c := range []struct {
		name string
		args []string
		code int
		want string // in the sentence
	}{
		{"a command that does not exist", []string{"vmz"}, 2, "no command"},
		{"a command of a group that does not exist", []string{"image", "inf"}, 2, "no command"},
		{"a flag that does not exist", []string{"image", "info", "--bogus", image}, 2, "--bogus"},
		{"an argument too few", []string{"image", "compare", image}, 2, "2 arg"},
		{"an argument too many", []string{"image", "compare", image, image, image}, 2, "2 arg"},
		{"no file at all", []string{"image", "info"}, 2, "arg"},
		{"a file that is not there", []string{"image", "info", filepath.Join(dir, "nothing")}, 3, "nothing"},
		{"a folder in place of a file", []string{"image", "info", dir}, 2, dir},
		{"a raw image to check", []string{"image", "check", raw}, 2, "QCOW2"},
		{"a file that was cut off", []string{"image", "info", cut}, 5, "cut.qcow2"},
		{"a backing file that is missing", []string{"image", "map", orphan}, 3, "gone.qcow2"},
		{"an encrypted image", []string{"nbd", "serve", luks}, 2, "LUKS"},
		{"an unknown format", []string{"nbd", "serve", "--format", "vmdk", image}, 2, "vmdk"},
		{"compare with a file that is not there", []string{"image", "compare", image, filepath.Join(dir, "nothing")}, 3, "nothing"},
		{"serve a file that is not there", []string{"nbd", "serve", filepath.Join(dir, "nothing")}, 3, "nothing"},
		{"serve writable what is not there", []string{"nbd", "serve", "--writable", filepath.Join(dir, "nothing")}, 3, "nothing"},
		{"both read-only and writable", []string{"nbd", "serve", "--writable", "--read-only", image}, 2, "writable"},
		{"both socket and address", []string{"nbd", "serve", "--socket", "/x", "--listen", "127.0.0.1", image}, 2, "socket"},
		{"changes of a disk being written", []string{"nbd", "serve", "--writable", "--since", chain[0], image}, 2, "written"},
		{"a raw image to write without its format", []string{"nbd", "serve", "--writable", raw}, 2, "format"},
		{"an address for all without certificates", []string{"nbd", "serve", "--listen", "0.0.0.0:0", image}, 2, "unencrypted"},
		{"an address that is none", []string{"nbd", "serve", "--listen", "localhost:no:no", image}, 2, "address"},
		{"an address of another machine", []string{"nbd", "serve", "--tls-dir", dir, "--listen", "192.0.2.1:0", image}, 3, "certificates"},
		{"an address in use", []string{"nbd", "serve", "--listen", busy, image}, 4, busy},
		{"a file where the socket should be", []string{"nbd", "serve", "--socket", notes, image}, 4, notes},
		{"a socket in a folder that is missing", []string{"nbd", "serve", "--socket", filepath.Join(dir, "a", "b"), image}, 3, "folder"},
		{"a socket with too long a path", []string{"nbd", "serve", "--socket", "/" + strings.Repeat("x", 200), image}, 2, "too long"},
		{"changes since a file of another chain", []string{"nbd", "serve", "--since", raw, image}, 3, "disk.raw"},
		{"changes since a file that is not there", []string{"nbd", "serve", "--since", filepath.Join(dir, "nothing"), image}, 3, "nothing"},
		{"a folder without certificates", []string{"nbd", "serve", "--tls-dir", dir, image}, 3, "certificates"},
		{"no URI", []string{"nbd", "info", "foo"}, 2, "foo"},
		{"a server that is not there", []string{"nbd", "info", "nbd+unix:///?socket=" + filepath.Join(dir, "no.sock")}, 6, "no.sock"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := call(t, c.args...)
			lines := strings.Split(strings.TrimSuffix(r.Stderr, "\n"), "\n")
			if r.Code != c.code || r.Stdout != "" || len(lines) != 2 {
				t.Fatalf("got exit code %d, stdout %q, stderr %q, want %d and two lines of stderr", r.Code, r.Stdout, r.Stderr, c.code)
			}
			if !strings.HasPrefix(lines[0], "sendense-control: ") || !strings.Contains(lines[0], c.want) || !strings.HasSuffix(lines[0], ".") {
				t.Errorf("sentence: got %q, want one with %q", lines[0], c.want)
			}
			if !strings.HasPrefix(lines[1], "hint: ") || len(lines[1]) < 15 {
				t.Errorf("hint: got %q, want one", lines[1])
			}
			j := call(t, append([]string{"--json"}, c.args...)...)
			var e struct {
				Error struct{ Code, Message, Hint string }
			}
			if err := json.Unmarshal([]byte(j.Stderr), &e); err != nil || j.Code != c.code || e.Error.Code == "" || e.Error.Message == "" || e.Error.Hint == "" {
				t.Errorf("with --json: got %+v, want an error with code, message and hint", j)
			}
		})
	}
}

func TestFullOutputIsAnError(t *testing.T) {
	chain := newChain(t)
	for _, args := range [][]string{{"image", "info"}, {"image", "info", "--json"}, {"image", "map"}} {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer full.Close()
		r := callTo(t, full, append(args, chain[2])...)
		if r.Code != 8 || !strings.Contains(r.Stderr, "no space") {
			t.Errorf("%q: got %+v, want exit code 8", args, r)
		}
	}
}

// setByte changes a byte of a file.
func setByte(t testing.TB, path string, off int64, b byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{b}, off); err != nil {
		t.Fatal(err)
	}
}

func TestBadInputOfServiceCommandsGetsASentenceAHintAndAnExitCode(t *testing.T) {
	bothWays(t, func(t *testing.T, daemon bool) {
		s, flags, _ := site(t, daemon)
		file := s.Path("notes")
		if err := os.WriteFile(file, []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
		busy, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer busy.Close()
		for _, c := range []struct {
			name, line string
			exit       int
			code       string
			want       string // in the sentence
		}{
			{"a command that does not exist", "vmz", 2, "invalid", "no command"},
			{"a flag that does not exist", "vms --fast", 2, "invalid", "--fast"},
			{"an argument too few", "points", 2, "invalid", "missing"},
			{"an argument too many", "vms web1", 2, "invalid", "web1"},
			{"a VM that is not there", "points web9", 3, "not_found", "web9"},
			{"a point that is not there", "info web1 20200101-000000", 3, "not_found", "20200101-000000"},
			{"a point that is none", "info web1 yesterday", 2, "invalid", "yesterday"},
			{"a point before the first", "info web1 latest~9", 3, "not_found", "latest~9"},
			{"a disk that is not there", "chain web1 --disk 7", 3, "not_found", "disk 7"},
			{"verify of a VM that is not there", "verify web9", 3, "not_found", "web9"},
			{"verify of a point without its VM", "verify --point latest", 2, "invalid", "VM"},
			{"delete of a point that is not there", "delete web1 20200101-000000", 3, "not_found", "20200101-000000"},
			{"a job that is not there", "jobs backup-x", 3, "not_found", "backup-x"},
			{"cancel of a job that is not there", "cancel backup-x", 3, "not_found", "backup-x"},
			{"unexport of what is not there", "unexport export-x", 3, "not_found", "export-x"},
			{"export of a VM that is not there", "export web9 latest", 3, "not_found", "web9"},
			{"export of a disk that is not there", "export web1 latest --disk 7", 3, "not_found", "disk 7"},
			{"export on a file", "export web1 latest --socket " + file, 4, "busy", file},
			{"export in a folder that is missing", "export web1 latest --socket /nonexistent/a.sock", 3, "not_found", "/nonexistent"},
			{"export on a socket with too long a path", "export web1 latest --socket /" + strings.Repeat("x", 120), 2, "invalid", "too long"},
			{"export to everybody without certificates", "export web1 latest --listen 0.0.0.0:0", 2, "invalid", "unencrypted"},
			{"export on an address that is none", "export web1 latest --listen a:b:c", 2, "invalid", "a:b:c"},
			{"export on a port in use", "export web1 latest --listen " + busy.Addr().String(), 4, "busy", busy.Addr().String()},
			{"export with certificates that are not there", "export web1 latest --listen 127.0.0.1:0 --tls-dir /nonexistent", 3, "not_found", "/nonexistent"},
			{"both socket and address", "export web1 latest --socket /x --listen 127.0.0.1:0", 2, "invalid", "socket"},
			{"bench with nothing", "bench --size 0", 2, "invalid", "0 MiB"},
		} {
			t.Run(c.name, func(t *testing.T) {
				clitest.Refused(t, s.Control(flags, c.line), c.exit, c.want)
				clitest.RefusedJSON(t, s.Control(flags, c.line+" --json"), c.exit, c.code)
			})
		}
		if exports := clitest.Decode[[]any](t, s.Control(flags, "exports --json")); len(exports) != 0 {
			t.Errorf("exports: got %v, want none of those refused", exports)
		}
		if daemon {
			return
		}
		clitest.Refused(t, s.Control(flags, "export web1 latest --persist"), 2, "control plane")
		for _, command := range []string{"vms", "points x", "chain x", "info x latest", "verify", "jobs", "export x latest"} {
			gone := []string{"--repository", s.Path("gone")}
			clitest.Refused(t, s.Control(gone, command), 3, "no repository", s.Path("gone"))
		}
		clitest.Refused(t, s.Control([]string{"--repository", file}, "vms"), 2, file)
		clitest.Refused(t, s.Control(s.Via(), "vms"), 6, "control.sock")
		clitest.Refused(t, s.Control([]string{"--control", "tcp:1"}, "vms"), 2, "tcp:1")
	})
}
