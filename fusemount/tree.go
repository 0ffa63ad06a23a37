// Package fusemount shows trees of directories, files, links and devices through
// FUSE, so that a person or a program can read them like any folder.
//
// What is shown is a [Dir] and what it leads to. The one who supplies it makes
// nodes when they are asked for, so that what nobody looks at costs nothing; the
// content of a file is opened when the file is, and closed a while after its last
// user is gone. A content is a [block.Device]: what it can locate in files goes
// from page cache to the kernel by splice.
//
// The package works on Linux only. It knows nothing of formats, partitions,
// backups or machines. It never follows a symbolic link of the tree, and no mount
// of it honours set-user-ID bits or opens devices.
package fusemount

import (
	"context"
	"io/fs"
	"time"

	"github.com/sendense/sendense/block"
)

// Node is what a name in the tree stands for. What it is, its mode says; a
// directory is a [Dir], a regular file a [File], a symbolic link a [Link], and
// anything else needs to be no more than a Node. Methods may be called
// concurrently, and return errors that wrap those of [fs] where they fit:
// fs.ErrNotExist, fs.ErrPermission. Any other error is shown as one of input and
// output, and logged. Where a directory does not change the kernel keeps that a name
// is not there, so fs.ErrNotExist must say nothing else.
//
// The context of a method ends when the one who asked is gone, for example killed.
// A method that waits for long should give up then.
type Node interface {
	Attr(ctx context.Context) (Attr, error)
}

// Dir is a directory.
type Dir interface {
	Node
	// Lookup returns what a name stands for, or fs.ErrNotExist.
	Lookup(ctx context.Context, name string) (Node, error)
	// List calls yield for each entry but "." and "..", in an order that stays the
	// same while the directory does, until there are no more or yield returns
	// false. The context ends when the reader has closed the directory.
	List(ctx context.Context, yield func(Entry) bool) error
}

// File is a regular file.
type File interface {
	Node
	// Open returns the content. It is called once for all who have the file open at
	// a time.
	Open(ctx context.Context) (Content, error)
}

// Link is a symbolic link.
type Link interface {
	Node
	// Target returns what the link says, which is up to the reader's kernel to follow.
	Target(ctx context.Context) (string, error)
}

// Xattrer is implemented by nodes that may have extended attributes.
type Xattrer interface {
	// Xattrs returns the extended attributes, named as Linux names them.
	Xattrs(ctx context.Context) ([]Xattr, error)
}

// Capacity is implemented by the topmost directory if it knows how much room there
// is, for df.
type Capacity interface {
	// Capacity returns the bytes that there are, and how many of these are free.
	Capacity(ctx context.Context) (total, free int64, err error)
}

// Content is what a file holds, for as long as it is open. Its size has to be that
// of the file. Of the capabilities of a device, [block.Locator] makes reading fast,
// [block.Mapper] shows holes, and in a writable mount [block.Writer],
// [block.Zeroer] and [block.Flusher] are used.
type Content interface {
	block.Device
	// Close is called once, when nothing uses the content any more.
	Close() error
}

// ID tells the nodes of a mount apart, and nodes with two names from two nodes.
// Volume groups the nodes of one source, such as a file system in a disk; Inode is
// the number in there. Which number is shown as that of the inode follows from
// both, so that it stays the same in later mounts if they do. In volume 0 it is
// Inode itself. The zero ID is that of a node which is known by its folder and its
// name.
type ID struct {
	Volume, Inode uint64
}

// Attr are the attributes of a node. The zero time stands for one that is not
// known.
type Attr struct {
	ID                 ID
	Mode               fs.FileMode // type, permissions, set-uid, set-gid, sticky
	UID, GID           uint32
	Links              uint32 // default 1
	Size               int64  // bytes
	Allocated          int64  // bytes that it takes where it is stored
	Modified, Changed  time.Time
	Accessed, Created  time.Time
	DevMajor, DevMinor uint32 // of a device
	// Changing says that these attributes, and what a directory holds, may change
	// while the tree is shown. Of nodes that do not change the kernel keeps
	// everything for as long as it has memory.
	Changing bool
}

// Entry is a name in a directory.
type Entry struct {
	Name string
	// Type holds the type bits of the mode, or fs.ModeIrregular where the directory
	// does not tell.
	Type fs.FileMode
	ID   ID // as in the node's attributes
	// Node and Attr are given where they are at hand: what is not given is looked up
	// by name, or asked of the node, once it is needed.
	Node Node
	Attr *Attr
}

// Xattr is an extended attribute.
type Xattr struct {
	Name  string // with its namespace: user.comment
	Value []byte
}
