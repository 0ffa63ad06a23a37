package appliance_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/capture/capturetest"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

func TestMain(m *testing.M) {
	guestfs.Main()
	os.Exit(m.Run())
}

// archiveRig has a machine web1 with an ext4 of small and large files, some of
// which have several names.
func archiveRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	for i := range 1500 {
		name := filepath.Join(dir, fmt.Sprint("d-", i%7), fmt.Sprint("file-", i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(strings.Repeat("x", i*i%20_000)), 0o600)); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := os.Link(name, filepath.Join(dir, fmt.Sprint("link-", i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), noise(1, 8*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(fstest.Make(t, 64*mib, "mkfs.ext4", "-q", "-d", dir))
	if err != nil {
		t.Fatal(err)
	}
	s := capturetest.NewSource(t, "web1")
	s.Add("vda", 64*mib)
	s.Write("vda", image, 0)
	r := open(t, nil)
	r.backup(t, s, "web1")
	return r
}

func (r *rig) archive(t *testing.T, w io.Writer, format string) (appliance.ArchiveSummary, error) {
	t.Helper()
	x, err := r.OpenArchive(t.Context(), appliance.ArchiveRequest{VM: "web1", Point: "latest", Format: format})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	return x.Write(t.Context(), w)
}

func TestArchivesOfOnePointAtATime(t *testing.T) {
	r := archiveRig(t)
	var wg sync.WaitGroup
	var outs [6]bytes.Buffer
	for i := range outs {
		wg.Go(func() {
			sum, err := r.archive(t, &outs[i], []string{"tar", "zip"}[i%2])
			if err != nil || sum.Files != 2010 || sum.LeftOut+sum.Changed != 0 || sum.Remarks != "" {
				t.Errorf("archive %d: got %+v, %v, want 2010 files", i, sum, err)
			}
		})
	}
	wg.Wait()
	for i := 2; i < len(outs); i++ {
		if !bytes.Equal(outs[i].Bytes(), outs[i-2].Bytes()) {
			t.Errorf("archive %d of a point is another than archive %d", i, i-2)
		}
	}
	links := 0
	for x := tar.NewReader(&outs[0]); ; {
		h, err := x.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
		if h.Typeflag == tar.TypeLink {
			links++
		}
	}
	if links != 500 {
		t.Errorf("hard links: got %d, want 500", links)
	}
}

// narrow takes some bytes and no more.
type narrow struct{ left int }

var errFull = errors.New("full")

func (n *narrow) Write(p []byte) (int, error) {
	if len(p) > n.left {
		return n.left, errFull
	}
	n.left -= len(p)
	return len(p), nil
}

func TestAnArchiveEndsWithItsWriter(t *testing.T) {
	r := archiveRig(t)
	if _, err := r.archive(t, io.Discard, "tar"); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for _, format := range []string{"tar", "zip"} {
		for _, n := range []int{0, 511, 512, 100_000, mib, 5 * mib, 8 * mib} {
			if _, err := r.archive(t, &narrow{n}, format); !errors.Is(err, errFull) {
				t.Errorf("%s with room for %d bytes: got %v, want %v", format, n, err, errFull)
			}
		}
	}
	requires.Until(t, "its goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}
