package libnbd_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"libguestfs.org/libnbd"
)

// serve starts a server that listens on the socket named SOCK in args and
// returns its URI.
func serve(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("requires program %s", name)
		}
		t.Skipf("requires program %s", name)
	}
	sock := filepath.Join(t.TempDir(), "s")
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "SOCK", sock)
	}
	cmd := exec.Command(path, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 500 {
		// That the file is there is too early: nobody may be listening yet.
		if c, err := net.Dial("unix", sock); err == nil {
			c.Close()
			return "nbd+unix:///?socket=" + sock
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s did not open its socket", name)
	return ""
}

func nbdkit(t *testing.T, args ...string) string {
	t.Helper()
	return serve(t, "nbdkit", append([]string{"-f", "-U", "SOCK"}, args...)...)
}

func create(t *testing.T) *libnbd.Libnbd {
	t.Helper()
	h, err := libnbd.Create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func connect(t *testing.T, uri string) *libnbd.Libnbd {
	t.Helper()
	h := create(t)
	ok(t, h.AddMetaContext("base:allocation"))
	ok(t, h.ConnectUri(uri))
	return h
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSynchronousCommands(t *testing.T) {
	h := connect(t, nbdkit(t, "memory", "1M"))
	size, err := h.GetSize()
	if err != nil || size != 1<<20 {
		t.Fatalf("size: got %d, %v, want %d", size, err, 1<<20)
	}
	data := bytes.Repeat([]byte("abc"), 1000)
	ok(t, h.Pwrite(data, 5000, nil))
	got := make([]byte, len(data))
	ok(t, h.Pread(got, 5000, nil))
	if !bytes.Equal(got, data) {
		t.Error("read differs from what was written")
	}
	ok(t, h.Zero(1000, 5000, &libnbd.ZeroOptargs{FlagsSet: true, Flags: libnbd.CMD_FLAG_NO_HOLE}))
	ok(t, h.Trim(4096, 65536, nil))
	ok(t, h.Flush(nil))
	ok(t, h.Pread(got, 5000, nil))
	if !bytes.Equal(got[:1000], make([]byte, 1000)) || !bytes.Equal(got[1000:], data[1000:]) {
		t.Error("zeroing changed other bytes than it should")
	}
	ok(t, h.Shutdown(nil))
}

func TestWhatTheServerCan(t *testing.T) {
	h := connect(t, nbdkit(t, "-r", "memory", "1M"))
	for _, q := range []struct {
		name string
		ask  func() (bool, error)
		want bool
	}{
		{"IsReadOnly", h.IsReadOnly, true},
		{"CanMultiConn", h.CanMultiConn, true},
		{"CanZero", h.CanZero, false},
		{"CanTrim", h.CanTrim, false},
		{"AioIsReady", h.AioIsReady, true},
		{"AioIsDead", h.AioIsDead, false},
		{"GetTlsNegotiated", h.GetTlsNegotiated, false},
		{"base:allocation", func() (bool, error) { return h.CanMetaContext("base:allocation") }, true},
		{"no such context", func() (bool, error) { return h.CanMetaContext("qemu:dirty-bitmap:b") }, false},
	} {
		if got, err := q.ask(); err != nil || got != q.want {
			t.Errorf("%s: got %v, %v, want %v", q.name, got, err, q.want)
		}
	}
	if p, err := h.GetProtocol(); err != nil || *p != "newstyle-fixed" {
		t.Errorf("protocol: got %v, %v, want newstyle-fixed", p, err)
	}
}

func TestBlockStatus(t *testing.T) {
	h := connect(t, nbdkit(t, "data", "@65536 1*65536 @1048575 0"))
	var got []uint32
	ok(t, h.BlockStatus(1<<20, 0, func(context string, offset uint64, entries []uint32, e *int) int {
		if context != "base:allocation" || offset != 0 || *e != 0 {
			t.Errorf("callback: got %s at %d, error %d", context, offset, *e)
		}
		got = entries
		return 0
	}, nil))
	const sparse = libnbd.STATE_HOLE | libnbd.STATE_ZERO
	want := []uint32{65536, sparse, 65536, 0}
	if len(got) < 4 || !slices.Equal(got[:4], want) {
		t.Errorf("extents: got %v, want %v", got, want)
	}
}

func TestErrorsOfCommandsNameTheirCause(t *testing.T) {
	h := connect(t, nbdkit(t, "--filter=error", "memory", "1M", "error-pread=ENOSPC", "error-pread-rate=100%"))
	err := h.Pread(make([]byte, 512), 0, nil)
	var e *libnbd.LibnbdError
	if !errors.As(err, &e) || e.Op != "pread" || e.Errno != syscall.ENOSPC || e.Errmsg == "" {
		t.Fatalf("error: got %#v, want ENOSPC of pread", err)
	}
	if !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		t.Errorf("text: got %q, want it to say %q", err, syscall.ENOSPC.Error())
	}
	if err := h.Pread(make([]byte, 512), 1<<20, nil); err == nil {
		t.Error("read beyond the end: got no error")
	}
	if err := h.Pread(nil, 0, nil); err == nil {
		t.Error("read of nothing: got no error")
	}
}

func TestClose(t *testing.T) {
	h := create(t)
	if e := h.Close(); e != nil {
		t.Errorf("first: got %v, want nil", e)
	}
	if e := h.Close(); e == nil {
		t.Error("second: got nil, want an error")
	}
	if _, err := h.GetSize(); err == nil {
		t.Error("use after close: got no error")
	}
}

// drive runs the handle's event loop until done.
func drive(t *testing.T, h *libnbd.Libnbd, done func() bool) {
	t.Helper()
	for !done() {
		if n, err := h.Poll(10000); err != nil || n == 0 {
			t.Fatalf("poll: got %d, %v", n, err)
		}
	}
}

func TestAsynchronousCommandsCallBack(t *testing.T) {
	h := connect(t, nbdkit(t, "memory", "1M"))
	w := libnbd.FromBytes(bytes.Repeat([]byte{7}, 65536))
	defer w.Free()
	r := libnbd.MakeAioBufferZero(65536)
	defer r.Free()
	var completed int
	count := func(e *int) int {
		if *e != 0 {
			t.Errorf("completion: got errno %d", *e)
		}
		completed++
		return 1
	}
	must := func(_ uint64, err error) { t.Helper(); ok(t, err) }
	must(h.AioPwrite(w, 0, &libnbd.AioPwriteOptargs{CompletionCallbackSet: true, CompletionCallback: count}))
	drive(t, h, func() bool { return completed == 1 })
	must(h.AioPread(r, 0, &libnbd.AioPreadOptargs{CompletionCallbackSet: true, CompletionCallback: count}))
	must(h.AioZero(4096, 131072, &libnbd.AioZeroOptargs{CompletionCallbackSet: true, CompletionCallback: count}))
	must(h.AioTrim(4096, 131072, &libnbd.AioTrimOptargs{CompletionCallbackSet: true, CompletionCallback: count}))
	must(h.AioFlush(&libnbd.AioFlushOptargs{CompletionCallbackSet: true, CompletionCallback: count}))
	must(h.AioBlockStatus(65536, 0, func(string, uint64, []uint32, *int) int { return 0 },
		&libnbd.AioBlockStatusOptargs{CompletionCallbackSet: true, CompletionCallback: count}))
	drive(t, h, func() bool { return completed == 6 })
	if n, err := h.AioInFlight(); err != nil || n != 0 {
		t.Errorf("in flight: got %d, %v, want 0", n, err)
	}
	if !bytes.Equal(r.Bytes(), w.Slice()) || *r.Get(65535) != 7 {
		t.Error("read differs from what was written")
	}
}

func TestAsynchronousReadIntoPinnedGoMemory(t *testing.T) {
	h := connect(t, nbdkit(t, "data", "9*65536"))
	b := make([]byte, 65536)
	var pin runtime.Pinner
	pin.Pin(&b[0])
	defer pin.Unpin()
	cookie, err := h.AioPread(libnbd.AioBuffer{P: unsafe.Pointer(&b[0]), Size: uint(len(b))}, 0, nil)
	ok(t, err)
	drive(t, h, func() bool {
		c, _ := h.AioPeekCommandCompleted()
		return c == cookie
	})
	if done, err := h.AioCommandCompleted(cookie); !done || err != nil {
		t.Fatalf("completed: got %v, %v", done, err)
	}
	if !bytes.Equal(b, bytes.Repeat([]byte{9}, 65536)) {
		t.Error("buffer does not hold what the server has")
	}
}

func TestAnAsynchronousErrorComesWithItsCompletion(t *testing.T) {
	h := connect(t, nbdkit(t, "--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=100%"))
	b := libnbd.MakeAioBuffer(512)
	defer b.Free()
	cookie, err := h.AioPread(b, 0, nil)
	ok(t, err)
	drive(t, h, func() bool {
		c, _ := h.AioPeekCommandCompleted()
		return c == cookie
	})
	_, err = h.AioCommandCompleted(cookie)
	var e *libnbd.LibnbdError
	if !errors.As(err, &e) || e.Errno != syscall.EIO {
		t.Errorf("error: got %v, want EIO", err)
	}
}

func TestTheEventLoopCanBeRunByHand(t *testing.T) {
	h := create(t)
	ok(t, h.AioConnectUri(nbdkit(t, "memory", "1M")))
	for range 1000 {
		if ready, err := h.AioIsReady(); err != nil || ready {
			ok(t, err)
			return
		}
		fd, err := h.AioGetFd()
		if err != nil || fd < 0 {
			t.Fatalf("descriptor: got %d, %v", fd, err)
		}
		dir, err := h.AioGetDirection()
		ok(t, err)
		switch uint32(dir) {
		case libnbd.AIO_DIRECTION_WRITE:
			ok(t, h.AioNotifyWrite())
		default:
			ok(t, h.AioNotifyRead()) // harmless when there is nothing to read
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("never ready")
}

func TestOptionsListExportsAndContexts(t *testing.T) {
	qcow2 := filepath.Join(t.TempDir(), "a.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", qcow2, "3M").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
		t.Skipf("requires qemu-img: %v", err)
	}
	uri := serve(t, "qemu-nbd", "-k", "SOCK", "-x", "disk", "-D", "a disk", "-e", "5", "-t", "-f", "qcow2", qcow2)
	h := create(t)
	ok(t, h.SetOptMode(true))
	ok(t, h.SetFullInfo(true))
	ok(t, h.ConnectUri(uri))
	var names, contexts []string
	n, err := h.OptList(func(name, description string) int {
		names = append(names, name+"/"+description)
		return 0
	})
	if err != nil || n != 1 || !slices.Equal(names, []string{"disk/a disk"}) {
		t.Errorf("exports: got %d, %v, %v", n, names, err)
	}
	ok(t, h.SetExportName("disk"))
	if name, err := h.GetExportName(); err != nil || *name != "disk" {
		t.Errorf("export name: got %v, %v", name, err)
	}
	if _, err := h.OptListMetaContext(func(name string) int { contexts = append(contexts, name); return 0 }); err != nil {
		t.Error(err)
	}
	if !slices.Contains(contexts, "base:allocation") {
		t.Errorf("contexts: got %v", contexts)
	}
	ok(t, h.OptInfo())
	if size, err := h.GetSize(); err != nil || size != 3<<20 {
		t.Errorf("size: got %d, %v", size, err)
	}
	if d, err := h.GetExportDescription(); err != nil || *d != "a disk" {
		t.Errorf("description: got %v, %v", d, err)
	}
	ok(t, h.OptGo())
	if s, err := h.GetBlockSize(libnbd.SIZE_MAXIMUM); err != nil || s == 0 {
		t.Errorf("maximum block size: got %d, %v", s, err)
	}
}
