package capture

import (
	"context"
	"errors"

	"github.com/sendense/sendense/block"
)

// DigestSize is the length of a [Digest] in bytes.
const DigestSize = 32

// Digest is the digest of one cluster's content, by the target's algorithm.
type Digest [DigestSize]byte

// ErrCancelled says that somebody cancelled the draft at the target. What wraps
// it says who and why.
var ErrCancelled = errors.New("capture was cancelled")

// Target takes what a capture reads. The control plane is one, through its API.
type Target interface {
	// Begin opens a draft of the next point of a machine. It fails, naming who is
	// at it, when the machine has a writer already.
	Begin(ctx context.Context, b Begin) (Draft, error)
}

// Begin describes a draft to be opened.
type Begin struct {
	VM       VM
	Source   string // kind of source
	Full     bool   // begin a new chain even though there is a point to build on
	Compress string // "", or "zstd" with an optional level: "zstd:9"
}

// Draft is a point in the making. Nothing of it is visible before Commit.
type Draft interface {
	// JobID names the job that the draft belongs to.
	JobID() string
	// PointID names the point that Commit will make, as in file names:
	// yyyymmdd-hhmmss, UTC.
	PointID() string
	// Parent describes the point that the draft builds on; nil for a full.
	Parent() *Parent
	// AddDisk opens the draft of one disk.
	AddDisk(ctx context.Context, d DiskSpec) (DraftDisk, error)
	// Report tells the target how far the capture is. Progress is advice: errors
	// are ignored but for ErrCancelled, by which a capture that only reads learns
	// that its draft was cancelled.
	Report(ctx context.Context, p Progress) error
	// Commit makes the point, of all disks or none. The draft is over either way.
	Commit(ctx context.Context, r Result) error
	// Abort discards the draft; why is what the job records.
	Abort(ctx context.Context, why error) error
}

// Parent is what a draft builds on.
type Parent struct {
	PointID string
	Disks   []ParentDisk
}

// ParentDisk is one disk of the parent point.
type ParentDisk struct {
	Key   string
	Size  int64  // bytes
	Token string // change token kept with the point, "" for none
}

// DiskSpec describes a disk to be added to a draft.
type DiskSpec struct {
	Key  string
	Size int64 // bytes
}

// DraftDisk is one disk of a draft.
type DraftDisk interface {
	// Device takes the disk's content: it is a Writer, Zeroer and Flusher, and
	// reads as what the committed disk would read as: the parent's content where
	// nothing was written.
	Device() block.Device
	// ClusterSize is the unit of digests and of storage, in bytes, a power of two.
	ClusterSize() int64
	// Sum returns the digest of a whole cluster by the target's algorithm. A last
	// cluster that the disk ends in the middle of is padded with zeroes.
	Sum(cluster []byte) Digest
	// Differs reports for each cluster from first on, whose digests sums are,
	// whether it differs from the parent's. Clusters that the parent does not
	// have differ.
	Differs(ctx context.Context, first int64, sums []Digest) ([]bool, error)
	// Close ends the use of the device; the draft keeps what was written.
	Close() error
}

// Progress says how far a capture is.
type Progress struct {
	Phase string // "prepare", "read", "audit", "compare", "commit"
	Disk  string // key of the disk at hand, "" between disks
	Done  int64  // bytes done of Total
	Total int64  // bytes to go through, as far as known
}

// Result is what the capture knows of a finished point.
type Result struct {
	Config Config
	Disks  []DiskResult
}

// Modes in which a disk was captured.
const (
	ModeFull    = "full"    // everything that is not zero
	ModeTracked = "tracked" // what the source's change tracking named
	ModeCompare = "compare" // everything read and hashed, what differs sent
)

// DiskResult is what the capture knows of one disk.
type DiskResult struct {
	Key    string `json:"key"`
	Size   int64  `json:"size"`             // bytes
	Token  string `json:"token,omitempty"`  // change token of the instant, "" for none
	Mode   string `json:"mode"`             // ModeFull, ModeTracked or ModeCompare
	Reason string `json:"reason,omitempty"` // why it was compared, a lower-case clause; else ""
	Read   int64  `json:"read"`             // bytes read from the source
	Sent   int64  `json:"sent"`             // bytes of data sent to the target
	Audit  *Audit `json:"audit,omitempty"`  // of a tracked disk
}

// Audit is the outcome of checking a source's change tracking against samples.
type Audit struct {
	Unchanged int64 `json:"unchanged"` // clusters that the tracker called unchanged
	Sampled   int64 `json:"sampled"`   // of those, how many were read and compared
	Missed    int64 `json:"missed"`    // of those, how many had changed after all
	// MissRateBound is the upper bound, with 95 % confidence, on the share of the
	// unchanged clusters that had changed after all, before any were healed.
	MissRateBound float64 `json:"miss_rate_bound"`
	// Healed is how many clusters the whole compare after a miss found changed.
	Healed int64 `json:"healed"`
}
