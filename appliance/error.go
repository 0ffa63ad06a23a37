package appliance

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
)

// Code says what kind of failure an [Error] is. HTTP statuses (package api) and
// exit codes (package internal/cli) each come from one table over the codes.
type Code string

// The codes.
const (
	CodeInternal    Code = "internal"    // a bug or a failure of the machine
	CodeInvalid     Code = "invalid"     // the request makes no sense
	CodeNotFound    Code = "not_found"   // a VM, disk, point, export, job or file is not there
	CodeBusy        Code = "busy"        // somebody else is at it
	CodeCorrupt     Code = "corrupt"     // stored data is damaged
	CodeUnproven    Code = "unproven"    // a point did not prove that it boots
	CodeUnreachable Code = "unreachable" // the source or the control plane does not answer
	CodeDenied      Code = "denied"      // permission is missing, or the repository is read-only
	CodeNoSpace     Code = "no_space"    // the disk is full
	CodeCancelled   Code = "cancelled"   // somebody cancelled it
	CodeInterrupted Code = "interrupted" // the process at it died, or the connection broke
)

// Error is what the product tells its user: a code for programs, a sentence and
// a hint for people, and the cause for the log.
type Error struct {
	Code Code
	Msg  string // a sentence: what is wrong
	Hint string // a sentence: what to do about it
	Err  error  // the cause, may be nil
	// Guest says that something is wrong in the guest's own file systems: the point is
	// what the guest had, and all else in it can be read.
	Guest bool
}

// Error returns the sentence and, where the sentence alone would hide it, the
// cause.
func (e *Error) Error() string {
	if e.Msg == "" && e.Err != nil {
		return e.Err.Error()
	}
	return e.Msg
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// AsError returns err as an [Error]: itself if it is one, or else one with the
// code that its causes suggest. It returns nil for nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	e = &Error{Code: CodeInternal, Msg: err.Error(), Err: err}
	switch {
	case errors.Is(err, context.Canceled):
		e.Code, e.Hint = CodeCancelled, "Start it again when you want it."
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Code, e.Hint = CodeNoSpace, "Free space on the repository's file system, or delete points, and start again."
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		e.Code, e.Hint = CodeDenied, "Run as a user who may do this, or check the permissions and mount options of the path."
	case errors.Is(err, fs.ErrNotExist):
		e.Code, e.Hint = CodeNotFound, "Check the path."
	}
	return e
}
