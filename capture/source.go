// Package capture moves the changes of a virtual machine's disks from a source
// into a draft point: it asks the [Source] for a consistent instant, finds out
// what changed since the last point, and writes that, and only that, to the
// [Target].
//
// Sources live in subpackages and pass the suite in capturetest. The package
// knows nothing of repositories and of how a target stores what it is sent.
package capture

import (
	"context"
	"errors"

	"github.com/sendense/sendense/block"
)

// Errors that sources return, wrapped, for conditions a user can act on.
var (
	// ErrNoVM says that the source has no virtual machine of that name.
	ErrNoVM = errors.New("no such virtual machine")
	// ErrUnreachable says that the source itself (libvirtd, vCenter, a device)
	// cannot be reached.
	ErrUnreachable = errors.New("source cannot be reached")
	// ErrVMChanged says that the machine stopped, started or moved while it was
	// read, so that what was read is no single instant. The backup may be
	// started again.
	ErrVMChanged = errors.New("virtual machine changed state during the capture")
)

// VM is a source's word for a machine.
type VM struct {
	UUID string `json:"uuid"` // lower case, with hyphens
	Name string `json:"name"`
}

// Source is a plug-in that reads the disks of virtual machines.
type Source interface {
	// Resolve finds a machine by its name or UUID; ErrNoVM if there is none.
	Resolve(ctx context.Context, nameOrUUID string) (VM, error)
	// Begin takes an instant of all disks of the machine. The caller closes the
	// Instant. Begin also cleans up what earlier, interrupted captures left
	// behind at the source.
	Begin(ctx context.Context, vm VM, r Request) (Instant, error)
}

// Request says what the caller already has of a machine.
type Request struct {
	// Token names the instant being taken, where the source has to name it (a
	// checkpoint's name): [a-z0-9-]+, unique for the machine.
	Token string
	// Since holds for each disk key of the latest point the change token that
	// the source gave for it. Empty for a full backup.
	Since map[string]string
}

// Instant is the content of all disks of a machine at one moment, held open.
type Instant interface {
	// Disks returns the disks in the order of the machine's configuration.
	Disks() []Disk
	// Config describes the machine at that moment, for restores.
	Config() Config
	// Commit says that the instant is stored for good: the source may forget
	// everything older than its tokens. It is called at most once, before Close.
	Commit(ctx context.Context) error
	// Close gives the instant up. Without Commit the source also forgets the
	// instant's own tokens and keeps those it was asked about in Request.Since.
	Close() error
	// Err returns why the instant is no longer one (the machine stopped, started,
	// moved away, or its job was ended by somebody else), or nil. The capture
	// loop asks before it commits.
	Err() error
}

// Config is what a machine was, as far as the source can tell.
type Config struct {
	Source     string `json:"source"`     // kind of source: "libvirt", "blockdev"
	Host       string `json:"host"`       // where the machine ran
	Format     string `json:"format"`     // of Definition: "libvirt-xml", ""
	Definition string `json:"definition"` // the machine's own description
	Running    bool   `json:"running"`
	// Consistency is "application" when the guest froze its file systems for the
	// instant, "crash" when it was taken from a running guest without, "clean"
	// for a machine that was shut down.
	Consistency string `json:"consistency"`
	// Notes are sentences a user should know about the instant: why the guest was
	// not frozen, which devices were left out and why.
	Notes []string `json:"notes,omitempty"`
}

// Disk is one disk of an [Instant].
type Disk struct {
	// Key identifies the disk among those of its machine from one point to the
	// next: the target name ("vda"), or what the user called it.
	Key string
	// Device reads the disk's content. Its map, if it has one, tells data from
	// zeroes.
	Device block.Device
	// Token is the change token of this instant, to be kept with the point and
	// given back in the next Request; "" if the source tracks no changes for the
	// disk.
	Token string
	// Tracked says that Device is a block.Changer that answers what changed since
	// the token in Request.Since. Where it is false, Untracked says why.
	Tracked bool
	// Untracked is the reason in one lower-case clause, "checkpoint
	// sendense-… is missing on the host", shown to the user with the job. Empty
	// if the disk is tracked or there was no token to begin with.
	Untracked string
}
