package image_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

const ingestCluster = 4096

// layerDraft is a layer being written through an Ingest.
type layerDraft struct {
	t      testing.TB
	path   string
	w      *image.Writer
	in     *image.Ingest
	parent *parentChain
}

// parentChain is a chain with its digests.
type parentChain struct {
	chain   *image.Chain
	digests []*image.Digests
}

func openParent(t testing.TB, path string) *parentChain {
	t.Helper()
	c, err := image.OpenChain(path, image.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	p := &parentChain{chain: c}
	for _, l := range c.Layers() {
		d, err := image.OpenDigests(l.Path + ".digests")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		p.digests = append(p.digests, d)
	}
	return p
}

type draftOptions struct {
	size      int64
	parent    string
	compress  bool
	noDigests bool
}

func newDraft(t testing.TB, path string, o draftOptions) *layerDraft {
	t.Helper()
	co := image.CreateOptions{Size: o.size, ClusterSize: ingestCluster, Compression: image.Zstd}
	d := &layerDraft{t: t, path: path}
	var wo image.WriterOptions
	io := image.IngestOptions{Compress: o.compress}
	if o.parent != "" {
		co.BackingFile, co.BackingFormat = filepath.Base(o.parent), "qcow2"
		d.parent = openParent(t, o.parent)
		wo.Backing, io.Parent, io.ParentDigests = d.parent.chain, d.parent.chain, d.parent.digests
		if o.noDigests {
			io.ParentDigests = nil
		}
	}
	if err := image.Create(path, co); err != nil {
		t.Fatal(err)
	}
	var err error
	if d.w, err = image.OpenWriter(path, wo); err != nil {
		t.Fatal(err)
	}
	if d.in, err = image.NewIngest(t.Context(), d.w, io); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.in.Close(); d.w.Close() })
	return d
}

// finish ends the draft with its digests beside it.
func (d *layerDraft) finish() image.IngestStats {
	d.t.Helper()
	var b bytes.Buffer
	s, err := d.in.Finish(context.Background(), &b)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := errors.Join(d.in.Close(), d.w.Close(), os.WriteFile(d.path+".digests", b.Bytes(), 0o600)); err != nil {
		d.t.Fatal(err)
	}
	return s
}

func (d *layerDraft) write(p []byte, off int64) {
	d.t.Helper()
	if err := d.in.WriteAt(d.t.Context(), p, off); err != nil {
		d.t.Fatal(err)
	}
}

// verifyLayer checks that the digests at path say exactly what the layer holds.
func verifyLayer(t testing.TB, path string) {
	t.Helper()
	f, err := image.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := image.OpenDigests(path + ".digests")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Check(context.Background()); err != nil {
		t.Error(err)
	}
	chain, err := image.OpenChain(path, image.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer chain.Close()
	var held int64
	buf := make([]byte, ingestCluster)
	err = f.Runs(context.Background(), 0, f.Size(), func(r image.Run) error {
		for off := r.Off; off < r.Off+r.Len; off += ingestCluster {
			held++
			c := off / ingestCluster
			e, err := d.Lookup(context.Background(), c)
			if err != nil {
				return err
			}
			if e == nil || e.Zero != (r.Content == image.Zeroed) {
				t.Errorf("cluster %d: got %v, want %v", c, e, r.Content)
				continue
			}
			clear(buf)
			n := min(ingestCluster, f.Size()-off)
			if err := chain.ReadAt(context.Background(), buf[:n], off); err != nil {
				return err
			}
			if !e.Zero && e.Digest != image.Sum(buf) {
				t.Errorf("cluster %d: digest is not that of its content", c)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if s := d.Summary(); s.Data+s.Zero != held {
		t.Errorf("digests: got %d clusters, want %d", s.Data+s.Zero, held)
	}
}

func randomBytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func TestIngestKeepsOnlyWhatDiffers(t *testing.T) {
	const size = 64 * ingestCluster
	base := randomBytes(1, size)
	clear(base[32*ingestCluster:])
	for _, o := range []struct {
		name string
		draftOptions
	}{
		{"by digests", draftOptions{size: size}},
		{"by bytes", draftOptions{size: size, noDigests: true}},
		{"by digests, compressed", draftOptions{size: size, compress: true}},
	} {
		for _, tt := range []struct {
			name       string
			write      func(d *layerDraft, want []byte)
			data, zero int64
		}{
			{"all of it again", func(d *layerDraft, _ []byte) { d.write(base, 0) }, 0, 0},
			{"one cluster in the middle of the same", func(d *layerDraft, want []byte) {
				copy(want[7*ingestCluster:], randomBytes(2, ingestCluster))
				d.write(want, 0)
			}, 1, 0},
			{"zeroes over data", func(d *layerDraft, want []byte) {
				clear(want[:4*ingestCluster])
				d.write(want[:8*ingestCluster], 0)
			}, 0, 4},
			{"zeroes over zeroes", func(d *layerDraft, want []byte) {
				d.write(make([]byte, 16*ingestCluster), 40*ingestCluster)
				zero(d, 32*ingestCluster, 32*ingestCluster)
			}, 0, 0},
			{"zeroes asked for over both", func(d *layerDraft, want []byte) {
				clear(want[30*ingestCluster:])
				zero(d, 30*ingestCluster, 34*ingestCluster)
			}, 0, 2},
			{"part of a cluster", func(d *layerDraft, want []byte) {
				copy(want[5000:], "part")
				d.write([]byte("part"), 5000)
			}, 1, 0},
			{"part of a cluster of zeroes zeroed", func(d *layerDraft, want []byte) {
				zero(d, 50*ingestCluster+100, 100)
			}, 0, 0},
			{"part of a cluster of data zeroed", func(d *layerDraft, want []byte) {
				clear(want[5*ingestCluster+100:][:100])
				zero(d, 5*ingestCluster+100, 100)
			}, 1, 0},
			{"the same cluster twice", func(d *layerDraft, want []byte) {
				d.write(randomBytes(3, ingestCluster), 0)
				copy(want, randomBytes(4, ingestCluster))
				d.write(want[:ingestCluster], 0)
			}, 1, 0},
			{"a cluster and then the parent's content again", func(d *layerDraft, want []byte) {
				d.write(randomBytes(3, ingestCluster), 0)
				d.write(base[:ingestCluster], 0)
			}, 1, 0},
			{"data over a cluster zeroed before", func(d *layerDraft, want []byte) {
				zero(d, 0, 2*ingestCluster)
				clear(want[:2*ingestCluster])
				copy(want, randomBytes(3, ingestCluster))
				d.write(want[:ingestCluster], 0)
			}, 1, 1},
			{"a write across clusters with both ends cut", func(d *layerDraft, want []byte) {
				copy(want[1000:], randomBytes(5, 3*ingestCluster))
				d.write(randomBytes(5, 3*ingestCluster), 1000)
			}, 4, 0},
		} {
			t.Run(o.name+"/"+tt.name, func(t *testing.T) {
				dir := t.TempDir()
				full := newDraft(t, filepath.Join(dir, "full"), draftOptions{size: size, compress: o.compress})
				full.write(base, 0)
				if s := full.finish(); s.Data != 32 || s.Zero != 0 {
					t.Fatalf("full: got %d and %d clusters, want 32 and 0", s.Data, s.Zero)
				}
				do := o.draftOptions
				do.parent = full.path
				d := newDraft(t, filepath.Join(dir, "incr"), do)
				want := bytes.Clone(base)
				tt.write(d, want)
				s := d.finish()
				if s.Data != tt.data || s.Zero != tt.zero {
					t.Errorf("draft: got %d clusters of data and %d of zeroes, want %d and %d", s.Data, s.Zero, tt.data, tt.zero)
				}
				verifyLayer(t, full.path)
				verifyLayer(t, d.path)
				p := openParent(t, d.path)
				got := make([]byte, size)
				if err := p.chain.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
					t.Errorf("content: got other bytes than written (%v)", err)
				}
				v, err := image.NewVerified(p.chain, p.digests)
				if err != nil {
					t.Fatal(err)
				}
				if err := v.ReadAt(t.Context(), got[1:size-1], 1); err != nil || !bytes.Equal(got[1:size-1], want[1:size-1]) {
					t.Errorf("verified: got other bytes than written (%v)", err)
				}
			})
		}
	}
}

func zero(d *layerDraft, off, n int64) {
	d.t.Helper()
	if err := d.in.WriteZeroes(d.t.Context(), off, n, block.MayTrim); err != nil {
		d.t.Fatal(err)
	}
}

func TestIngestFollowsTheEndOfTheDisk(t *testing.T) {
	for _, tt := range []struct {
		name  string
		sizes []int64
	}{
		{"grows inside its last cluster", []int64{10*ingestCluster + 512, 10*ingestCluster + 1024}},
		{"grows by clusters", []int64{10*ingestCluster + 512, 20*ingestCluster + 512}},
		{"shrinks into a cluster", []int64{10 * ingestCluster, 5*ingestCluster + 512}},
		{"shrinks and grows again", []int64{10 * ingestCluster, 5*ingestCluster + 512, 10 * ingestCluster}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			parent := ""
			want := randomBytes(1, int(tt.sizes[0]))
			for i, size := range tt.sizes {
				d := newDraft(t, filepath.Join(dir, string(rune('a'+i))), draftOptions{size: size, parent: parent})
				if i == 0 {
					d.write(want, 0)
				}
				want = append(want, make([]byte, max(0, size-int64(len(want))))...)[:size]
				d.finish()
				verifyLayer(t, d.path)
				parent = d.path
				p := openParent(t, parent)
				v, err := image.NewVerified(p.chain, p.digests)
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, size)
				if err := v.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("disk of %d bytes: got other bytes than written (%v)", size, err)
				}
			}
		})
	}
}

func TestIngestDigestsAgreeWithRacingWrites(t *testing.T) {
	const size = 32*ingestCluster + 512
	dir := t.TempDir()
	full := newDraft(t, filepath.Join(dir, "full"), draftOptions{size: size})
	full.write(randomBytes(9, size), 0)
	full.finish()
	d := newDraft(t, filepath.Join(dir, "incr"), draftOptions{size: size, parent: full.path})
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(g, 1))
			for range 150 {
				off := r.Int64N(size)
				n := 1 + r.Int64N(min(4*ingestCluster, size-off))
				if r.IntN(2) == 0 {
					off, n = off/ingestCluster*ingestCluster, min(2*ingestCluster, size-off/ingestCluster*ingestCluster)
				}
				var err error
				if r.IntN(4) == 0 {
					err = d.in.WriteZeroes(t.Context(), off, n, block.MayTrim)
				} else {
					err = d.in.WriteAt(t.Context(), randomBytes(r.Uint64N(4), int(n)), off)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	d.finish()
	verifyLayer(t, d.path)
}

func TestIngestPassesTheDeviceSuite(t *testing.T) {
	const size = 300*ingestCluster + 512
	for _, compress := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "compressed"}[compress], func(t *testing.T) {
			blocktest.Run(t, func(t *testing.T) blocktest.Subject {
				dir := t.TempDir()
				full := newDraft(t, filepath.Join(dir, "full"), draftOptions{size: size})
				base := randomBytes(1, size)
				clear(base[50*ingestCluster : 90*ingestCluster])
				full.write(base, 0)
				full.finish()
				d := newDraft(t, filepath.Join(dir, "incr"), draftOptions{size: size, parent: full.path, compress: compress})
				t.Cleanup(func() { d.finish(); verifyLayer(t, d.path) })
				return blocktest.Subject{Device: d.in, Content: base}
			})
		})
	}
}

func TestVerifiedPassesTheDeviceSuite(t *testing.T) {
	const size = 300*ingestCluster + 512
	blocktest.Run(t, func(t *testing.T) blocktest.Subject {
		full := newDraft(t, filepath.Join(t.TempDir(), "full"), draftOptions{size: size})
		base := randomBytes(1, size)
		clear(base[50*ingestCluster : 90*ingestCluster])
		full.write(base, 0)
		full.finish()
		p := openParent(t, full.path)
		v, err := image.NewVerified(p.chain, p.digests)
		if err != nil {
			t.Fatal(err)
		}
		return blocktest.Subject{Device: v, Content: base}
	})
}

func TestVerifiedGivesAnErrorInsteadOfWrongBytes(t *testing.T) {
	const size = 16 * ingestCluster
	dir := t.TempDir()
	full := newDraft(t, filepath.Join(dir, "full"), draftOptions{size: size})
	full.write(randomBytes(1, size), 0)
	full.finish()
	p := openParent(t, full.path)
	loc, err := p.chain.Locate(t.Context(), nil, 5*ingestCluster, 1)
	if err != nil {
		t.Fatal(err)
	}
	flip(t, full.path, loc[0].Off+77)
	v, err := image.NewVerified(p.chain, p.digests)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	for _, r := range []block.Range{{Off: 0, Len: size}, {Off: 5*ingestCluster + 1, Len: 10}} {
		err := v.ReadAt(context.Background(), b[:r.Len], r.Off)
		var damage *image.DamageError
		if !errors.Is(err, syscall.EIO) || !errors.As(err, &damage) || damage.Cluster != 5 || damage.File != full.path {
			t.Errorf("read %v: got %v, want damage of cluster 5", r, err)
		}
	}
	if err := v.ReadAt(t.Context(), b[:ingestCluster], 4*ingestCluster); err != nil {
		t.Errorf("read the cluster before: %v", err)
	}
}

func flip(t testing.TB, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

func TestIngestFilesPassQemu(t *testing.T) {
	requires.Tool(t, "qemu-img")
	const size = 100*ingestCluster + 512
	dir := t.TempDir()
	full := newDraft(t, filepath.Join(dir, "full"), draftOptions{size: size, compress: true})
	full.write(bytes.Repeat([]byte("compressible"), size/12), 0)
	full.finish()
	d := newDraft(t, filepath.Join(dir, "incr"), draftOptions{size: size, parent: full.path})
	d.write(randomBytes(1, 9*ingestCluster+5), 3*ingestCluster)
	d.finish()
	for _, path := range []string{full.path, d.path} {
		if out, err := exec.Command("qemu-img", "check", path).CombinedOutput(); err != nil {
			t.Errorf("qemu-img check %s: %v\n%s", filepath.Base(path), err, out)
		}
	}
}
