package xfs

import (
	"bytes"
	"fmt"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Magic numbers of blocks with names, by version (Block Directories, Leaf
// Directories).
const (
	magicDirBlock   = 0x58443242 // XD2B: with its own index
	magicDirBlockV5 = 0x58444233 // XDB3
	magicDirData    = 0x58443244 // XD2D
	magicDirDataV5  = 0x58444433 // XDD3
)

// Places in the data fork of a directory, in bytes: names, then their index.
const (
	dirLeafAt = 32 << 30
	dirUnused = 0xffff // begins what is not in use in a block with names
)

// entryTypes are the types of files in entries.
var entryTypes = [...]fs.FileMode{
	fs.ModeIrregular, 0, fs.ModeDir, fs.ModeDevice | fs.ModeCharDevice, fs.ModeDevice, fs.ModeNamedPipe, fs.ModeSocket, fs.ModeSymlink,
}

func entryType(t uint8) fs.FileMode {
	if int(t) < len(entryTypes) {
		return entryTypes[t]
	}
	return fs.ModeIrregular
}

// dirEntry is an entry as it lies in a directory.
type dirEntry struct {
	name []byte
	ino  uint64
	kind uint8
}

// directory reads one directory. It is not for concurrent use.
type directory struct {
	fs   *FS
	in   *inode
	fork *fork // nil: in the inode
	buf  raw   // of a block with names
	at   uint64
	read uint64 // blocks of the file system
}

func (f *FS) directory(id fsys.ID) (*directory, error) {
	in, err := f.inode(uint64(id))
	if err != nil {
		return nil, err
	}
	if !in.isDir() {
		return nil, fmt.Errorf("inode %d is not a directory: %w", id, fs.ErrInvalid)
	}
	d := &directory{fs: f, in: in}
	if in.format == formatLocal {
		return d, nil
	}
	if in.size > dirLeafAt {
		return nil, corrupt("inode %d: directory of %d bytes", in.ino, in.size)
	}
	if err := f.pending.refused(in.ino); err != nil {
		return nil, err
	}
	d.fork, err = f.dataFork(in)
	return d, err
}

// ReadDir implements fsys.FileSystem.
func (f *FS) ReadDir(id fsys.ID, yield func(fsys.Entry) bool) error {
	d, err := f.directory(id)
	if err != nil {
		return err
	}
	return d.each(func(e dirEntry) bool {
		if dots(e.name) {
			return true
		}
		return yield(fsys.Entry{Name: string(e.name), ID: fsys.ID(e.ino), Type: entryType(e.kind)})
	})
}

func dots(name []byte) bool { return string(name) == "." || string(name) == ".." }

// each calls yield for each entry until it returns false.
func (d *directory) each(yield func(dirEntry) bool) error {
	if d.fork == nil {
		return d.short(yield)
	}
	per := uint64(1) << d.fs.dirLog
	end := (uint64(d.in.size) + uint64(d.fs.blockSize()) - 1) >> d.fs.blockLog
	for off := uint64(0); off < end; {
		r, err := d.fork.find(off)
		if err != nil {
			return err
		}
		if r.hole {
			off = (r.off + r.n + per - 1) / per * per
			continue
		}
		if err := d.account(); err != nil {
			return err
		}
		b, stop, err := d.names(off)
		if err != nil {
			return err
		}
		more, err := d.block(b, stop, yield)
		if err != nil || !more {
			return err
		}
		off += per
	}
	return nil
}

// short reads a directory that lies in its inode (Shortform Directories).
func (d *directory) short(yield func(dirEntry) bool) error {
	b := d.in.data[:d.in.size]
	if len(b) < 6 {
		return corrupt("inode %d: directory of %d bytes", d.in.ino, len(b))
	}
	count, wide, width := int(b[0]), b[1] != 0, 4
	if wide {
		width, count = 8, int(max(b[0], b[1]))
	}
	b = b[min(2+width, len(b)):]
	typeLen := 0
	if d.fs.fileTypes {
		typeLen = 1
	}
	for range count {
		if len(b) < 3 || len(b) < 3+int(b[0])+typeLen+width {
			return corrupt("inode %d: directory ends inside of an entry", d.in.ino)
		}
		n := int(b[0])
		e := dirEntry{name: b[3 : 3+n]}
		if typeLen != 0 {
			e.kind = b[3+n]
		}
		at := 3 + n + typeLen
		if wide {
			e.ino = b.u64(at)
		} else {
			e.ino = uint64(b.u32(at))
		}
		b = b[at+width:]
		if err := d.sane(e); err != nil {
			return err
		}
		if !yield(e) {
			return nil
		}
	}
	return nil
}

// sane checks an entry.
func (d *directory) sane(e dirEntry) error {
	if len(e.name) == 0 || bytes.ContainsAny(e.name, "/\x00") {
		return corrupt("inode %d: an entry is called %q", d.in.ino, e.name)
	}
	if _, ok := d.fs.inodeAt(e.ino); !ok {
		return corrupt("inode %d: entry %q is of inode %d", d.in.ino, e.name, e.ino)
	}
	return nil
}

// names reads the block with names that begins with block off of the fork. It
// returns where the names end, in bytes: before an index, or with the block.
func (d *directory) names(off uint64) (b raw, stop int, err error) {
	if d.buf != nil && d.at == off {
		return d.buf, d.stop(d.buf), nil
	}
	b, d.buf = d.buf, nil
	if b == nil {
		b = make(raw, d.fs.dirSize())
	}
	at, replayed, err := d.fork.read(b, off)
	if err != nil {
		return nil, 0, err
	}
	single, data := uint32(magicDirBlock), uint32(magicDirData)
	if d.fs.v5 {
		single, data = magicDirBlockV5, magicDirDataV5
	}
	if m := b.u32(0); m != data && (m != single || off != 0) {
		return nil, 0, corrupt("inode %d: no names in block %d of the directory", d.in.ino, off)
	}
	if d.fs.v5 {
		if err := d.fs.sane(b, headerDir, at, d.in.ino, replayed); err != nil {
			return nil, 0, err
		}
	}
	if stop = d.stop(b); stop < d.head() {
		return nil, 0, corrupt("inode %d: directory with an index of %d entries", d.in.ino, b.u32(len(b)-8))
	}
	d.buf, d.at = b, off
	return b, stop, nil
}

// account bounds what is read of a directory by what it takes on the volume.
func (d *directory) account() error {
	if d.read += 1 << d.fs.dirLog; d.read > d.in.blocks {
		return corrupt("inode %d: more blocks than the directory has", d.in.ino)
	}
	return nil
}

// head is how long the header of a block with names is, in bytes.
func (d *directory) head() int {
	if d.fs.v5 {
		return 64
	}
	return 16
}

// single returns whether a block with names has its own index.
func (d *directory) single(b raw) bool {
	return b.u32(0) == magicDirBlock || b.u32(0) == magicDirBlockV5
}

// stop returns where the names of a block end; less than none if it is wrong.
func (d *directory) stop(b raw) int {
	if !d.single(b) {
		return len(b)
	}
	count := b.u32(len(b) - 8)
	if uint64(count) > uint64(len(b))/8 {
		return -1
	}
	return len(b) - 8 - 8*int(count)
}

// block reads the entries of a block with names, up to stop. It returns whether
// yield wants more.
func (d *directory) block(b raw, stop int, yield func(dirEntry) bool) (more bool, err error) {
	for at := d.head(); at < stop; {
		if stop-at >= 8 && b.u16(at) == dirUnused {
			n := int(b.u16(at + 2))
			if n < 8 || n%8 != 0 || n > stop-at {
				return false, corrupt("inode %d: %d bytes not in use at %d of %d", d.in.ino, n, at, stop)
			}
			at += n
			continue
		}
		e, n, err := d.entry(b[:stop], at)
		if err != nil {
			return false, err
		}
		if !yield(e) {
			return false, nil
		}
		at += n
	}
	return true, nil
}

// entry decodes the entry at a byte of a block with names, and returns how long
// it is.
func (d *directory) entry(b raw, at int) (dirEntry, int, error) {
	typeLen := 0
	if d.fs.fileTypes {
		typeLen = 1
	}
	if len(b)-at < 16 {
		return dirEntry{}, 0, corrupt("inode %d: an entry at %d of %d", d.in.ino, at, len(b))
	}
	name := int(b[at+8])
	n := (8 + 1 + name + typeLen + 2 + 7) &^ 7
	if n > len(b)-at || int(b.u16(at+n-2)) != at {
		return dirEntry{}, 0, corrupt("inode %d: an entry of %d bytes at %d of %d", d.in.ino, n, at, len(b))
	}
	e := dirEntry{name: b[at+9 : at+9+name], ino: b.u64(at)}
	if typeLen != 0 {
		e.kind = b[at+9+name]
	}
	return e, n, d.sane(e)
}
