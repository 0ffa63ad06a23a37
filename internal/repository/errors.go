package repository

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Errors that all repositories return, wrapped, for conditions a user can act on.
var (
	// ErrNoVM says that the repository has no such machine.
	ErrNoVM = errors.New("no such virtual machine")
	// ErrAmbiguous says that several machines have the name; use the UUID.
	ErrAmbiguous = errors.New("several virtual machines have that name")
	// ErrNoPoint says that the machine has no such point.
	ErrNoPoint = errors.New("no such point")
	// ErrNoDisk says that the point has no such disk.
	ErrNoDisk = errors.New("no such disk")
	// ErrNoNote says that the point has no such note.
	ErrNoNote = errors.New("no such note")
	// ErrInvalid says that no repository takes such a name, key, size or option.
	ErrInvalid = errors.New("not possible")
	// ErrLocked says that somebody else is writing. A LockedError says who.
	ErrLocked = errors.New("locked")
	// ErrCorrupt says that something stored is damaged. A CorruptError says what.
	ErrCorrupt = errors.New("stored data are damaged")
	// ErrReadOnly says that the repository cannot be written.
	ErrReadOnly = errors.New("repository is read-only")
	// ErrTooNew says that a newer version of the program wrote a record.
	ErrTooNew = errors.New("record has a newer format than this program knows")
	// ErrNoSpace says that an operation would need more room than there is.
	ErrNoSpace = errors.New("not enough room")
)

// LockedError says who holds a lock. It is ErrLocked.
type LockedError struct {
	What   string    // "VM web1", "repository /backups"
	Holder string    // the job, or the program
	PID    int       // of the process, 0 if unknown
	Since  time.Time // zero if unknown
}

// Error names what is locked and the holder.
func (e *LockedError) Error() string {
	holder := e.Holder
	if holder == "" {
		holder = "another program"
	}
	if e.PID != 0 {
		holder += fmt.Sprintf(" (pid %d)", e.PID)
	}
	if strings.HasPrefix(e.What, "VM ") {
		return fmt.Sprintf("%s is being written by %s", e.What, holder)
	}
	return fmt.Sprintf("%s is in use by %s", e.What, holder)
}

// Is reports whether target is ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// CorruptError says what stored data are damaged. It is ErrCorrupt.
type CorruptError struct {
	VM      VMID
	Name    string  // of the machine, "" if unknown
	Point   PointID // "" if no point in particular
	Disk    string  // key, "" if no disk in particular
	Cluster int64   // number; -1 if no cluster in particular
	File    string
	Err     error
}

// Error names the machine, the point, the disk and the cluster, as far as known.
func (e *CorruptError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "VM %s", e.VM)
	if e.Name != "" {
		fmt.Fprintf(&b, " (%s)", e.Name)
	}
	if e.Point != "" {
		fmt.Fprintf(&b, ", point %s", e.Point)
	}
	if e.Disk != "" {
		fmt.Fprintf(&b, ", disk %s", e.Disk)
	}
	if e.Cluster >= 0 {
		fmt.Fprintf(&b, ", cluster %d", e.Cluster)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

// Is reports whether target is ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Err }
