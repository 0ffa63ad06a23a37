package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

func TestWriterKeepsTheContractOfDevices(t *testing.T) {
	for _, v := range []variant{
		{name: "alone", o: image.CreateOptions{Size: 3<<20 + 512, ClusterSize: 16 << 10}},
		{name: "over a shorter disk", o: image.CreateOptions{Size: 3 << 20}, backing: 1<<20 + 512},
		{name: "with subclusters", o: image.CreateOptions{Size: 3 << 20, ExtendedL2: true}, backing: 4 << 20},
	} {
		t.Run(v.name, func(t *testing.T) {
			blocktest.Run(t, func(t *testing.T) blocktest.Subject {
				d := newDisk(t, newRand(1), v)
				for range 20 {
					d.step()
				}
				return blocktest.Subject{Device: d.w, Content: d.model, Reopen: func() (block.Device, error) {
					if err := d.w.Close(); err != nil {
						return nil, err
					}
					d.open()
					return d.w, nil
				}}
			})
		})
	}
}

// qemuStep has qemu-io change the closed file, and the model with it.
func (d *disk) qemuStep() {
	d.t.Helper()
	var args []string
	for range 4 {
		off, n := d.pick()
		off &^= 511
		n = min((n+511)&^511, int64(len(d.model))-off)
		fill := byte(1 + d.rng.IntN(255))
		switch d.rng.IntN(4) {
		default:
			args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", fill, off, n))
		case 2:
			fill = 0
			args = append(args, "-c", fmt.Sprintf("write -z %d %d", off, n))
		case 3:
			fill = 0
			args = append(args, "-c", fmt.Sprintf("write -z -u %d %d", off, n))
		}
		copy(d.model[off:], bytes.Repeat([]byte{fill}, int(n)))
	}
	requires.Run(d.t, "qemu-io", append(append([]string{"-f", "qcow2"}, args...), d.path)...)
}

// snapshot is an internal snapshot with what it holds.
type snapshot struct {
	name  string
	model []byte
}

func TestWriterAndQEMUTakeTurns(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	for _, v := range variants() {
		if v.fill > 0 || v.o.ClusterSize > 64<<10 {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			takeTurns(t, v)
		})
	}
}

func takeTurns(t *testing.T, v variant) {
	for seed := range seeds(t, 1) {
		d := newDisk(t, newRand(seed), v)
		var snapshots []snapshot
		for round := range 4 {
			for range 15 {
				d.step()
			}
			d.close()
			d.qemuStep()
			if round < 2 && (v.o.RefcountBits == 0 || v.o.RefcountBits > 4) {
				s := snapshot{fmt.Sprint("s", round), bytes.Clone(d.model)}
				requires.Run(t, "qemu-img", "snapshot", "-c", s.name, d.path)
				snapshots = append(snapshots, s)
			}
			checkClean(t, d.path)
			d.open()
		}
		d.close()
		checkClean(t, d.path)
		sameBytes(t, "content", content(t, d.path), d.model)
		for _, s := range snapshots {
			requires.Run(t, "qemu-img", "snapshot", "-a", s.name, d.path)
			sameBytes(t, "content of snapshot "+s.name, content(t, d.path), s.model)
			requires.Run(t, "qemu-img", "snapshot", "-d", s.name, d.path)
		}
		checkClean(t, d.path)
	}
}

func TestConcurrentWritersAgreeWithAModel(t *testing.T) {
	requires.Tool(t, "qemu-img")
	ctx := context.Background()
	for _, v := range []variant{
		{name: "alone", o: image.CreateOptions{Size: 4 << 20, ClusterSize: 4 << 10}},
		{name: "over a disk", o: image.CreateOptions{Size: 4 << 20, ClusterSize: 16 << 10}, backing: 3 << 20},
		{name: "with subclusters", o: image.CreateOptions{Size: 4 << 20, ClusterSize: 16 << 10, ExtendedL2: true}, backing: 3 << 20},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, newRand(5), v)
			// Each goroutine has every eighth piece of 1536 bytes to itself, so that
			// they meet in clusters and L2 tables.
			const piece, workers = 1536, 8
			var wg sync.WaitGroup
			for k := range int64(workers) {
				rng := newRand(uint64(k))
				wg.Go(func() {
					for range 150 {
						off := (rng.Int64N(int64(len(d.model))/piece/workers)*workers + k) * piece
						p := d.model[off : off+piece]
						var err error
						switch rng.IntN(8) {
						case 0:
							err = d.w.Flush(ctx)
						case 1:
							clear(p)
							err = d.w.WriteZeroes(ctx, off, piece, block.MayTrim)
						case 2:
							got := make([]byte, piece)
							if err = d.w.ReadAt(ctx, got, off); err == nil && !bytes.Equal(got, p) {
								err = fmt.Errorf("read at %d differs from the model", off)
							}
						case 3:
							_, err = d.w.Map(ctx, off, piece)
						default:
							scribble(rng, p)
							err = d.w.WriteAt(ctx, p, off)
						}
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			got := make([]byte, len(d.model))
			d.must(d.w.ReadAt(ctx, got, 0))
			sameBytes(t, "content", got, d.model)
			d.close()
			checkClean(t, d.path)
			sameBytes(t, "content for QEMU", content(t, d.path), d.model)
		})
	}
}

func TestConcurrentCompressionAndTrimsLeaveNoLeaks(t *testing.T) {
	requires.Tool(t, "qemu-img")
	ctx := context.Background()
	d := newDisk(t, newRand(5), variant{o: image.CreateOptions{Size: 8 << 20, ClusterSize: 64 << 10, Compression: image.Zstd}})
	var wg sync.WaitGroup
	for k := range int64(4) {
		rng := newRand(uint64(k))
		wg.Go(func() {
			for range 100 {
				off := (rng.Int64N(32)*4 + k) << 16
				p := d.model[off : off+64<<10]
				var err error
				switch rng.IntN(5) {
				case 0:
					clear(p)
					err = d.w.Trim(ctx, off, int64(len(p)))
				case 1:
					err = d.w.Flush(ctx)
				case 2:
					scribble(rng, p[100:200])
					err = d.w.WriteAt(ctx, p[100:200], off+100)
				default:
					scribble(rng, p)
					_, err = d.w.WriteCompressed(ctx, p, off)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	d.close()
	checkClean(t, d.path)
	sameBytes(t, "content", content(t, d.path), d.model)
}

func TestOpenWriterRefusesWhatItCannotWriteSafely(t *testing.T) {
	requires.Tool(t, "qemu-img")
	for _, tt := range []struct {
		name   string
		bits   uint64
		create []string
		want   error
		says   string
	}{
		{"a file marked dirty", 1, nil, image.ErrUnsupported, "qemu-img check -r all"},
		{"a file marked corrupt", 2, nil, image.ErrCorrupt, "qemu-img check -r all"},
		{"a file with an unknown feature", 1 << 40, nil, image.ErrUnsupported, "40"},
		{"a file with an external data file", 0, []string{"-o", "data_file=ext.raw"}, image.ErrUnsupported, "qemu-img convert"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			requires.Run(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, tt.create...), "disk.qcow2", "1M")...)
			patch(t, "disk.qcow2", 72, func(e uint64) uint64 { return e | tt.bits })
			w, err := image.OpenWriter("disk.qcow2", image.WriterOptions{})
			if err == nil {
				w.Close()
			}
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("open: got %v, want %v that says %q", err, tt.want, tt.says)
			}
		})
	}
}

func TestOpenWriterClearsAutoclearBits(t *testing.T) {
	requires.Tool(t, "qemu-img", "qemu-io")
	path := bigImage(t)
	patch(t, path, 88, func(e uint64) uint64 { return e | 1<<50 })
	w, err := image.OpenWriter(path, image.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := header(t, path).Autoclear; got != 0 {
		t.Errorf("autoclear features: got %#x, want none", got)
	}
}

func TestCreateAgreesWithQEMU(t *testing.T) {
	requires.Tool(t, "qemu-img")
	for _, v := range variants() {
		path := filepath.Join(t.TempDir(), "disk.qcow2")
		if err := image.Create(path, v.o); err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		checkClean(t, path)
		if err := image.Create(path, v.o); !errors.Is(err, os.ErrExist) {
			t.Errorf("%s: second create: got %v, want that it exists", v.name, err)
		}
	}
	for _, o := range []image.CreateOptions{
		{Size: -1}, {Size: 1 << 62, ClusterSize: 512}, {ClusterSize: 1000}, {ClusterSize: 4 << 20},
		{RefcountBits: 3}, {Version: 4}, {Version: 2, RefcountBits: 8}, {ExtendedL2: true, ClusterSize: 4096},
		{ClusterSize: 512, BackingFile: strings.Repeat("x", 600)},
	} {
		path := filepath.Join(t.TempDir(), "disk.qcow2")
		if err := image.Create(path, o); err == nil {
			t.Errorf("create with %+v: got no error", o)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("create with %+v left a file", o)
		}
	}
}

func TestRebaseChangesTheNameAndNothingElse(t *testing.T) {
	requires.Tool(t, "qemu-img")
	ctx := context.Background()
	dir := t.TempDir()
	for _, name := range []string{"base.qcow2", "a much longer name for the same thing.qcow2"} {
		if err := image.Create(filepath.Join(dir, name), image.CreateOptions{Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name         string
		make         []string
		file, format string
		want         error
	}{
		{"to a longer name", nil, "a much longer name for the same thing.qcow2", "qcow2", nil},
		{"to none", nil, "", "", nil},
		{"to a format that takes the same room", nil, "base.qcow2", "raw", nil},
		{"to a name for which there is no room", []string{"-o", "cluster_size=512"}, strings.Repeat("x", 500), "qcow2", image.ErrNoRoom},
		{"to a name that is too long", nil, strings.Repeat("x", 1024), "qcow2", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, "top.qcow2")
			requires.Run(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2"}, tt.make...), path, "1M")...)
			w, err := image.OpenWriter(path, image.WriterOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			before := header(t, path)
			for range 3 { // the old and the new name take turns
				err = w.Rebase(ctx, tt.file, tt.format)
				if tt.want != nil || len(tt.file) > 1023 {
					if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
						t.Fatalf("rebase: got %v, want %v", err, tt.want)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				h := header(t, path)
				if h.BackingFile != tt.file || tt.file != "" && h.BackingFormat() != tt.format {
					t.Errorf("got backing file %q of format %q", h.BackingFile, h.BackingFormat())
				}
				if len(h.Extensions) != len(before.Extensions) {
					t.Errorf("extensions: got %d, want %d", len(h.Extensions), len(before.Extensions))
				}
				if err := w.Rebase(ctx, "base.qcow2", "qcow2"); err != nil {
					t.Fatal(err)
				}
				checkClean(t, path)
			}
		})
	}
}

// FuzzCheck feeds Check, and a Writer on what it finds clean, hostile files.
func FuzzCheck(f *testing.F) {
	for _, v := range variants()[:3] {
		file := &memFile{}
		v.o.Size = min(v.o.Size, 1<<20)
		if err := image.FormatOn(file, v.o); err != nil {
			f.Fatal(err)
		}
		w, err := image.NewWriterOn(file, image.WriterOptions{})
		if err != nil {
			f.Fatal(err)
		}
		if err := w.WriteAt(context.Background(), bytes.Repeat([]byte{5}, 5000), 300); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(file.data, uint16(24), uint64(1<<20))
		f.Add(file.data, uint16(40), uint64(512))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint16, v uint64) {
		if len(b) > 1<<20 {
			return
		}
		b = bytes.Clone(b)
		if int(at)+8 <= len(b) {
			binary.BigEndian.PutUint64(b[at:], v)
		}
		ctx := context.Background()
		r, err := image.CheckOn(ctx, &memFile{data: b}, 64)
		if err != nil {
			return
		}
		one, err := image.CheckOn(ctx, &memFile{data: b}, 1<<20)
		if err != nil || one.Corruptions != r.Corruptions || one.Leaks != r.Leaks {
			t.Fatalf("windows of different size: got %+v and %+v, %v", r, one, err)
		}
		file := &memFile{data: b}
		w, err := image.NewWriterOn(file, image.WriterOptions{})
		if err != nil || w.Size() == 0 {
			return
		}
		if err := w.WriteAt(ctx, []byte{1}, w.Size()-1); err != nil {
			return
		}
		if err := w.Close(); err != nil || !r.Clean() {
			return
		}
		// What was counted behind the end of the file shows as leaked once the file
		// reaches so far.
		if r, err = image.CheckOn(ctx, file, 1<<20); err != nil || r.Corruptions > 0 {
			t.Fatalf("after a write to a clean file: %+v, %v", r, err)
		}
	})
}
