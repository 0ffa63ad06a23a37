package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// Info describes an image file, in the manner of qemu-img info.
type Info struct {
	Path          string `json:"path"`
	Format        string `json:"format"`         // "qcow2" or "raw"
	VirtualBytes  int64  `json:"virtual_bytes"`  // length of the disk
	FileBytes     int64  `json:"file_bytes"`     // length of the file
	OccupiedBytes int64  `json:"occupied_bytes"` // what the file takes on its file system

	QCOW2 *InfoQCOW2 `json:"qcow2,omitempty"` // nil for raw
}

// InfoQCOW2 is what Info says of a QCOW2 file.
type InfoQCOW2 struct {
	Version       int        `json:"version"` // 2 or 3
	Compat        string     `json:"compat"`  // the version as qemu-img calls it: "0.10" or "1.1"
	ClusterBytes  int64      `json:"cluster_bytes"`
	Compression   string     `json:"compression"` // "zlib" or "zstd"
	RefcountBits  int        `json:"refcount_bits"`
	ExtendedL2    bool       `json:"extended_l2"`
	LazyRefcounts bool       `json:"lazy_refcounts"`
	Dirty         bool       `json:"dirty"`   // refcounts may be inconsistent
	Corrupt       bool       `json:"corrupt"` // marked as corrupt
	BackingFile   string     `json:"backing_file,omitempty"`
	BackingFormat string     `json:"backing_format,omitempty"`
	DataFile      string     `json:"data_file,omitempty"`
	DataFileRaw   bool       `json:"data_file_raw,omitempty"`
	Snapshots     []Snapshot `json:"snapshots,omitempty"`
	Bitmaps       []Bitmap   `json:"bitmaps,omitempty"`
}

// Snapshot is an internal snapshot of a QCOW2 file.
type Snapshot struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	Taken        time.Time `json:"taken"`
	VMStateBytes int64     `json:"vm_state_bytes"`
	VirtualBytes int64     `json:"virtual_bytes"` // 0: as the file's
}

// Bitmap is a persistent bitmap of a QCOW2 file.
type Bitmap struct {
	Name         string `json:"name"`
	Granularity  int64  `json:"granularity"` // bytes for each bit
	Auto         bool   `json:"auto"`        // records all writes
	Inconsistent bool   `json:"inconsistent"`
}

// Bounds of the tables that ReadInfo reads whole, as QEMU has them
// (block/qcow2.h, block/qcow2-bitmap.c).
const (
	maxSnapshotTable   = 64 << 20
	maxSnapshotExtra   = 1024
	maxBitmapDirectory = 64 << 20
	maxBitmaps         = 65535
)

// ReadInfo describes the file at path: a QCOW2 file, or a raw image if it does
// not begin with the QCOW2 magic. It opens no other file. A QCOW2 file whose
// tables of snapshots or bitmaps are damaged gives an error that wraps ErrCorrupt.
func ReadInfo(path string) (Info, error) {
	f, err := openRegular(path)
	if err != nil {
		return Info{}, fmt.Errorf("read image info: %w", err)
	}
	defer f.Close()
	in, err := readInfo(path, f)
	if err != nil {
		return Info{}, fmt.Errorf("read info of image %s: %w", path, err)
	}
	return in, nil
}

func readInfo(path string, f *os.File) (Info, error) {
	st, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	in := Info{Path: path, Format: formatRaw, VirtualBytes: st.Size(), FileBytes: st.Size()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		in.OccupiedBytes = sys.Blocks * 512
	}
	h, err := ReadHeader(f)
	if errors.Is(err, ErrNotQCOW2) {
		return in, nil
	}
	if err != nil {
		return Info{}, err
	}
	in.Format, in.VirtualBytes = formatQCOW2, h.Size
	in.QCOW2 = describe(h)
	if in.QCOW2.Snapshots, err = h.readSnapshots(f); err != nil {
		return Info{}, err
	}
	if in.QCOW2.Bitmaps, err = h.readBitmaps(f); err != nil {
		return Info{}, err
	}
	return in, nil
}

func describe(h *Header) *InfoQCOW2 {
	return &InfoQCOW2{
		Version:       int(h.Version),
		Compat:        map[uint32]string{2: "0.10", 3: "1.1"}[h.Version],
		ClusterBytes:  h.ClusterSize(),
		Compression:   h.Compression.String(),
		RefcountBits:  1 << h.RefcountOrder,
		ExtendedL2:    h.hasExtendedL2(),
		LazyRefcounts: h.Compatible&CompatLazyRefcounts != 0,
		Dirty:         h.Incompatible&IncompatDirty != 0,
		Corrupt:       h.Incompatible&IncompatCorrupt != 0,
		BackingFile:   h.BackingFile,
		BackingFormat: h.BackingFormat(),
		DataFile:      h.DataFile(),
		DataFileRaw:   h.Autoclear&AutoclearRawData != 0,
	}
}

// readSnapshots reads the snapshot table (qcow2.txt, "Snapshots").
func (h *Header) readSnapshots(r io.ReaderAt) ([]Snapshot, error) {
	be := binary.BigEndian
	var list []Snapshot
	var fixed [56]byte
	for off, end := h.SnapshotsOffset, h.SnapshotsOffset+maxSnapshotTable; len(list) < int(h.Snapshots); {
		if err := readTable(r, fixed[:40], off, "snapshot table"); err != nil {
			return nil, err
		}
		idLen, nameLen := int64(be.Uint16(fixed[12:])), int64(be.Uint16(fixed[14:]))
		extra := int64(be.Uint32(fixed[36:]))
		if extra > maxSnapshotExtra || off+40+extra+idLen+nameLen > end {
			return nil, corrupt("snapshot %d takes %d bytes of extra data", len(list)+1, extra)
		}
		s := Snapshot{
			Taken:        time.Unix(int64(be.Uint32(fixed[16:])), int64(be.Uint32(fixed[20:]))).UTC(),
			VMStateBytes: int64(be.Uint32(fixed[32:])),
		}
		b := make([]byte, extra+idLen+nameLen)
		if err := readTable(r, b, off+40, "snapshot table"); err != nil {
			return nil, err
		}
		if extra >= 8 {
			s.VMStateBytes = int64(be.Uint64(b))
		}
		if extra >= 16 {
			s.VirtualBytes = int64(be.Uint64(b[8:]))
		}
		s.ID, s.Name = string(b[extra:extra+idLen]), string(b[extra+idLen:])
		list = append(list, s)
		off += (40 + int64(len(b)) + 7) &^ 7
	}
	return list, nil
}

// readBitmaps reads the bitmap directory (qcow2.txt, "Bitmaps"). Without the
// autoclear bit nothing that the extension says can be relied on: no bitmap is
// listed then.
func (h *Header) readBitmaps(r io.ReaderAt) ([]Bitmap, error) {
	be := binary.BigEndian
	ext := h.extension(extBitmaps)
	if ext == nil || h.Autoclear&AutoclearBitmaps == 0 {
		return nil, nil
	}
	if len(ext) != 24 {
		return nil, corrupt("bitmaps extension of %d bytes", len(ext))
	}
	count, size, off := be.Uint32(ext), be.Uint64(ext[8:]), int64(be.Uint64(ext[16:]))
	if count > maxBitmaps || size > maxBitmapDirectory || off < 0 {
		return nil, corrupt("bitmap directory of %d entries in %d bytes at %d", count, size, off)
	}
	var list []Bitmap
	var fixed [24]byte
	for end := off + int64(size); len(list) < int(count); {
		if off > end-int64(len(fixed)) {
			return nil, corrupt("bitmap directory ends after %d of %d entries", len(list), count)
		}
		if err := readTable(r, fixed[:], off, "bitmap directory"); err != nil {
			return nil, err
		}
		flags, granularity := be.Uint32(fixed[12:]), fixed[17]
		extra, nameLen := int64(be.Uint32(fixed[20:])), int64(be.Uint16(fixed[18:]))
		off += int64(len(fixed))
		if granularity > 62 || extra+nameLen > end-off {
			return nil, corrupt("bitmap %d has granularity 2^%d, a name of %d bytes and %d bytes of extra data",
				len(list)+1, granularity, nameLen, extra)
		}
		name := make([]byte, nameLen)
		if err := readTable(r, name, off+extra, "bitmap directory"); err != nil {
			return nil, err
		}
		list = append(list, Bitmap{
			Name:         string(name),
			Granularity:  1 << granularity,
			Inconsistent: flags&1 != 0,
			Auto:         flags&2 != 0,
		})
		off = (off + extra + nameLen + 7) &^ 7
	}
	return list, nil
}

// readTable fills b from r at off; the file has to be that long.
func readTable(r io.ReaderAt, b []byte, off int64, what string) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return corrupt("%s at %d lies beyond the end of the file", what, off)
	}
	return fmt.Errorf("read %s: %w", what, err)
}
