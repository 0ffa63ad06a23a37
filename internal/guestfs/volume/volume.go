// Package volume finds whatever on the disks of a machine may hold a file system:
// partitions, logical volumes, arrays, encrypted containers, and these inside one
// another. It reads the structures itself and activates nothing, so that what a
// guest calls its volumes never meets what its host calls its own.
//
// It never writes, and takes nothing that it reads for granted: every number is
// checked before it is used, every chain is bounded, and what cannot be read is
// told by name. It knows nothing of the file systems but their magic numbers.
package volume

import (
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Disk is a disk of a machine.
type Disk struct {
	Index  int    // its number, which Locate returns
	Key    string // its name in the result of a scan
	Device string // what its machine calls it, such as vda; empty: not known
	Volume fsys.Volume
}

// Options say how to look. The zero value is the default.
type Options struct {
	// Keys are tried on every LUKS container; default none. What they unlock is
	// added to them.
	Keys *Keys
	// KeyMemoryBytes is what deriving a key from a passphrase may take; default
	// DefaultKeyMemory.
	KeyMemoryBytes int64
}

// Kind says what a node is.
type Kind string

// Kinds of nodes.
const (
	KindDisk      Kind = "disk"
	KindPartition Kind = "partition"
	KindGroup     Kind = "volume group"   // of LVM; its children are the logical volumes
	KindLogical   Kind = "logical volume" // of LVM
	KindArray     Kind = "array"          // of md
	KindCrypt     Kind = "crypt"          // the inside of a LUKS container
)

// Node is a part of a disk, or made of parts of disks.
type Node struct {
	// Path is unique in the result of a scan: vda, vda/p1, vg0/root, md127,
	// vg0/root/crypt. Where two groups, arrays or disks have the same name, the
	// later one's is followed by "@" and the start of its UUID.
	Path string
	Name string // last part of Path
	Kind Kind
	Size int64 // bytes; of a group, that of its physical volumes
	// Disk is the Index of the disk that it lies on; the first one of what lies on
	// several.
	Disk int

	// Table is the partition table that the node holds: gpt, dos or, refused, bsd,
	// mac, sun, sgi; empty if there is none. TableUUID is its identifier.
	Table, TableUUID string
	// Type is what the node holds, as blkid calls it: ext4, crypto_LUKS,
	// LVM2_member, swap; empty if it is not known.
	Type string
	// Also has what else is recognised there: iso9660 beside udf, what was left over
	// when the volume was put to another use.
	Also []string
	// Label and UUID are those of what it holds.
	Label, UUID string
	// ID is the identifier of a logical volume, a group, an array or the container
	// around an inside, as its own tools print it.
	ID string

	// Span is set where what it holds lies on several volumes.
	Span      *Span
	Partition *Partition // of a partition
	// PartOf is the Path of the array or group that it is a part of.
	PartOf string
	// Locked says that it is a container of LUKS which a passphrase may unlock, and
	// none that was given did.
	Locked bool
	// Refusal says in a sentence why Volume is nil or what it holds cannot be read
	// here; empty if neither is so.
	Refusal string
	// Err is what kept the node from being looked at, if it could not be read.
	Err error
	// Notes say, each in a sentence, what an operator should know.
	Notes []string
	// Volume is the content, nil if it cannot be read. It is a [Located] unless
	// there is a container of LUKS around it.
	Volume   fsys.Volume
	Children []*Node

	depth int
}

// Span says which part of a file system on several volumes a node holds. UUID, of the
// node, is that of the file system.
type Span struct {
	UUID   string // of the part
	Number uint64
	Count  uint64 // of parts, more than one
}

// Partition is an entry of a partition table.
type Partition struct {
	Number   int    // from 1; logical ones of DOS from 5
	Start    int64  // first byte
	Size     int64  // bytes, as the table has it
	TypeID   string // a GUID in lower case, or 0x83
	TypeName string // empty if the type is not known
	Label    string // GPT only
	UUID     string // as blkid prints it
	Active   bool   // marked for booting, DOS only
}

// Walk calls visit for each node of the list and below, parents first, until it
// returns false.
func Walk(nodes []*Node, visit func(*Node) bool) bool {
	for _, n := range nodes {
		if !visit(n) || !Walk(n.Children, visit) {
			return false
		}
	}
	return true
}

func (n *Node) refuse(why string) {
	if n.Refusal == "" {
		n.Refusal = why
	}
}

func (n *Node) note(what string) { n.Notes = append(n.Notes, what) }
