package instant_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/instant"
)

const mib = 1 << 20

func noise(seed byte, n int64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// below is a backing disk with content.
func below(t *testing.T, content []byte) *image.Chain {
	t.Helper()
	path := filepath.Join(t.TempDir(), "base.qcow2")
	if err := image.Create(path, image.CreateOptions{Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	w, err := image.OpenWriter(path, image.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteAt(t.Context(), content, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := image.OpenChain(path, image.ChainOptions{Format: "qcow2"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// created makes the file of an overlay over a disk.
func created(t *testing.T, c *image.Chain) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk-0.qcow2")
	if err := instant.CreateOverlay(path, c.Size(), 0, ""); err != nil {
		t.Fatal(err)
	}
	return path
}

func overlay(t *testing.T, path string, backing block.Device, room func(int64) error) *instant.Overlay {
	t.Helper()
	o, err := instant.OpenOverlay(t.Context(), path, backing, room)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func wantContent(t *testing.T, d block.Device, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := d.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("content differs first at byte %d", i)
			}
		}
	}
}

const childEnv = "SENDENSE_TEST_OVERLAY"

// TestMain also is the process that writes to an overlay until it is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		os.Exit(writeUntilKilled(path, os.Getenv(childEnv+"_BASE")))
	}
	os.Exit(m.Run())
}

// writeUntilKilled numbers blocks of 4 KiB in a fixed order, and tells of each on
// stdout when its write has returned. It flushes now and then.
func writeUntilKilled(path, base string) int {
	ctx := context.Background()
	c, err := image.OpenChain(base, image.ChainOptions{Format: "qcow2"})
	if err != nil {
		return 1
	}
	o, err := instant.OpenOverlay(ctx, path, c, nil)
	if err != nil {
		return 1
	}
	for i := 0; ; i++ {
		if err := o.WriteAt(ctx, numbered(i), blockOf(i)); err != nil {
			return 1
		}
		if _, err := os.Stdout.Write([]byte{1}); err != nil {
			return 1
		}
		if i%37 == 36 {
			if err := o.Flush(ctx); err != nil {
				return 1
			}
		}
	}
}

// blocks are so few that what an old log says is seen if it is done again.
const blocks = 100

func blockOf(i int) int64 { return int64(i*7%blocks) * 4096 }

func numbered(i int) []byte {
	return bytes.Repeat([]byte{byte(i), byte(i >> 8), byte(i >> 16), 7}, 1024)
}

func TestWhatAKilledProcessWasToldIsWrittenIsThere(t *testing.T) {
	content := noise(1, 8*mib)
	c := below(t, content)
	path := filepath.Join(t.TempDir(), "disk-0.qcow2")
	if err := instant.CreateOverlay(path, c.Size(), 0, c.Layers()[0].Path); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Between flushes, right behind one, and where segments are used again: soon after
	// one has begun, and late.
	for _, kill := range []int{1, 20, 37, 38, 100, 1310, 1500} {
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), childEnv+"="+path, childEnv+"_BASE="+c.Layers()[0].Path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		told := 0
		b := make([]byte, 1)
		for told < kill {
			n, err := out.Read(b)
			if err != nil {
				t.Fatalf("after %d writes: %v", told, err)
			}
			told += n
		}
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := out.Read(b)
			if told += n; err != nil {
				break
			}
		}
		_ = cmd.Wait() // it was killed
		want := map[int64]int{}
		for i := range told {
			want[blockOf(i)] = i
		}
		o := overlay(t, path, c, nil)
		got := make([]byte, 4096)
		for off, i := range want {
			if err := o.ReadAt(t.Context(), got, off); err != nil {
				t.Fatal(err)
			}
			// The write after the last one told of may have been done too.
			if !bytes.Equal(got, numbered(i)) && (off != blockOf(told) || !bytes.Equal(got, numbered(told))) {
				t.Fatalf("killed after %d writes: block at %d is not what write %d left", told, off, i)
			}
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		if r, err := image.Check(t.Context(), path); err != nil || r.Corruptions > 0 {
			t.Fatalf("check: %+v, %v", r, err)
		}
	}
}

func TestALogOfAnotherBootIsThrownAway(t *testing.T) {
	content := noise(2, mib)
	c := below(t, content)
	path := created(t, c)
	o := overlay(t, path, c, nil)
	if err := o.WriteAt(t.Context(), noise(3, 4096), 0); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(path + ".redo-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = overlay(t, path, c, nil)
	if err := o.WriteAt(t.Context(), content[:4096], 0); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	copy(log[8:], "00000000-0000-0000-0000-000000000000")
	if err := os.WriteFile(path+".redo-1", log, 0o600); err != nil {
		t.Fatal(err)
	}
	o = overlay(t, path, c, nil)
	defer o.Close()
	wantContent(t, o, content)
}

func TestADamagedLogIsReadUpToTheDamage(t *testing.T) {
	content := noise(2, mib)
	c := below(t, content)
	path := created(t, c)
	o := overlay(t, path, c, nil)
	for i := range int64(3) {
		if err := o.WriteAt(t.Context(), noise(3, 4096), i*4096); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.ReadFile(path + ".redo-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	for cut := 0; cut <= len(log); cut += 509 {
		fresh := created(t, c)
		if err := os.WriteFile(fresh+".redo-1", log[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		o := overlay(t, fresh, c, nil)
		want := bytes.Clone(content)
		for i := 0; 52+(i+1)*(24+4096) <= cut; i++ {
			copy(want[i*4096:], noise(3, 4096))
		}
		wantContent(t, o, want)
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOverlayIsADevice(t *testing.T) {
	blocktest.Run(t, func(t *testing.T) blocktest.Subject {
		content := noise(4, 3*mib+512)
		c := below(t, content)
		path := created(t, c)
		o := overlay(t, path, c, nil)
		t.Cleanup(func() { o.Close() })
		return blocktest.Subject{Device: o, Content: content}
	})
}

// What was done quickly then may not be so quick over what came later.
func TestALogIsDoneAgainOverWhatCameLater(t *testing.T) {
	content := noise(2, mib)
	c := below(t, content)
	path := created(t, c)
	o := overlay(t, path, c, nil)
	if err := o.WriteZeroes(t.Context(), 0, mib/2, 0); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = overlay(t, path, c, nil)
	if err := o.WriteZeroes(t.Context(), 0, 4096, block.FastOnly); err != nil {
		t.Fatal(err)
	}
	if err := o.WriteAt(t.Context(), noise(3, 4096), 8192); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(path + ".redo-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".redo-1", log, 0o600); err != nil { // as if it was killed before that was retired
		t.Fatal(err)
	}
	o = overlay(t, path, c, nil)
	defer o.Close()
	want := bytes.Clone(content)
	clear(want[:mib/2])
	copy(want[8192:], noise(3, 4096))
	wantContent(t, o, want)
}
