// Package repository is the contract of a place where points live: virtual
// machines, their disks, and the points of each machine in order.
//
// A point is all disks of a machine at one time, or nothing; it is immutable once
// committed. [Repository.Begin] takes the machine's writer lock and opens a draft
// of the next point, nothing of which is visible before [Draft.Commit]. Readers
// take no lock that could hold anybody up: at every instant, also after a crash,
// each committed point can be opened, verified and read.
//
// The implementations are in subpackages and pass the suite in repositorytest. The
// package knows nothing of jobs, policies, sources of disks and HTTP.
package repository

import (
	"context"
	"encoding/json"
	"io"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
)

// Repository is a place where points live. Its methods may be called
// concurrently.
type Repository interface {
	// VMs lists the machines, by name. Machines whose record is damaged are left
	// out and named by the error, which comes beside the list of the others.
	VMs(ctx context.Context) ([]VM, error)
	// VM finds a machine by its UUID or its name. ErrNoVM if there is none,
	// ErrAmbiguous if several have the name.
	VM(ctx context.Context, nameOrUUID string) (VM, error)
	// Points lists the points of a machine, oldest first.
	Points(ctx context.Context, vm VMID) ([]Point, error)

	// Begin opens a draft of a machine's next point. It takes the machine's writer
	// lock, or fails with a LockedError that names who has it, and clears away what
	// a writer that died left behind.
	Begin(ctx context.Context, o BeginOptions) (Draft, error)
	// OpenDisk opens the disk with an index of a point as one device: also a
	// block.Mapper and a block.Changer to which older points of the same chain are
	// known by their ids, and, unless Verified, a block.Locator. ErrNoVM,
	// ErrNoPoint, ErrNoDisk.
	OpenDisk(ctx context.Context, vm VMID, point PointID, disk int, o OpenOptions) (Disk, error)
	// Verify reads every cluster of the points chosen, those that points share
	// once, and compares it with its digest; it checks the structure of each file
	// and how the files are linked. Damage goes into the report; the error is for
	// what kept it from looking.
	Verify(ctx context.Context, o VerifyOptions) (*Report, error)
	// Delete removes points. Every other point reads as before. It takes the
	// machine's writer lock. What it began and did not finish goes on when the lock
	// is taken next.
	Delete(ctx context.Context, vm VMID, points ...PointID) error
	// Usage tells what the points of a machine take.
	Usage(ctx context.Context, vm VMID) (Usage, error)

	// PutNote keeps a document about a point for as long as the point is there, in
	// place of the one of that name. A name is lower-case, with an extension:
	// "check.json". Notes are no part of the point; no lock is taken that could wait
	// for a backup. ErrNoVM, ErrNoPoint; ErrInvalid for another name or more than
	// MaxNote bytes.
	PutNote(ctx context.Context, vm VMID, point PointID, name string, content []byte) error
	// Note returns a document about a point. ErrNoVM, ErrNoPoint, ErrNoNote.
	Note(ctx context.Context, vm VMID, point PointID, name string) ([]byte, error)

	// Close gives the repository up. Drafts have to be over; open disks stay open.
	Close() error
}

// MaxNote is how long a note may be, in bytes.
const MaxNote = 16 << 20

// BeginOptions describe a draft to be opened.
type BeginOptions struct {
	VM          VMID
	Name        string // of the machine; it may differ from that of earlier points
	Full        bool   // build on nothing even if there is a point
	Compress    string // "": plain; "zlib"; "zstd", with a level of 1 to 22 as "zstd:9"
	ClusterSize int64  // of disks that begin a chain; default 64 KiB
	Holder      string // who writes, for messages: the job's name
}

// Draft is a point in the making. It is used by one goroutine at a time, its disks
// by many.
type Draft interface {
	// Point is the id that Commit will give the point. It is greater than that of
	// every point the machine ever had, also of those deleted; a machine whose last
	// point was deleted is forgotten, though.
	Point() PointID
	// Parent is the point that the draft builds on; nil for a full.
	Parent() *Point
	// AddDisk opens the draft of a disk. A disk that the parent has under the key
	// builds on it, also with another size; any other begins a chain.
	AddDisk(ctx context.Context, key string, size int64) (DraftDisk, error)
	// Commit makes the point of all disks added, or of none if it fails. The draft
	// is over either way.
	Commit(ctx context.Context, info PointInfo) (Point, error)
	// Abort discards the draft. It does nothing once the draft is over.
	Abort(ctx context.Context) error
}

// DraftDisk is one disk of a draft.
type DraftDisk interface {
	// Device takes the content. It is a block.Writer, Zeroer, Trimmer and Flusher,
	// and reads as the parent where nothing was written.
	Device() block.Device
	// Index is the disk's number in the machine.
	Index() int
	// ClusterSize is the unit of digests and of storage in bytes.
	ClusterSize() int64
	// Differs reports for each cluster from first on, whose digests sums are,
	// whether it differs from the parent's. Clusters that the parent does not have
	// differ.
	Differs(ctx context.Context, first int64, sums []image.Digest) ([]bool, error)
}

// PointInfo is what goes into the record of a point when it is committed.
type PointInfo struct {
	Job    string          // that made the point
	Source string          // kind of source
	Config json.RawMessage // the machine's configuration as the source tells it; a JSON value, up to 4 MiB
	Disks  []DiskInfo      // by key; disks without one get none of this
}

// DiskInfo is what goes into the record of one disk.
type DiskInfo struct {
	Key    string
	Token  string // change token
	Mode   string // how it was captured
	Reason string // why so
	Audit  *Audit
}

// OpenOptions say how a disk of a point is opened.
type OpenOptions struct {
	// Verified compares each cluster with its digest as it is read. A read of a
	// damaged one gives a CorruptError that wraps syscall.EIO.
	Verified bool
}

// Disk is an open disk of a point.
type Disk interface {
	block.Device
	io.Closer
}

// Usage says what the points of a machine take.
type Usage struct {
	Points    []PointUsage `json:"points"`
	FileBytes int64        `json:"file_bytes"` // of all files, as allocated
}

// PointUsage says what one point takes.
type PointUsage struct {
	Point        PointID `json:"point"`
	VirtualBytes int64   `json:"virtual_bytes"` // lengths of its disks
	DataBytes    int64   `json:"data_bytes"`    // data of its own, as the guest sees them
	StoredBytes  int64   `json:"stored_bytes"`  // what those take in the files, without tables; less if compressed
	FileBytes    int64   `json:"file_bytes"`    // what its files take, with tables and digests
	// Ratio is DataBytes by StoredBytes: what compression gains. 1 if nothing is
	// compressed, or there are no data.
	Ratio float64 `json:"ratio"`
}
