// Package fsys is the contract between the readers of guest file systems and
// whoever walks them: inodes by number, entries by name, content by offset.
//
// A reader works on a [Volume], never writes, and takes nothing it reads for
// granted: whatever is on the disk, a method returns an answer or an error, after
// a bounded number of reads, with bounded memory. That is why no method takes a
// context: who waits too long ends the process that the reader runs in. It knows
// nothing of partitions, processes, backups or paths.
package fsys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// Volume is what a file system lies on: a disk, a partition, a logical volume.
type Volume interface {
	// ReadAt fills p from byte off. It returns an error if it cannot fill all of
	// p. It may be called concurrently.
	ReadAt(p []byte, off int64) error
	// Size returns the length in bytes.
	Size() int64
}

// CheckRange returns an error unless n bytes from off lie within size.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size-n {
		return fmt.Errorf("read %d bytes at %d of %d: %w", n, off, size, io.ErrUnexpectedEOF)
	}
	return nil
}

// Errors that say what is wrong with a file system. They are wrapped with what
// was found where.
var (
	// ErrNotFound says that a volume does not hold the file system asked for.
	ErrNotFound = errors.New("no such file system here")
	// ErrCorrupt says that what was read contradicts itself or its checksum.
	ErrCorrupt = errors.New("file system is damaged")
	// ErrUnsupported says that the reader would have to guess: it names a feature.
	ErrUnsupported = errors.New("not supported")
	// ErrVolume says that the volume could not be read, which is no fault of what is
	// on it.
	ErrVolume = errors.New("the disk cannot be read there")
)

// ID is the number of an inode, which a reader chooses. It stays the same for as
// long as the volume does, and tells hard links of one file apart from files.
type ID uint64

// FileSystem is a file system open for reading. Its methods may be called
// concurrently. They return fs.ErrNotExist where there is no such thing, and
// what says ErrCorrupt or ErrUnsupported above.
type FileSystem interface {
	// Info describes the file system and the state it is in.
	Info() Info
	// Root returns the topmost directory.
	Root() ID
	// Stat returns the attributes of an inode.
	Stat(id ID) (Attr, error)
	// Lookup returns the inode that name stands for in a directory, by the rules
	// of the file system for case.
	Lookup(dir ID, name string) (ID, error)
	// ReadDir calls yield for each entry of a directory but "." and "..", in the
	// order of the disk, until there are no more or yield returns false.
	ReadDir(dir ID, yield func(Entry) bool) error
	// Readlink returns the target of a symbolic link, unchanged.
	Readlink(id ID) (string, error)
	// Xattrs returns the extended attributes as Linux names them.
	Xattrs(id ID) ([]Xattr, error)
	// Extents returns where the content of a file lies in [off, off+n), cut at its
	// size, in order and without gaps. It may return fewer than there are, but at
	// least one where anything is left of the file.
	Extents(id ID, off, n int64) ([]Extent, error)
	// ReadAt fills p with the content of a file from off. Like io.ReaderAt it
	// returns io.EOF with what there is where the file ends.
	ReadAt(id ID, p []byte, off int64) (int, error)
}

// Info is what a file system says of itself.
type Info struct {
	Type      string // as the kernel or blkid calls it: ext4, xfs, btrfs, ntfs, vfat, exfat, iso9660
	Label     string
	UUID      string // as blkid prints it; empty if there is none
	BlockSize int64  // unit of allocation, in bytes
	Size      int64  // bytes that it manages
	Free      int64  // bytes of these that are not in use, as recorded; -1: not known
	// Notes say, each in a sentence, what an operator should know: that it was not
	// unmounted, that its journal was replayed in memory or was not, that it has
	// recorded errors. Nil for one that was unmounted in order.
	Notes []string
	// FoldsCase says that names differing in case only are the same.
	FoldsCase bool
}

// Attr are the attributes of an inode. Times that a file system does not keep are
// the zero time.
type Attr struct {
	Mode                       fs.FileMode // type, permissions, set-uid, set-gid, sticky
	UID, GID                   uint32
	Links                      uint32
	Size                       int64 // bytes of content; length of the target of a link
	Allocated                  int64 // bytes that it takes on the volume
	Modified, Changed, Created time.Time
	Accessed                   time.Time
	Major, Minor               uint32 // of a device
	// Flags are the file system's own, such as "compressed" or "encrypted".
	Flags []string
}

// Entry is a name in a directory. Type holds the type bits of a mode, or
// [fs.ModeIrregular] where the directory does not tell.
type Entry struct {
	Name string
	ID   ID
	Type fs.FileMode
}

// Xattr is an extended attribute.
type Xattr struct {
	Name  string // with its namespace: user.comment
	Value []byte
}

// Kind says how the bytes of an extent can be had.
type Kind uint8

const (
	// Hole reads as zeroes.
	Hole Kind = iota
	// Data lies on the volume as it is.
	Data
	// Opaque has to be read through the file system: compressed, inline, encrypted.
	Opaque
)

// Extent is a run of a file's content.
type Extent struct {
	Kind Kind
	Off  int64 // in the file
	Len  int64 // bytes, more than none
	At   int64 // of Data: byte of the volume
}
