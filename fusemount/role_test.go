package fusemount_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"testing"
	"unsafe"

	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/fusemount"
	"golang.org/x/sys/unix"
)

// TestMain lets the test program play other programs: what reads a mount by mmap
// must not be the one that serves it, and what is killed must not be the test.
func TestMain(m *testing.M) {
	roles := map[string]func(args []string) error{
		"serve":    playServer,
		"hold":     playHolder,
		"list":     playLister,
		"read":     playReader,
		"poll":     playPoller,
		"compare":  playComparer,
		"scribble": playScribbler,
	}
	play, ok := roles[os.Getenv("FUSEMOUNT_ROLE")]
	if !ok {
		os.Exit(m.Run())
	}
	if err := play(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// playServer shows a file "disk" at a folder until it is killed, or its input ends.
func playServer(args []string) error {
	root, size, writable := newFolder(), int64(1<<20), len(args) > 1
	if writable {
		size = 64 << 20
	}
	root.add("disk", newDocument(blocktest.NewMemory(size)))
	s, err := fusemount.Mount(args[0], root, fusemount.Options{Writable: writable})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	fmt.Println("serving")
	return s.Serve(ctx)
}

// playHolder keeps a file open, and a folder its own, until its input ends.
func playHolder(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Println("holding")
	_, err = bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	_, err = f.ReadAt(make([]byte, 512), 0)
	return err
}

// playLister lists a folder.
func playLister(args []string) error {
	_, err := os.ReadDir(args[0])
	return err
}

// playReader reads the first bytes of a file, with one call, while it handles
// signals.
func playReader(args []string) error {
	signal.Notify(make(chan os.Signal, 100), unix.SIGUSR1)
	fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	_, err = unix.Pread(fd, make([]byte, 512), 0)
	return err
}

// playPoller polls a file.
func playPoller(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err
}

// ways is a file that is open in several ways at a time.
type ways struct {
	buffered, direct int // descriptors
	mapped           []byte
	size             int64
}

func openWays(path string, flags, protection int) (*ways, error) {
	w := new(ways)
	var err error
	if w.buffered, err = unix.Open(path, flags, 0); err != nil {
		return nil, err
	}
	if w.direct, err = unix.Open(path, flags|unix.O_DIRECT, 0); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(w.buffered, &st); err != nil {
		return nil, err
	}
	w.size = st.Size
	w.mapped, err = unix.Mmap(w.buffered, 0, int(st.Size), protection, unix.MAP_SHARED)
	return w, err
}

// aligned returns memory at an address that O_DIRECT takes.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & 4095
	return b[skip : skip+n]
}

func preadFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

// span returns a random range, of which many are short and some long.
func span(rnd *rand.Rand, size int64) (off, n int64) {
	off = rnd.Int64N(size)
	limit := min(size-off, []int64{100, 5000, 70 << 10, 3 << 20}[rnd.IntN(4)])
	return off, 1 + rnd.Int64N(limit)
}

// playComparer reads a file in every way, at random, and compares it with another.
func playComparer(args []string) error {
	want, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	w, err := openWays(args[0], unix.O_RDONLY, unix.PROT_READ)
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(11, 12))
	buf := aligned(4 << 20)
	for i := range rounds {
		off, n := span(rnd, w.size)
		got, how := buf[:n], "read"
		switch rnd.IntN(4) {
		case 0:
			got, how = w.mapped[off:off+n], "map"
		case 1:
			how = "direct read"
			off &^= 511
			n = min(n+511, w.size-off) // the end of the file need not be aligned
			got = buf[:(n+511)&^511]
			m, err := unix.Pread(w.direct, got, off)
			if err != nil || int64(m) < n {
				return fmt.Errorf("%s of %d at %d: %d, %v", how, n, off, m, err)
			}
			got = got[:n]
		default:
			if err := preadFull(w.buffered, got, off); err != nil {
				return fmt.Errorf("%s of %d at %d: %w", how, n, off, err)
			}
		}
		if !bytes.Equal(got, want[off:off+n]) {
			return fmt.Errorf("round %d: %s of %d bytes at %d gave other bytes", i, how, n, off)
		}
		if rnd.IntN(20) == 0 {
			if err := unix.Fadvise(w.buffered, 0, 0, unix.FADV_DONTNEED); err != nil {
				return err
			}
		}
	}
	return nil
}

// playScribbler writes to a file in every way, at random, and reads it back; what
// the file should hold it keeps in another.
func playScribbler(args []string) error {
	model, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	w, err := openWays(args[0], unix.O_RDWR, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(args[3], 10, 64)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(seed, 13))
	buf := aligned(4 << 20)
	for i := range rounds {
		off, n := span(rnd, w.size)
		how, err := w.scribble(rnd, model, buf, off, n)
		if err != nil {
			return fmt.Errorf("round %d: %s of %d bytes at %d: %w", i, how, n, off, err)
		}
		off, n = span(rnd, w.size)
		got := buf[:n]
		if rnd.IntN(3) == 0 {
			got = w.mapped[off : off+n]
		} else if err := preadFull(w.buffered, got, off); err != nil {
			return err
		}
		if !bytes.Equal(got, model[off:off+n]) {
			return fmt.Errorf("round %d, after %s: %d bytes at %d are others", i, how, n, off)
		}
	}
	if err := unix.Msync(w.mapped, unix.MS_SYNC); err != nil {
		return err
	}
	if err := unix.Munmap(w.mapped); err != nil {
		return err
	}
	if err := errors.Join(unix.Fsync(w.buffered), unix.Close(w.buffered), unix.Close(w.direct)); err != nil {
		return err
	}
	return os.WriteFile(args[1], model, 0o600)
}

// scribble changes a range of the file and of the model, and says how.
func (w *ways) scribble(rnd *rand.Rand, model, buf []byte, off, n int64) (how string, err error) {
	b := buf[:n]
	fill := func() {
		v := byte(rnd.Uint32())
		for i := range b {
			b[i] = v + byte(i)
		}
		copy(model[off:], b)
	}
	switch rnd.IntN(6) {
	case 0:
		fill()
		copy(w.mapped[off:], b)
		return "mapped write", nil
	case 1:
		off, n = off&^511, (n+511)&^511
		n = min(n, (w.size-off)&^511)
		b = buf[:n]
		fill()
		// The kernel writes back what was mapped before it writes directly.
		m, err := unix.Pwrite(w.direct, b, off)
		if err == nil && int64(m) != n {
			err = io.ErrShortWrite
		}
		return "direct write", err
	case 2:
		clear(model[off : off+n])
		return "hole", unix.Fallocate(w.buffered, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	case 3:
		clear(model[off : off+n])
		return "zeroing", unix.Fallocate(w.buffered, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	default:
		fill()
		m, err := unix.Pwrite(w.buffered, b, off)
		if err == nil && int64(m) != n {
			err = io.ErrShortWrite
		}
		return "write", err
	}
}
