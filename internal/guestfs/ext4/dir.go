package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

const (
	direntSize  = 8 // bytes before the name
	maxName     = 255
	tailSize    = 12 // bytes at the end of a block that hold its checksum
	tailType    = 0xde
	maxBadParts = 64 // of a directory, before the rest is given up
)

// dirent is an entry of a directory ("Directory Entries" in the kernel's
// documentation).
type dirent struct {
	inode uint32
	kind  byte // 0: not known
	name  []byte
}

var direntTypes = [...]fs.FileMode{
	fs.ModeIrregular, 0, fs.ModeDir, fs.ModeDevice | fs.ModeCharDevice, fs.ModeDevice, fs.ModeNamedPipe, fs.ModeSocket, fs.ModeSymlink,
}

// mode returns the type of what an entry stands for.
func (d dirent) mode() fs.FileMode {
	if int(d.kind) < len(direntTypes) {
		return direntTypes[d.kind]
	}
	return fs.ModeIrregular
}

// dirents calls yield for the entries in b but "." and "..", until it returns false.
func (s *superblock) dirents(b []byte, yield func(dirent) bool) error {
	for len(b) > 0 {
		if len(b) < direntSize {
			return corruptf("an entry goes past the end of its block")
		}
		length, nameLen := s.recLen(b), int(le.Uint16(b[6:]))
		d := dirent{inode: le.Uint32(b)}
		if nameLen > maxName { // else the upper byte is none, whatever the features say
			nameLen &= 0xff
			d.kind = b[7]
		}
		if length < direntSize+nameLen || length%4 != 0 || length > len(b) {
			return corruptf("an entry takes %d bytes of %d, with a name of %d", length, len(b), nameLen)
		}
		d.name = b[direntSize : direntSize+nameLen]
		b = b[length:]
		if d.inode == 0 || string(d.name) == "." || string(d.name) == ".." {
			continue
		}
		if nameLen == 0 || bytes.IndexByte(d.name, '/') >= 0 || bytes.IndexByte(d.name, 0) >= 0 {
			return corruptf("the name %q cannot be", d.name)
		}
		if d.inode > s.inodes || s.reserved(d.inode) || d.inode == rootInode {
			return corruptf("%q is said to be inode %d", d.name, d.inode)
		}
		if !yield(d) {
			return errStop
		}
	}
	return nil
}

// errStop says that no more is asked for.
var errStop = errors.New("stop")

// recLen returns the length of an entry. Of blocks of 64 KiB it has bits where
// multiples of four have none.
func (s *superblock) recLen(b []byte) int {
	n := int(le.Uint16(b[4:]))
	if s.blockSize < 64<<10 {
		return n
	}
	if n == 0xffff || n == 0 {
		return int(s.blockSize)
	}
	return n&^3 | n&3<<16
}

// directory returns the inode of a directory whose names can be read.
func (f *fileSystem) directory(id fsys.ID) (*inode, error) { return f.content(id, typeDir) }

// ReadDir implements fsys.FileSystem. What cannot be read is left out, and told of
// when the rest has been yielded.
func (f *fileSystem) ReadDir(id fsys.ID, yield func(fsys.Entry) bool) error {
	in, err := f.directory(id)
	if err != nil {
		return err
	}
	return f.eachDirent(in, func(d dirent) bool {
		return yield(fsys.Entry{Name: string(d.name), ID: fsys.ID(d.inode), Type: d.mode()})
	})
}

// eachDirent calls yield for all entries of a directory, until it returns false.
func (f *fileSystem) eachDirent(in *inode, yield func(dirent) bool) error {
	if in.has(flagInlineData) {
		return f.inlineDirents(in, yield)
	}
	var first error
	bad, stopped := 0, false
	failed := func(err error) bool {
		if first == nil {
			first = fmt.Errorf("directory %d: %w", in.number, err)
		}
		bad++
		return bad < maxBadParts
	}
	err := f.eachRun(in, 0, f.blocks(in), func(r run) bool {
		if r.at == 0 {
			return failed(corruptf("there is nothing at block %d", r.first))
		}
		for i := range r.n {
			err := f.blockDirents(in, r.first+i, r.at+i, yield)
			stopped = errors.Is(err, errStop)
			if stopped || err != nil && !failed(err) {
				return false
			}
		}
		return true
	})
	if stopped {
		return nil
	}
	if first != nil {
		return first
	}
	return err
}

// blockDirents calls yield for the entries of block n of a directory, which lies at
// a block of the volume.
func (f *fileSystem) blockDirents(in *inode, n, at uint64, yield func(dirent) bool) error {
	b, err := f.readBlock(at)
	if err != nil {
		return err
	}
	isIndex := f.super.indexed(in) && (n == 0 || f.super.recLen(b) == len(b))
	if isIndex {
		if f.super.checksums() {
			_, err = f.super.parseIndex(in, b)
		}
	} else {
		err = f.super.checkTail(in, b)
	}
	if err == nil {
		err = f.super.dirents(b, yield)
	}
	if err != nil && !errors.Is(err, errStop) {
		return fmt.Errorf("block %d: %w", n, err)
	}
	return err
}

// checkTail checks the checksum of a block of entries.
func (s *superblock) checkTail(in *inode, b []byte) error {
	if !s.checksums() {
		return nil
	}
	tail := b[len(b)-tailSize:]
	if le.Uint32(tail) != 0 || le.Uint16(tail[4:]) != tailSize || tail[6] != 0 || tail[7] != tailType {
		return corruptf("there is no checksum")
	}
	if got, want := crc32c(in.seed, b[:len(b)-tailSize]), le.Uint32(tail[8:]); got != want {
		return corruptf("the checksum is 0x%x instead of 0x%x", got, want)
	}
	return nil
}

// inlineDirents calls yield for the entries that are kept in the inode: after the
// number of the parent in the area for the map of blocks, and as an attribute.
func (f *fileSystem) inlineDirents(in *inode, yield func(dirent) bool) error {
	rest, ok, err := in.inlineData()
	if err == nil && !ok {
		err = corruptf("the entries in its inode are missing")
	}
	for _, part := range [][]byte{in.block()[4:], rest} {
		if err == nil {
			err = f.super.dirents(part, yield)
		}
	}
	if err == nil || errors.Is(err, errStop) {
		return nil
	}
	return fmt.Errorf("directory %d: %w", in.number, err)
}

// Lookup implements fsys.FileSystem.
func (f *fileSystem) Lookup(dir fsys.ID, name string) (fsys.ID, error) {
	in, err := f.directory(dir)
	if err != nil {
		return 0, err
	}
	missing := fmt.Errorf("%q in directory %d: %w", name, dir, fs.ErrNotExist)
	if name == "" || len(name) > maxName {
		return 0, missing
	}
	if f.super.has(incompatCaseFold) && in.has(flagCaseFold) {
		return f.lookupFolded(in, name, missing)
	}
	if f.super.indexed(in) {
		if id, ok := f.lookupIndexed(in, []byte(name)); ok {
			if id == 0 {
				return 0, missing
			}
			return fsys.ID(id), nil
		}
	}
	return f.scan(in, name, missing)
}

// scan looks for a name among all.
func (f *fileSystem) scan(in *inode, name string, missing error) (fsys.ID, error) {
	var found fsys.ID
	err := f.eachDirent(in, func(d dirent) bool {
		if string(d.name) == name {
			found = fsys.ID(d.inode)
		}
		return found == 0
	})
	if found != 0 {
		return found, nil
	}
	if err != nil {
		return 0, err
	}
	return 0, missing
}
