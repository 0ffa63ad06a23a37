// Package xfs reads XFS: versions 4 and 5 of its superblock, as described in "XFS
// Algorithms & Data Structures", 3rd edition, whose sections comments name. A log
// that was not emptied by an unmount is replayed in memory. It knows nothing of
// realtime devices and logs on devices of their own, and writes nothing.
package xfs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Options say how a file system is read.
type Options struct {
	CacheBytes int64 // of structures; default 16 MiB
	// IgnoreLog shows the file system as it was last written back, without what
	// only its log holds.
	IgnoreLog bool
}

// FS is an XFS file system. It implements fsys.FileSystem and fsys.Inodes.
type FS struct {
	super
	vol     fsys.Volume // content of files
	meta    fsys.Volume // structures: the volume, what was replayed over it, a cache
	replay  *overlay    // nil: nothing was replayed
	notes   []string
	free    int64 // bytes
	pending pending
}

var (
	_ fsys.FileSystem = (*FS)(nil)
	_ fsys.Inodes     = (*FS)(nil)
)

// Open opens the file system on a volume.
func Open(v fsys.Volume) (fsys.FileSystem, error) { return OpenWith(v, Options{}) }

// OpenWith opens the file system on a volume. It returns fsys.ErrNotFound if the
// volume does not begin with the magic number of XFS.
func OpenWith(v fsys.Volume, o Options) (*FS, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = 16 << 20
	}
	sb, err := readSuper(v)
	if err != nil {
		return nil, err
	}
	f := &FS{super: *sb, vol: v, free: int64(sb.freeBlocks) << sb.blockLog}
	f.describe()
	f.recover(o)
	f.meta = fsys.Cached(f.meta, o.CacheBytes)
	in, err := f.inode(f.rootInode)
	if err != nil {
		return nil, fmt.Errorf("read the root directory: %w", err)
	}
	if !in.isDir() {
		return nil, corrupt("the root of the file system, inode %d, is not a directory", f.rootInode)
	}
	return f, nil
}

// recover replays the log, if that is necessary and possible, and sets meta.
func (f *FS) recover(o Options) {
	f.meta = f.vol
	if o.IgnoreLog {
		f.notes = append(f.notes, "The journal was not looked at; the newest changes may be missing.")
		return
	}
	r, err := replayLog(&f.super, f.vol)
	switch {
	case err != nil:
		f.free = -1
		f.notes = append(f.notes, fmt.Sprintf("The file system was not unmounted, and its journal was not replayed, for %v; "+
			"the newest changes may be missing, and what was being changed may read wrong.", err))
	case r != nil:
		f.super, f.replay, f.meta, f.pending = *r.super, r.over, r.over, r.pending
		f.free = f.countFree()
		f.notes = append(f.notes, fmt.Sprintf("The file system was not unmounted; its journal was replayed in memory (%d transactions).", r.committed))
		f.notes = append(f.notes, r.pending.notes()...)
	}
}

// describe notes what an operator should know before anything else is read.
func (f *FS) describe() {
	if f.inProgress {
		f.notes = append(f.notes, "The file system was being made or grown, and that did not come to its end.")
	}
	if f.incompat&incompatNeedsRepair != 0 {
		f.notes = append(f.notes, "The file system is marked as needing repair (xfs_repair); Linux does not mount it before.")
	}
	if f.realtimeBlocks != 0 {
		f.notes = append(f.notes, "The file system has a realtime section; files that lie there cannot be read.")
	}
}

// Info implements fsys.FileSystem.
func (f *FS) Info() fsys.Info {
	return fsys.Info{
		Type: "xfs", Label: f.label, UUID: f.uuid.String(), BlockSize: f.blockSize(), Size: int64(f.blocks) << f.blockLog,
		Free: f.free, Notes: f.notes, FoldsCase: f.foldsCase,
	}
}

// Root implements fsys.FileSystem.
func (f *FS) Root() fsys.ID { return fsys.ID(f.rootInode) }

// maxCounted bounds how many allocation groups are asked for their free space.
const maxCounted = 1024

// countFree adds up what the allocation groups have free, in bytes: the
// superblock's counter is written at unmount only (AG Free Space Block).
func (f *FS) countFree() int64 {
	if f.groups > maxCounted {
		return -1
	}
	var total uint64
	for g := range f.groups {
		b := make(raw, 64)
		if err := f.meta.ReadAt(b, int64(g*f.groupBlocks)<<f.blockLog+int64(f.sectorSize)); err != nil || b.u32(0) != magicAGF {
			return -1
		}
		total += uint64(b.u32(48)) + uint64(b.u32(52)) + uint64(b.u32(60))
	}
	if total > f.blocks {
		return -1
	}
	return int64(total) << f.blockLog
}

// corrupt returns an error that says what contradicts itself.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", fsys.ErrCorrupt, fmt.Sprintf(format, args...))
}

// unsupported returns an error that names what cannot be read.
func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", fsys.ErrUnsupported, fmt.Sprintf(format, args...))
}

// raw are bytes of the volume, with numbers in the order of XFS. Who asks for one
// has seen to it that it is there.
type raw []byte

func (r raw) u16(at int) uint16 { return binary.BigEndian.Uint16(r[at:]) }
func (r raw) u32(at int) uint32 { return binary.BigEndian.Uint32(r[at:]) }
func (r raw) u64(at int) uint64 { return binary.BigEndian.Uint64(r[at:]) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the CRC of b with zeroes in place of the one stored at at,
// and that one (Self-Describing Metadata).
func checksum(b []byte, at int) (got, stored uint32) {
	got = crc32.Update(0, castagnoli, b[:at])
	got = crc32.Update(got, castagnoli, make([]byte, 4))
	return crc32.Update(got, castagnoli, b[at+4:]), binary.LittleEndian.Uint32(b[at:])
}

// header says where the parts of a self-describing block are, in bytes.
type header struct {
	what                     string
	crc, number, uuid, owner int
}

// The headers of version 5, by the structures that have them.
var (
	headerDir     = header{"directory block", 4, 8, 24, 40}
	headerTree    = header{"directory or attribute tree block", 12, 16, 32, 48}
	headerBtree   = header{"extent tree block", 64, 24, 40, 56}
	headerSymlink = header{"symbolic link block", 12, 40, 16, 32}
	headerRemote  = header{"attribute value block", 12, 40, 16, 32}
)

// sane checks that a block of version 5, read from byte at of the volume, is what
// it should be. Replayed is that it is not as it was written, so that its
// checksum says nothing.
func (f *FS) sane(b raw, h header, at int64, owner uint64, replayed bool) error {
	if !replayed {
		if got, want := checksum(b, h.crc); got != want {
			return corrupt("%s at byte %d: checksum %08x, recorded %08x", h.what, at, got, want)
		}
	}
	if got := b.u64(h.number); got != uint64(at)/512 {
		return corrupt("%s at byte %d says that it is at %d", h.what, at, got*512)
	}
	if [16]byte(b[h.uuid:]) != f.metaUUID {
		return corrupt("%s at byte %d is of another file system", h.what, at)
	}
	if got := b.u64(h.owner); got != owner && !(h == headerBtree && f.pending.reowned[owner]) {
		return corrupt("%s at byte %d is of inode %d, not %d", h.what, at, got, owner)
	}
	return nil
}
