package nbdclient_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/nbdclient"
	"github.com/sendense/sendense/internal/requires"
)

// serve starts a server, with SOCK in args for its socket, and returns its URI
// and its process.
func serve(t testing.TB, name string, args ...string) (string, *os.Process) {
	t.Helper()
	requires.Tool(t, name)
	sock := filepath.Join(t.TempDir(), "s")
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "SOCK", sock)
	}
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 1000 {
		if c, err := net.Dial("unix", sock); err == nil {
			c.Close()
			return "nbd+unix:///?socket=" + sock, cmd.Process
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not listen: %s", name, stderr.String())
	return "", nil
}

func nbdkit(t testing.TB, args ...string) string {
	t.Helper()
	uri, _ := serve(t, "nbdkit", append([]string{"-f", "-U", "SOCK"}, args...)...)
	return uri
}

func open(t testing.TB, uri string, o nbdclient.Options) *nbdclient.Device {
	t.Helper()
	d, err := nbdclient.Open(context.Background(), uri, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func signal(t *testing.T, p *os.Process, s os.Signal) {
	t.Helper()
	if err := p.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func TestManyGoroutinesShareSeveralConnections(t *testing.T) {
	const size, piece = 32 << 20, 192 << 10
	d := open(t, nbdkit(t, "memory", "32M"), nbdclient.Options{Depth: 4})
	if d.Conns() != 4 {
		t.Fatalf("connections: got %d, want 4", d.Conns())
	}
	ctx := context.Background()
	want := randomBytes(1, size)
	var wg sync.WaitGroup
	for off := 0; off < size; off += piece {
		wg.Go(func() {
			b := want[off:min(off+piece, size)]
			if err := d.WriteAt(ctx, b, int64(off)); err != nil {
				t.Error(err)
			}
			got := make([]byte, len(b))
			if err := d.ReadAt(ctx, got, int64(off)); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(got, b) {
				t.Errorf("bytes at %d differ from what was written", off)
			}
		})
	}
	wg.Wait()
	if err := d.Flush(ctx); err != nil {
		t.Error(err)
	}
	got := make([]byte, size)
	if err := d.ReadAt(ctx, got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("whole device differs from what was written")
	}
}

func TestOneConnectionWhereTheServerPromisesNoMore(t *testing.T) {
	uri := nbdkit(t, "--filter=multi-conn", "memory", "1M", "multi-conn-mode=disable")
	if d := open(t, uri, nbdclient.Options{}); d.Conns() != 1 {
		t.Errorf("connections: got %d, want 1", d.Conns())
	}
}

func TestRequestsAreSplitToTheServersMaximum(t *testing.T) {
	uri := nbdkit(t, "--filter=blocksize-policy", "memory", "8M",
		"blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=65536", "blocksize-error-policy=error")
	d := open(t, uri, nbdclient.Options{})
	ctx := context.Background()
	want := randomBytes(2, 1<<20)
	if err := d.WriteAt(ctx, want, 512); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1<<20-3)
	if err := d.ReadAt(ctx, got, 513); err != nil {
		t.Fatalf("unaligned read: %v", err)
	}
	if !bytes.Equal(got, want[1:len(want)-2]) {
		t.Error("unaligned read differs from what was written")
	}
	if d.MinBlock() != 512 {
		t.Errorf("minimum block: got %d, want 512", d.MinBlock())
	}
	if err := d.WriteAt(ctx, want[:100], 512); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("unaligned write: got %v, want EINVAL", err)
	}
	if err := d.WriteZeroes(ctx, 1024, 2048, block.MayTrim); err != nil {
		t.Error(err)
	}
	if err := d.Trim(ctx, 100, 700); err != nil {
		t.Error(err)
	}
}

func TestMapTellsDataFromHoles(t *testing.T) {
	d := open(t, nbdkit(t, "data", "@65536 1*65536 @1048575 0"), nbdclient.Options{})
	var got []block.Extent
	err := block.MapAll(context.Background(), d, 0, d.Size(), func(e block.Extent) error {
		got = append(got, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []block.Extent{{Off: 0, Len: 65536, Kind: block.Hole}, {Off: 65536, Len: 65536, Kind: block.Data}}
	if len(got) < 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("map: got %v, want it to begin with %v", got, want)
	}
}

func TestWithoutAContextEverythingIsData(t *testing.T) {
	d := open(t, nbdkit(t, "--no-sr", "memory", "1M"), nbdclient.Options{Contexts: []string{"qemu:dirty-bitmap:b"}})
	exts, err := d.Map(context.Background(), 4096, 8192)
	if err != nil || len(exts) != 1 || exts[0] != (block.Extent{Off: 4096, Len: 8192, Kind: block.Data}) {
		t.Errorf("map: got %v, %v", exts, err)
	}
	if _, err := d.Changed(context.Background(), "b", 0, 4096); !errors.Is(err, nbdclient.ErrNoContext) {
		t.Errorf("changed: got %v, want ErrNoContext", err)
	}
}

func TestChangedReadsADirtyBitmap(t *testing.T) {
	f := filepath.Join(t.TempDir(), "a.qcow2")
	requires.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", f, "64M")
	requires.Run(t, "qemu-img", "bitmap", "--add", "-g", "65536", f, "b0")
	requires.Run(t, "qemu-io", "-c", "write 1M 64k", "-c", "write 1216k 100k", "-c", "write 63M 1M", f)
	requires.Run(t, "qemu-img", "bitmap", "--disable", f, "b0")
	uri, _ := serve(t, "qemu-nbd", "-k", "SOCK", "-r", "-e", "8", "-t", "-f", "qcow2", "-B", "b0", f)
	d := open(t, uri, nbdclient.Options{Contexts: []string{"qemu:dirty-bitmap:b0"}})
	if !d.HasContext("qemu:dirty-bitmap:b0") || d.Writable() {
		t.Errorf("context %v, writable %v", d.HasContext("qemu:dirty-bitmap:b0"), d.Writable())
	}
	want := []block.Range{{Off: 1 << 20, Len: 64 << 10}, {Off: 1216 << 10, Len: 128 << 10}, {Off: 63 << 20, Len: 1 << 20}}
	for _, name := range []string{"b0", "qemu:dirty-bitmap:b0"} {
		got, err := d.Changed(context.Background(), name, 0, d.Size())
		if err != nil || len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
			t.Errorf("changed since %s: got %v, %v, want %v", name, got, err, want)
		}
	}
	got, err := d.Changed(context.Background(), "b0", 1<<20+100, 200)
	if err != nil || len(got) != 1 || got[0] != (block.Range{Off: 1<<20 + 100, Len: 200}) {
		t.Errorf("part: got %v, %v", got, err)
	}
	if err := d.WriteAt(context.Background(), make([]byte, 512), 0); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("write: got %v, want ErrReadOnly", err)
	}
}

func TestZeroesAndTrim(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		fast bool
	}{
		{"as commands", []string{"memory", "4M"}, true},
		{"written out where the server has no such command", []string{"--filter=nozero", "memory", "4M"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, nbdkit(t, c.args...), nbdclient.Options{})
			ctx := context.Background()
			if err := d.WriteAt(ctx, randomBytes(3, 4<<20), 0); err != nil {
				t.Fatal(err)
			}
			if err := d.WriteZeroes(ctx, 1, 3<<20, 0); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 3<<20)
			if err := d.ReadAt(ctx, got, 1); err != nil || !bytes.Equal(got, make([]byte, 3<<20)) {
				t.Errorf("range does not read as zeroes: %v", err)
			}
			if err := d.WriteZeroes(ctx, 0, 4096, block.FastOnly); (err == nil) != c.fast || err != nil && !errors.Is(err, block.ErrNotFast) {
				t.Errorf("fast only: got %v", err)
			}
			if err := d.Trim(ctx, 0, 4<<20); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestErrorsOfTheServerReachTheCaller(t *testing.T) {
	d := open(t, nbdkit(t, "--filter=error", "memory", "8M", "error-pread=EIO", "error-pread-rate=30%",
		"error-pwrite=ENOSPC", "error-pwrite-rate=100%"), nbdclient.Options{})
	ctx := context.Background()
	if err := d.WriteAt(ctx, make([]byte, 4096), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write: got %v, want ENOSPC", err)
	}
	// A failed read among good ones must not pass for a good one (CVE-2022-0485).
	var failed int
	for i := range 64 {
		b := bytes.Repeat([]byte{0xaa}, 4096)
		switch err := d.ReadAt(ctx, b, int64(i)*4096); {
		case errors.Is(err, syscall.EIO):
			failed++
		case err != nil:
			t.Fatal(err)
		case !bytes.Equal(b, make([]byte, 4096)):
			t.Fatal("a read that failed passed for a good one")
		}
	}
	if failed == 0 {
		t.Error("no read failed")
	}
	if err := d.ReadAt(ctx, make([]byte, 2), d.Size()-1); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("beyond the end: got %v, want ErrOutOfRange", err)
	}
}

func TestALostServerEndsEveryCall(t *testing.T) {
	uri, server := serve(t, "nbdkit", "-f", "-U", "SOCK", "--filter=delay", "memory", "1M", "delay-read=60")
	d := open(t, uri, nbdclient.Options{})
	errs := make(chan error)
	for range 100 {
		go func() { errs <- d.ReadAt(context.Background(), make([]byte, 4096), 0) }()
	}
	time.Sleep(50 * time.Millisecond) // some get in flight; right either way
	signal(t, server, os.Kill)
	for range 100 {
		if err := <-errs; !errors.Is(err, nbdclient.ErrLost) {
			t.Fatalf("read: got %v, want ErrLost", err)
		}
	}
	if err := d.WriteAt(context.Background(), make([]byte, 4096), 0); !errors.Is(err, nbdclient.ErrLost) {
		t.Errorf("later call: got %v, want ErrLost", err)
	}
}

func TestASilentServerTimesOut(t *testing.T) {
	uri, server := serve(t, "nbdkit", "-f", "-U", "SOCK", "memory", "1M")
	d := open(t, uri, nbdclient.Options{Timeout: 100 * time.Millisecond})
	signal(t, server, syscall.SIGSTOP)
	var err error
	for i := 0; err == nil && i < 10000; i++ { // the signal may take its time
		err = d.ReadAt(context.Background(), make([]byte, 4096), 0)
	}
	if !errors.Is(err, nbdclient.ErrTimeout) {
		t.Errorf("read: got %v, want ErrTimeout", err)
	}
	if _, err := nbdclient.Open(context.Background(), uri, nbdclient.Options{ConnectTimeout: 100 * time.Millisecond}); !errors.Is(err, nbdclient.ErrTimeout) {
		t.Errorf("open: got %v, want ErrTimeout", err)
	}
}

func TestCancellation(t *testing.T) {
	t.Run("takes a waiting call out of the queue and waits for one in flight", func(t *testing.T) {
		d := open(t, nbdkit(t, "--filter=delay", "memory", "1M", "delay-read=200ms"), nbdclient.Options{Conns: 1, Depth: 1})
		first := make(chan error)
		go func() { first <- d.ReadAt(context.Background(), make([]byte, 512), 0) }()
		ctx, cancel := context.WithCancel(context.Background())
		errs := make(chan error)
		for range 10 {
			go func() { errs <- d.ReadAt(ctx, make([]byte, 512), 0) }()
		}
		time.Sleep(20 * time.Millisecond)
		cancel()
		cancelled := 0
		for range 10 {
			if err := <-errs; errors.Is(err, context.Canceled) {
				cancelled++
			} else if err != nil {
				t.Error(err)
			}
		}
		if cancelled < 9 {
			t.Errorf("cancelled: got %d, want 9 or 10", cancelled)
		}
		if err := <-first; err != nil {
			t.Errorf("the call that was not cancelled: got %v", err)
		}
		if err := d.ReadAt(context.Background(), make([]byte, 512), 0); err != nil {
			t.Errorf("the device after it: got %v", err)
		}
	})
	t.Run("gives up on a server that holds the memory too long", func(t *testing.T) {
		d := open(t, nbdkit(t, "--filter=delay", "memory", "1M", "delay-read=60"), nbdclient.Options{CancelGrace: 50 * time.Millisecond})
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if err := d.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read: got %v, want DeadlineExceeded", err)
		}
		if err := d.ReadAt(context.Background(), make([]byte, 512), 0); !errors.Is(err, nbdclient.ErrTimeout) {
			t.Errorf("later read: got %v, want ErrTimeout", err)
		}
	})
}

func TestCloseEndsCallsUnderWay(t *testing.T) {
	d := open(t, nbdkit(t, "--filter=delay", "memory", "1M", "delay-read=60"), nbdclient.Options{})
	errs := make(chan error)
	for range 20 {
		go func() { errs <- d.ReadAt(context.Background(), make([]byte, 512), 0) }()
	}
	time.Sleep(20 * time.Millisecond)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	for range 20 {
		if err := <-errs; !errors.Is(err, nbdclient.ErrClosed) {
			t.Errorf("read: got %v, want ErrClosed", err)
		}
	}
	if err := d.Close(); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	for _, uri := range []string{"nbd+unix:///?socket=/nonexistent", "nbd://127.0.0.1:1", "http://x", ""} {
		_, err := nbdclient.Open(context.Background(), uri, nbdclient.Options{})
		if err == nil || !strings.HasPrefix(err.Error(), "connect to "+uri+": ") {
			t.Errorf("open %q: got %v", uri, err)
		}
	}
	_, err := nbdclient.Open(context.Background(), nbdkit(t, "--filter=exportname", "memory", "1M",
		"exportname=a", "exportname-strict=true")+"", nbdclient.Options{})
	if err == nil {
		t.Error("export that is not there: got no error")
	}
}

func TestGetInfo(t *testing.T) {
	f := filepath.Join(t.TempDir(), "a.qcow2")
	requires.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", f, "3M")
	requires.Run(t, "qemu-img", "bitmap", "--add", f, "b0")
	requires.Run(t, "qemu-img", "bitmap", "--disable", f, "b0")
	uri, _ := serve(t, "qemu-nbd", "-k", "SOCK", "-r", "-e", "8", "-x", "disk", "-D", "a disk", "-t", "-f", "qcow2", "-B", "b0", f)
	info, err := nbdclient.GetInfo(context.Background(), uri, nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Exports) != 1 {
		t.Fatalf("exports: got %+v, want one", info.Exports)
	}
	e := info.Exports[0]
	if e.Name != "disk" || e.Description != "a disk" || e.Size != 3<<20 || !e.ReadOnly || !e.MultiConn || e.BlockSize.Maximum == 0 {
		t.Errorf("export: got %+v", e)
	}
	if got := strings.Join(e.Contexts, " "); got != "base:allocation qemu:dirty-bitmap:b0" {
		t.Errorf("contexts: got %q", got)
	}
	info, err = nbdclient.GetInfo(context.Background(), strings.Replace(uri, "///", "///other", 1), nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Exports) != 2 || info.Exports[0].Name != "other" || info.Exports[0].Error == "" {
		t.Errorf("with an export of another name: got %+v", info.Exports)
	}
}

func TestEncryptionWithAPreSharedKey(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys.psk")
	if err := os.WriteFile(keys, []byte("agent:"+strings.Repeat("0123456789abcdef", 4)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	uri := nbdkit(t, "--tls=require", "--tls-psk="+keys, "memory", "1M")
	tlsURI := strings.Replace(uri, "nbd+unix", "nbds+unix", 1)
	o := nbdclient.Options{TLS: nbdclient.TLS{Username: "agent", PSKFile: keys}}
	d := open(t, tlsURI, o)
	want := randomBytes(5, 300<<10)
	if err := d.WriteAt(context.Background(), want, 1000); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := d.ReadAt(context.Background(), got, 1000); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: %v, or other bytes than were written", err)
	}
	if info, err := nbdclient.GetInfo(context.Background(), tlsURI, o); err != nil || !info.TLS {
		t.Errorf("info: got %+v, %v, want it encrypted", info, err)
	}
	if _, err := nbdclient.Open(context.Background(), uri, nbdclient.Options{}); err == nil {
		t.Error("without encryption: got no error")
	}
}

func TestClosedDevicesLeaveNoDescriptorBehind(t *testing.T) {
	uri := nbdkit(t, "memory", "1M")
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	_ = open(t, uri, nbdclient.Options{}).Close() // what the runtime opens once
	before := count()
	for range 5 {
		d, err := nbdclient.Open(context.Background(), uri, nbdclient.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.ReadAt(context.Background(), make([]byte, 512), 0), d.Close()); err != nil {
			t.Error(err)
		}
		if _, err := nbdclient.Open(context.Background(), uri, nbdclient.Options{ConnectTimeout: time.Nanosecond}); err == nil {
			t.Error("open in no time: got no error")
		}
	}
	if after := count(); after > before {
		t.Errorf("descriptors: got %d, want %d", after, before)
	}
}
