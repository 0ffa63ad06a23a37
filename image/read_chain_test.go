package image_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenChainRefuses(t *testing.T) {
	small := func() *build { return newBuild(16, 1<<20) }
	tests := []struct {
		name    string
		prepare func(t *testing.T, dir string) // makes top.qcow2
		format  string
		is      error
		says    []string
	}{
		{"a top file that is missing", func(*testing.T, string) {}, "", fs.ErrNotExist, []string{"top.qcow2"}},
		{"a backing file that is missing, naming both files", func(t *testing.T, dir string) {
			small().backed("mid.qcow2", "qcow2").save(t, filepath.Join(dir, "top.qcow2"))
			small().backed("gone.qcow2", "qcow2").save(t, filepath.Join(dir, "mid.qcow2"))
		}, "", fs.ErrNotExist, []string{"mid.qcow2: its backing file", "gone.qcow2", "qemu-img rebase -u"}},
		{"a file that backs itself", func(t *testing.T, dir string) {
			small().backed("top.qcow2", "qcow2").save(t, filepath.Join(dir, "top.qcow2"))
		}, "", image.ErrCorrupt, []string{"already holds"}},
		{"a loop through another name of the same file", func(t *testing.T, dir string) {
			small().backed("mid.qcow2", "qcow2").save(t, filepath.Join(dir, "top.qcow2"))
			small().backed("alias.qcow2", "qcow2").save(t, filepath.Join(dir, "mid.qcow2"))
			if err := os.Symlink("top.qcow2", filepath.Join(dir, "alias.qcow2")); err != nil {
				t.Fatal(err)
			}
		}, "", image.ErrCorrupt, []string{"already holds"}},
		{"a backing name that is a JSON description", func(t *testing.T, dir string) {
			small().backed(`json:{"file.filename":"x"}`, "qcow2").save(t, filepath.Join(dir, "top.qcow2"))
		}, "", image.ErrUnsupported, []string{"json:", "qemu-img rebase -u"}},
		{"a backing name that is a network address", func(t *testing.T, dir string) {
			small().backed("nbd://host/export", "raw").save(t, filepath.Join(dir, "top.qcow2"))
		}, "", image.ErrUnsupported, []string{"nbd:"}},
		{"a backing file of another format", func(t *testing.T, dir string) {
			small().backed("base.vmdk", "vmdk").save(t, filepath.Join(dir, "top.qcow2"))
			writeFile(t, filepath.Join(dir, "base.vmdk"), []byte("KDMV"))
		}, "", image.ErrUnsupported, []string{"vmdk", "qemu-img convert"}},
		{"a backing file that is not what the header says", func(t *testing.T, dir string) {
			small().backed("base.img", "qcow2").save(t, filepath.Join(dir, "top.qcow2"))
			writeFile(t, filepath.Join(dir, "base.img"), make([]byte, 4096))
		}, "", image.ErrNotQCOW2, []string{"base.img"}},
		{"a raw file that was to be QCOW2", func(t *testing.T, dir string) {
			writeFile(t, filepath.Join(dir, "top.qcow2"), make([]byte, 4096))
		}, "qcow2", image.ErrNotQCOW2, nil},
		{"a folder", func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, "top.qcow2"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, "", nil, []string{"not a regular file"}},
		{"a FIFO, without waiting for its writer", func(t *testing.T, dir string) {
			if err := syscall.Mkfifo(filepath.Join(dir, "top.qcow2"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "", nil, []string{"not a regular file"}},
		{"an encrypted file, by name", func(t *testing.T, dir string) {
			b := small()
			b.h.CryptMethod = 2
			b.save(t, filepath.Join(dir, "top.qcow2"))
		}, "", image.ErrUnsupported, []string{"LUKS", "qemu-img convert"}},
		{"an external data file that is missing", func(t *testing.T, dir string) {
			b := small()
			b.h.Incompatible = image.IncompatDataFile
			b.h.Extensions = append(b.h.Extensions, image.Extension{Type: 0x44415441, Data: []byte("gone.data")})
			b.save(t, filepath.Join(dir, "top.qcow2"))
		}, "", fs.ErrNotExist, []string{"external data file", "gone.data"}},
		{"a file that was cut in its L1 table", func(t *testing.T, dir string) {
			path := filepath.Join(dir, "top.qcow2")
			newBuild(9, 64<<20).save(t, path)
			if err := os.Truncate(path, 1024+100); err != nil {
				t.Fatal(err)
			}
		}, "", image.ErrCorrupt, []string{"L1 table ends at"}},
		{"an external data file without a name", func(t *testing.T, dir string) {
			b := small()
			b.h.Incompatible = image.IncompatDataFile
			b.save(t, filepath.Join(dir, "top.qcow2"))
		}, "", image.ErrCorrupt, []string{"no name"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.prepare(t, dir)
			c, err := image.OpenChain(filepath.Join(dir, "top.qcow2"), image.ChainOptions{Format: tt.format})
			if err == nil {
				c.Close()
				t.Fatal("opened")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error: got %v, want one that is %v", err, tt.is)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error: got %q, want it to say %q", err, s)
				}
			}
		})
	}
}

func TestEncryptedByQEMUIsRefused(t *testing.T) {
	requires.Tool(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "luks.qcow2")
	var out []byte
	var err error
	for range 20 { // now and then qemu-img finds that a busy processor's time cannot be told
		out, err = exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc123",
			"-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "1M").CombinedOutput()
		if err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("qemu-img create: %v\n%s", err, out)
	}
	_, err = image.OpenChain(path, image.ChainOptions{})
	if !errors.Is(err, image.ErrUnsupported) || !strings.Contains(err.Error(), "LUKS") {
		t.Errorf("open: got %v, want ErrUnsupported and LUKS", err)
	}
}

func TestChainOfNames(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	one, two := bytes.Repeat([]byte{1}, 65536), bytes.Repeat([]byte{2}, 65536)
	newBuild(16, 1<<20).write(map[int64][]byte{0: one}).backed("other/mid.qcow2", "qcow2").save(t, filepath.Join(dir, "top.qcow2"))
	newBuild(16, 1<<20).write(map[int64][]byte{1: two}).backed("file:../base:1.img", "raw").save(t, filepath.Join(other, "mid.qcow2"))
	writeFile(t, filepath.Join(dir, "base:1.img"), bytes.Repeat([]byte{3}, 3*65536+7))
	c := openChain(t, filepath.Join(dir, "top.qcow2"), image.ChainOptions{})
	want := append(append(append(append([]byte{}, one...), two...), bytes.Repeat([]byte{3}, 65536+7)...), make([]byte, 1<<20-3*65536-7)...)
	blocktest.Run(t, func(t *testing.T) blocktest.Subject {
		return blocktest.Subject{Device: c, Content: want}
	})
	layers := c.Layers()
	if len(layers) != 3 {
		t.Fatalf("layers: got %+v, want 3", layers)
	}
	for i, want := range []image.Layer{
		{Name: "top", Format: "qcow2", Size: 1 << 20, ClusterSize: 65536},
		{Name: "mid", Format: "qcow2", Size: 1 << 20, ClusterSize: 65536},
		{Name: "base:1", Format: "raw", Size: 3*65536 + 7},
	} {
		want.Path = layers[i].Path
		if layers[i] != want {
			t.Errorf("layer %d: got %+v, want %+v", i, layers[i], want)
		}
	}
	if _, err := c.Changed(context.Background(), "nobody", 0, 4096); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("changes since an unknown layer: got %v, want an error that names it", err)
	}
}

func TestRawImageAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	content := append(make([]byte, 1<<20), bytes.Repeat([]byte{5, 6}, 70001)...)
	writeFile(t, path, content)
	if err := os.Truncate(path, int64(len(content))+12345); err != nil {
		t.Fatal(err)
	}
	content = append(content, make([]byte, 12345)...)
	for _, format := range []string{"", "raw"} {
		c := openChain(t, path, image.ChainOptions{Format: format})
		blocktest.Run(t, func(t *testing.T) blocktest.Subject {
			return blocktest.Subject{Device: c, Content: content}
		})
	}
	empty := filepath.Join(t.TempDir(), "empty.img")
	writeFile(t, empty, nil)
	if c := openChain(t, empty, image.ChainOptions{}); c.Size() != 0 {
		t.Errorf("size of an empty file: got %d, want 0", c.Size())
	}
}

// TestRawNamedAsRawIsNotProbed: a guest that writes a QCOW2 header to the start
// of its raw disk must not get other files of the host opened.
func TestRawNamedAsRawIsNotProbed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	newBuild(16, 1<<20).backed("/etc/passwd", "raw").save(t, path)
	c := openChain(t, path, image.ChainOptions{Format: "raw"})
	if got := len(c.Layers()); got != 1 || c.Layers()[0].Format != "raw" {
		t.Errorf("layers: got %+v, want the raw file", c.Layers())
	}
}

// TestTruncatedFile: of a last cluster that is not there in full the rest reads
// as zeroes, a cluster that is not there at all is an error, and neither is ever
// located beyond the end of the file.
func TestTruncatedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cut.qcow2")
	b := newBuild(16, 1<<20)
	data := bytes.Repeat([]byte{7}, 65536)
	host := uint64(b.first) + 65536 // behind the table
	b.table(0, map[int]uint64{0: host, 1: host + 65536, 2: host + 2*65536, 3: 1 << 40})
	b.cluster(data)
	b.cluster(data[:12345])
	b.save(t, path)
	c := openChain(t, path, image.ChainOptions{})
	ctx := context.Background()

	want := append(append([]byte{}, data...), append(bytes.Clone(data[:12345]), make([]byte, 65536-12345)...)...)
	got := make([]byte, 2*65536)
	if err := c.ReadAt(ctx, got, 0); err != nil {
		t.Fatal(err)
	}
	compareBytes(t, "what is there", got, want)
	for _, off := range []int64{2 * 65536, 3*65536 + 5} {
		err := c.ReadAt(ctx, got[:10], off)
		if !errors.Is(err, image.ErrCorrupt) || !strings.Contains(err.Error(), "beyond the end of the file") ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("read at %d: got %v, want an error that names the file and says why", off, err)
		}
		if _, err := c.Map(ctx, off, 10); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("map at %d: got %v, want ErrCorrupt", off, err)
		}
	}
	if err := c.ReadAt(ctx, got, 4*65536); err != nil {
		t.Errorf("read behind the damage: %v", err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	locs, err := c.Locate(ctx, nil, 0, c.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range locs {
		if l.Kind == block.InFile && l.Off+l.Len > st.Size() {
			t.Errorf("location %+v reaches beyond the end of the file at %d", l, st.Size())
		}
	}
	exts, err := c.Map(ctx, 0, c.Size())
	if err != nil || len(exts) == 0 || exts[0].Off != 0 {
		t.Errorf("map of what is there: got %v and %v", exts, err)
	}
}

// TestFileCutInATable: entries that are gone must not uncover the backing file.
func TestFileCutInATable(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "cut.qcow2")
	b := newBuild(12, 2<<20).backed("base.img", "raw")
	end := b.table(0, nil) + 100*8 + 3
	b.save(t, path)
	writeFile(t, filepath.Join(dir, "base.img"), bytes.Repeat([]byte{1}, 2<<20))
	if err := os.Truncate(path, end); err != nil {
		t.Fatal(err)
	}
	c := openChain(t, path, image.ChainOptions{})
	p := make([]byte, 4096)
	if err := c.ReadAt(context.Background(), p, 99*4096); err != nil || p[0] != 1 {
		t.Errorf("read by the last entry that is there: got %d and %v, want 1", p[0], err)
	}
	if err := c.ReadAt(context.Background(), p, 100*4096); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("read by an entry that is gone: got %v, want ErrCorrupt", err)
	}
}

// TestFileGrowsUnderTheReader: tables and clusters that appear behind the end that
// the file had when it was opened are found.
func TestFileGrowsUnderTheReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grows.qcow2")
	b := newBuild(16, 1<<30)
	b.save(t, path)
	c := openChain(t, path, image.ChainOptions{})
	data := bytes.Repeat([]byte{9}, 65536)
	b.write(map[int64][]byte{1 << 13: data})
	b.save(t, path) // in place: the same inode
	got := make([]byte, 65536)
	if err := c.ReadAt(context.Background(), got, 1<<29); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read of what was added: %v, content right: %v", err, bytes.Equal(got, data))
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.qcow2")
	newBuild(16, 1<<30).save(t, path)
	c := openChain(t, path, image.ChainOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read: got %v, want context.Canceled", err)
	}
	if _, err := c.Map(ctx, 0, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("map: got %v, want context.Canceled", err)
	}
	if err := c.ReadAt(context.Background(), make([]byte, 10), 0); err != nil {
		t.Errorf("read after one that was cancelled: %v", err)
	}
}

// TestChainReadsThroughAMerge merges a layer into its child with QEMU while the
// chain is open: what is open reads on as before.
func TestChainReadsThroughAMerge(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	dir := t.TempDir()
	qemuImg(t, dir, "create", "-q", "-f", "qcow2", "a.qcow2", "64M")
	qemuIO(t, dir, "a.qcow2", []string{"write -q -P 1 0 20M"})
	qemuImg(t, dir, "create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2")
	qemuIO(t, dir, "b.qcow2", []string{"write -q -P 2 10M 20M"})
	qemuImg(t, dir, "create", "-q", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", "c.qcow2")
	qemuIO(t, dir, "c.qcow2", []string{"write -q -P 3 25M 10M"})
	want := qemuContent(t, dir, "c.qcow2", "qcow2")
	c := openChain(t, filepath.Join(dir, "c.qcow2"), image.ChainOptions{})
	half := make([]byte, len(want)/4)
	if err := c.ReadAt(context.Background(), half, 0); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, dir, "rebase", "-q", "-b", "a.qcow2", "-F", "qcow2", "c.qcow2")
	if err := os.Remove(filepath.Join(dir, "b.qcow2")); err != nil {
		t.Fatal(err)
	}
	compareBytes(t, "the chain that was open", readAll(t, c), want)
	compareBytes(t, "the chain opened afterwards",
		readAll(t, openChain(t, filepath.Join(dir, "c.qcow2"), image.ChainOptions{})), want)
}
