package fstest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// patched is a Volume with some bytes changed, that counts what is read.
type patched struct {
	fsys.Volume
	patches map[int64]byte // xor
	reads   int
	bytes   int64
	seen    map[int64]bool // blocks of 512 bytes that were read; nil: not noted
}

// errTooMuch ends a walk that reads without end.
var errTooMuch = errors.New("read more than a reader of this volume has reason to")

func (p *patched) ReadAt(b []byte, off int64) error {
	p.reads++
	p.bytes += int64(len(b))
	if p.bytes > 64*p.Size()+1<<30 {
		return errTooMuch
	}
	if off < 0 || off > p.Size()-int64(len(b)) {
		return fmt.Errorf("read %d bytes at %d of %d: %w", len(b), off, p.Size(), io.ErrUnexpectedEOF)
	}
	if err := p.Volume.ReadAt(b, off); err != nil {
		return err
	}
	if p.seen != nil {
		for at := off &^ 511; at < off+int64(len(b)); at += 512 {
			p.seen[at] = true
		}
	}
	if len(p.patches) < len(b) {
		for at, x := range p.patches {
			if at >= off && at < off+int64(len(b)) {
				b[at-off] ^= x
			}
		}
		return nil
	}
	for i := range b {
		b[i] ^= p.patches[off+int64(i)]
	}
	return nil
}

// Opener opens the file system of a volume.
type Opener func(fsys.Volume) (fsys.FileSystem, error)

// Damage opens and walks the volume many times, each time with other bytes of its
// structures changed, and fails the test if the reader panics, does not come to an
// end, or takes memory that the volume's size does not explain. Rounds is how
// often.
func Damage(t *testing.T, vol fsys.Volume, open Opener, rounds int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(5, 6))
	sound := &patched{Volume: vol, seen: map[int64]bool{}}
	if _, err := walk(sound, open, false); err != nil {
		t.Fatalf("walk of the sound volume: %v", err)
	}
	// What a walk without content reads are structures.
	var blocks []int64
	for at := range vol.Size() / 512 {
		if sound.seen[at*512] {
			blocks = append(blocks, at*512)
		}
	}
	refused, survived := 0, 0
	before := heap()
	for round := range rounds {
		p := &patched{Volume: vol, patches: map[int64]byte{}}
		for range 1 + rng.IntN(8) {
			at := blocks[rng.IntN(len(blocks))] + rng.Int64N(512)
			for i := range int64(1 + rng.IntN(4)) {
				p.patches[at+i] = byte(1 + rng.IntN(255))
			}
		}
		done := make(chan error, 1)
		go func() {
			defer func() {
				if v := recover(); v != nil {
					stack := make([]byte, 8<<10)
					done <- fmt.Errorf("panic: %v\n%s", v, stack[:runtime.Stack(stack, false)])
				}
			}()
			_, err := walk(p, open, true)
			if errors.Is(err, errTooMuch) {
				done <- err
				return
			}
			if err != nil {
				refused++
			} else {
				survived++
			}
			done <- nil
		}()
		if err := <-done; err != nil {
			t.Fatalf("round %d, changed bytes %v: %v", round, p.patches, err)
		}
		if got := heap(); got > before+maxHeap {
			t.Fatalf("round %d, changed bytes %v: the heap grew to %d MiB", round, p.patches, got>>20)
		}
	}
	t.Logf("%d rounds: %d ended with an error, %d did not", rounds, refused, survived)
}

// Survives opens and walks a volume that may hold anything, for fuzz tests, and
// fails the test if that does not come to an end.
func Survives(t testing.TB, vol fsys.Volume, open Opener) {
	t.Helper()
	if _, err := walk(&patched{Volume: vol}, open, true); errors.Is(err, errTooMuch) {
		t.Fatal(err)
	}
}

// maxHeap is by how much a walk may make the heap grow, in bytes.
const maxHeap = 512 << 20

// heap returns the most memory that the heap took so far, in bytes.
func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapSys
}

// walk visits everything once and returns how much there was, and the first
// error. It goes on after errors.
func walk(vol fsys.Volume, open Opener, content bool) (seen int, err error) {
	f, err := open(vol)
	if err != nil {
		return 0, err
	}
	note := func(e error) {
		if err == nil || errors.Is(e, errTooMuch) {
			err = e
		}
	}
	visited := map[fsys.ID]bool{}
	queue := []fsys.ID{f.Root()}
	for len(queue) > 0 && seen < 200_000 && !errors.Is(err, errTooMuch) {
		id := queue[0]
		queue = queue[1:]
		if visited[id] {
			continue
		}
		visited[id] = true
		seen++
		a, e := f.Stat(id)
		if e != nil {
			note(e)
			continue
		}
		_, e = f.Xattrs(id)
		note(e)
		switch a.Mode.Type() {
		case fs.ModeDir:
			n := 0
			note(f.ReadDir(id, func(e fsys.Entry) bool {
				queue = append(queue, e.ID)
				n++
				return n < 200_000
			}))
		case fs.ModeSymlink:
			_, e := f.Readlink(id)
			note(e)
		case 0:
			note(touch(f, id, a.Size, content))
		}
	}
	return seen, err
}

// touch reads extents of a file, and some of its content.
func touch(f fsys.FileSystem, id fsys.ID, size int64, content bool) error {
	exts, err := f.Extents(id, 0, size)
	if err != nil || !content || size == 0 {
		return err
	}
	if size > 0 && len(exts) == 0 {
		return errors.New("no extents")
	}
	p := make([]byte, min(size, 64<<10))
	for _, off := range []int64{0, size / 2, size - int64(len(p))} {
		if _, err := f.ReadAt(id, p, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}
