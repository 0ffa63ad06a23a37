package btrfs

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// overlay is a Volume with some blocks changed.
type overlay struct {
	fsys.Volume
	blocks map[int64][]byte
}

func (v overlay) ReadAt(p []byte, off int64) error {
	err := v.Volume.ReadAt(p, off)
	for at, b := range v.blocks {
		if from, to := max(at, off), min(at+int64(len(b)), off+int64(len(p))); from < to {
			copy(p[from-off:to-off], b[from-at:])
		}
	}
	return err
}

// superAt returns a copy of the superblock at a place of a volume.
func superAt(t *testing.T, v fsys.Volume, at int64) []byte {
	t.Helper()
	b := make([]byte, superSize)
	if err := v.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b
}

func resealed(b []byte) []byte {
	copy(b, checksums[0].sum(b[32:]))
	return b
}

func TestTheBestSuperblockIsUsed(t *testing.T) {
	vol := fstest.Open(t, fstest.Make(t, 256<<20, "mkfs.btrfs", "-q", "-L", "sound"))
	first, second := superOffsets[0], superOffsets[1]
	labelled := func(at int64, label string, generation int) []byte {
		b := superAt(t, vol, at)
		copy(b[299:], label)
		binary.LittleEndian.PutUint64(b[72:], uint64(int(le64(b[72:]))+generation))
		return resealed(b)
	}
	broken := superAt(t, vol, first)
	broken[3000]++
	other := labelled(second, "other", 0)
	other[33]++
	for _, c := range []struct {
		name   string
		blocks map[int64][]byte
		label  string
		note   string
	}{
		{"the first of equals", map[int64][]byte{second: labelled(second, "other", 0)}, "sound", ""},
		{"a copy in place of a damaged one", map[int64][]byte{first: broken, second: labelled(second, "other", 0)}, "other", "is damaged"},
		{"an older copy in place of a damaged one", map[int64][]byte{first: broken, second: labelled(second, "other", -1)}, "other", "is damaged"},
		{"a newer copy", map[int64][]byte{second: labelled(second, "other", 1)}, "other", "is older"},
		{"not one of another file system", map[int64][]byte{second: resealed(other)}, "sound", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, notes, err := readSuper(overlay{vol, c.blocks})
			if err != nil {
				t.Fatal(err)
			}
			if s.label != c.label || (c.note == "") != (notes == nil) || notes != nil && !strings.Contains(notes[0], c.note) {
				t.Errorf("got %q, notes %q, want %q, %q", s.label, notes, c.label, c.note)
			}
		})
	}
	if _, err := Open(overlay{vol, map[int64][]byte{first: broken, second: make([]byte, superSize)}}); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("without a sound superblock: got %v, want ErrCorrupt", err)
	}
	if _, err := Open(overlay{vol, map[int64][]byte{first: make([]byte, superSize)}}); !errors.Is(err, fsys.ErrNotFound) {
		t.Errorf("with copies only: got %v, want ErrNotFound", err)
	}
	if _, err := Open(memory(make([]byte, 1000))); !errors.Is(err, fsys.ErrNotFound) {
		t.Errorf("on a small volume: got %v, want ErrNotFound", err)
	}
}

func TestUnknownFeaturesAreRefusedByName(t *testing.T) {
	vol := fstest.Open(t, fstest.Make(t, 256<<20, "mkfs.btrfs", "-q"))
	with := func(at int, bits uint64) error {
		b := superAt(t, vol, superOffsets[0])
		binary.LittleEndian.PutUint64(b[at:], le64(b[at:])|bits)
		_, err := Open(overlay{vol, map[int64][]byte{superOffsets[0]: resealed(b)}})
		return err
	}
	const incompat, readOnly, flags = 188, 180, 56
	for bit, name := range map[int]string{12: "zoned", 13: "extent-tree-v2", 14: "raid-stripe-tree", 15: "bit 15", 17: "remap-tree", 40: "bit 40", 63: "bit 63"} {
		if err := with(incompat, 1<<bit); !errors.Is(err, fsys.ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("bit %d: got %v, want ErrUnsupported and %q", bit, err, name)
		}
	}
	for bit := range unfinished {
		if err := with(flags, bit); !errors.Is(err, fsys.ErrUnsupported) {
			t.Errorf("flag %#x: got %v, want ErrUnsupported", bit, err)
		}
	}
	// Features that change nothing for who only reads: all block groups in a tree, verity.
	if err := with(readOnly, ^uint64(0)); err != nil {
		t.Errorf("features that allow reading: got %v", err)
	}
	if err := with(incompat, 1<<16); err != nil {
		t.Errorf("simple quotas: got %v", err)
	}
}
