package nbdserver_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/requires"
	"github.com/sendense/sendense/nbdserver"
)

func itoa(n int) string { return strconv.Itoa(n) }

// run runs a program and returns what it printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	// Python modules of the distribution belong to its own interpreter.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin:/usr/sbin:/sbin:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// uri returns the URI of an export for libnbd and QEMU.
func (s *served) uri(name string) string {
	if s.addr.Network() == "tcp" {
		return "nbd://" + s.addr.String() + "/" + name
	}
	return "nbd+unix:///" + name + "?socket=" + s.addr.String()
}

func TestNbdinfo(t *testing.T) {
	requires.Tool(t, "nbdinfo")
	d := &changing{block.Wrapped{Inner: &blocktest.Filed{Locations: []block.Location{
		{Len: 256 << 10, Kind: block.InNothing}, {Len: 512 << 10, Kind: block.InFile, File: tempFile(t, "f", make([]byte, 1<<20))},
		{Len: 256 << 10, Kind: block.InNothing}}}},
		map[string][]block.Range{"mon": {{Off: 64 << 10, Len: 64 << 10}}}}
	s := serve(t, nbdserver.Options{}, nbdserver.Export{Name: "disk", Description: "root of vm1", Device: d, Since: []string{"mon"}},
		export("other", blocktest.NewMemory(1000)))
	var info struct {
		Exports []struct {
			Name        string `json:"export-name"`
			Description string
			Size        int64    `json:"export-size"`
			ReadOnly    bool     `json:"is_read_only"`
			MultiConn   bool     `json:"can_multi_conn"`
			DF          bool     `json:"can_df"`
			Contexts    []string `json:"contexts"`
		}
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", "--list", s.uri(""))), &info); err != nil {
		t.Fatal(err)
	}
	if len(info.Exports) != 2 {
		t.Fatalf("exports: got %+v", info.Exports)
	}
	if e := info.Exports[0]; e.Name != "disk" || e.Description != "root of vm1" || e.Size != 1<<20 || !e.ReadOnly || !e.MultiConn || !e.DF ||
		!reflect.DeepEqual(e.Contexts, []string{"base:allocation", "qemu:dirty-bitmap:since-mon"}) {
		t.Errorf("export: got %+v", e)
	}
	for _, tt := range []struct{ context, want string }{
		{"base:allocation", "0 262144 3|262144 524288 0|786432 262144 3|"},
		{"qemu:dirty-bitmap:since-mon", "0 65536 0|65536 65536 1|131072 917504 0|"},
	} {
		var exts []struct{ Offset, Length, Type int64 }
		if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", "--map="+tt.context, s.uri("disk"))), &exts); err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for _, e := range exts {
			fmt.Fprintf(&got, "%d %d %d|", e.Offset, e.Length, e.Type)
		}
		if got.String() != tt.want {
			t.Errorf("map of %s: got %s, want %s", tt.context, got.String(), tt.want)
		}
	}
}

func TestNbdcopyBothWays(t *testing.T) {
	requires.Tool(t, "nbdcopy")
	src, content := newFiled(t)
	mem, memContent := memory(t, 3<<20+12345)
	size := int64(len(content))
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			raw := newRawFile(t, make([]byte, size))
			dst := blocktest.NewMemory(size)
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "s")
			}
			s := serveOn(t, nbdserver.Options{}, network, address, export("src", src), export("mem", mem), export("dst", dst), export("raw", raw))
			run(t, "nbdcopy", "--flush", s.uri("src"), s.uri("dst"))
			run(t, "nbdcopy", "--flush", "--allocated", s.uri("dst"), s.uri("raw"))
			for name, d := range map[string]block.Device{"memory": dst, "file": raw} {
				got := make([]byte, size)
				if err := d.ReadAt(t.Context(), got, 0); err != nil {
					t.Fatal(err)
				}
				equal(t, name, got, content)
			}
			for _, args := range [][]string{nil, {"--connections=1", "--requests=1"}, {"--synchronous"}, {"--request-size=32768"}} {
				path := filepath.Join(t.TempDir(), "copy")
				run(t, "nbdcopy", append(args, s.uri("mem"), path)...)
				got, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				equal(t, fmt.Sprint("nbdcopy ", args), got, memContent)
			}
		})
	}
}

func TestQEMU(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	d, content := newFiled(t)
	size := int64(len(content)) &^ 511
	path := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	raw := newRawFile(t, make([]byte, size))
	s := serve(t, nbdserver.Options{}, export("disk", d), export("raw", raw))
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.uri("disk"), path)
	qcow := filepath.Join(t.TempDir(), "qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", s.uri("disk"), qcow)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", path, qcow)
	run(t, "qemu-io", "-f", "raw", "-t", "writeback",
		"-c", "write -P 7 1M 3M", "-c", "aio_write -P 8 100k 64k", "-c", "aio_write -P 9 4M 1M", "-c", "aio_flush",
		"-c", "write -f -P 5 5000 3000", "-c", "write -z 2M 64k", "-c", "write -z -u 3M 100k", "-c", "discard 512k 128k", "-c", "flush",
		"-c", "read -P 7 1M 1M", "-c", "read -P 8 100k 64k", "-c", "read -P 9 4M 1M", "-c", "read -P 5 5000 3000",
		"-c", "read -P 0 2M 64k", "-c", "read -P 0 3M 100k", s.uri("raw"))
	var m []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "-f", "raw", s.uri("disk"))), &m); err != nil {
		t.Fatal(err)
	}
	for _, e := range m {
		if e.Zero && strings.Trim(string(content[e.Start:min(e.Start+e.Length, int64(len(content)))]), "\x00") != "" {
			t.Errorf("extent %+v: called zero", e)
		}
	}
	if len(m) < 10 {
		t.Errorf("map: got %d extents", len(m))
	}
}

func TestNbdsh(t *testing.T) {
	requires.Tool(t, "nbdsh")
	mem := blocktest.NewMemory(1 << 20)
	s := serve(t, nbdserver.Options{}, export("", mem), nbdserver.Export{Name: "ro", Device: mem, ReadOnly: true})
	script := `
import errno
h.connect_uri("` + s.uri("") + `")
h.pwrite(b"hello" * 100, 1000, nbd.CMD_FLAG_FUA)
assert h.pread(500, 1000) == b"hello" * 100
assert h.pread_structured(500, 1000, lambda *a: 0, nbd.CMD_FLAG_DF) == b"hello" * 100
h.zero(500, 1000, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(500, 1000) == bytes(500)
h.trim(4096, 0); h.cache(4096, 0); h.flush()
h.set_strict_mode(0)
for f, want in ((lambda: h.pread(10, 1 << 20), errno.EINVAL), (lambda: h.pwrite(b"x", 1 << 20), errno.ENOSPC)):
    try:
        f()
        assert False
    except nbd.Error as e:
        assert e.errnum == want, e
cookies = [h.aio_pread(nbd.Buffer(4096), i * 4096) for i in range(200)]
while h.aio_in_flight() > 0: h.poll(-1)
for c in cookies: assert h.aio_command_completed(c)
h.shutdown()
`
	run(t, "nbdsh", "-c", script)
}

func TestNbdkitReexports(t *testing.T) {
	requires.Tool(t, "nbdkit", "nbdcopy")
	if exec.Command("nbdkit", "nbd", "--version").Run() != nil {
		requires.Missing(t, "nbdkit's nbd plugin")
	}
	d, content := newFiled(t)
	s := serve(t, nbdserver.Options{}, export("disk", d))
	path := filepath.Join(t.TempDir(), "copy")
	run(t, "nbdkit", "-U", "-", "nbd", "uri="+s.uri("disk"), "--run", "nbdcopy $uri "+path)
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "copy through nbdkit", got, content)
}

func TestFioVerifies(t *testing.T) {
	requires.Tool(t, "fio")
	raw := newRawFile(t, make([]byte, 16<<20))
	s := serve(t, nbdserver.Options{}, export("", raw))
	out := run(t, "fio", "--name=v", "--ioengine=nbd", "--uri="+s.uri(""), "--rw=randrw", "--bsrange=512-256k", "--bs_unaligned=0",
		"--blockalign=512", "--size=16m", "--iodepth=32", "--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1", "--randseed=1", "--fsync=64", "--fdatasync=0")
	if !strings.Contains(out, "err= 0") {
		t.Errorf("fio: got %s", out)
	}
}

func TestKernelClient(t *testing.T) {
	requires.Tool(t, "nbd-client")
	if _, err := os.Stat("/dev/nbd0"); err != nil {
		t.Skip("requires /dev/nbd0 (the nbd module)")
	}
	requires.Root(t)
	d, content := newFiled(t)
	s := serve(t, nbdserver.Options{}, export("disk", d))
	run(t, "nbd-client", "-unix", s.addr.String(), "-N", "disk", "/dev/nbd0", "-readonly")
	defer run(t, "nbd-client", "-d", "/dev/nbd0")
	requires.Until(t, "device", func() bool {
		b, err := os.ReadFile("/sys/block/nbd0/size")
		return err == nil && strings.TrimSpace(string(b)) != "0"
	})
	got, err := os.ReadFile("/dev/nbd0")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "kernel client", got, content[:len(got)])
}

func TestReadsOverTCP(t *testing.T) {
	d, content := newFiled(t)
	s := serveOn(t, nbdserver.Options{}, "tcp", "127.0.0.1:0", export("disk", d))
	for _, st := range styles {
		c := attach(t, s.addr, "disk", st.style)
		equal(t, st.name, c.do(cmdRead, 0, 100, 6<<20, nil).data, content[100:100+6<<20])
	}
}
