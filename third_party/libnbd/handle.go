// Package libnbd is a client for Network Block Device servers: a binding over
// the C library of that name, with the names and signatures of its upstream Go
// binding. See libnbd(3) for what the calls do; each method is named for its C
// function (AioPread for nbd_aio_pread).
//
// A handle is one connection. The C library serialises calls on it. Methods with
// an optargs parameter take nil for no optional arguments.
package libnbd

/*
#cgo pkg-config: libnbd
#include <stdlib.h>
#include <libnbd.h>
*/
import "C"

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"
)

// Libnbd is a handle: one connection to a server.
type Libnbd struct {
	h *C.struct_nbd_handle
}

// LibnbdError is why a call did not succeed.
type LibnbdError struct {
	Op     string        // the C function without "nbd_"
	Errmsg string        // what the library says of it
	Errno  syscall.Errno // 0 if there is none
}

// Error returns the library's message with the errno, if there is one.
func (e *LibnbdError) Error() string { return e.String() }

// String returns what Error returns.
func (e *LibnbdError) String() string {
	if e.Errno == 0 {
		return fmt.Sprintf("%s: %s", e.Op, e.Errmsg)
	}
	return fmt.Sprintf("%s: %s: %s", e.Op, e.Errmsg, e.Errno.Error())
}

// Create makes a handle, not yet connected.
func Create() (*Libnbd, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := C.nbd_create()
	if c == nil {
		return nil, lastError("create")
	}
	h := &Libnbd{h: c}
	runtime.SetFinalizer(h, (*Libnbd).Close)
	return h, nil
}

// Close gives the handle up, dropping the connection without a word to the
// server and every command in flight without completing it.
//
// Mind the type: assigned to an error variable, the nil that means success is
// not a nil error.
func (h *Libnbd) Close() *LibnbdError {
	if h.h == nil {
		return closedError("close")
	}
	C.nbd_close(h.h)
	h.h = nil
	runtime.SetFinalizer(h, nil)
	return nil
}

// String identifies the type, for debugging.
func (h *Libnbd) String() string { return "&Libnbd{}" }

func closedError(op string) *LibnbdError {
	return &LibnbdError{Op: op, Errmsg: "handle is closed"}
}

// lastError takes the error of the last call, which the library keeps for each
// thread. The caller is locked to the thread that made the call.
func lastError(op string) *LibnbdError {
	return &LibnbdError{
		Op:     op,
		Errmsg: C.GoString(C.nbd_get_error()),
		Errno:  syscall.Errno(C.nbd_get_errno()),
	}
}

// call runs f, a call that says with false that it did not succeed, on the
// open handle.
func (h *Libnbd) call(op string, f func(*C.struct_nbd_handle) bool) error {
	if h.h == nil {
		return closedError(op)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ok := f(h.h)
	runtime.KeepAlive(h)
	if !ok {
		return lastError(op)
	}
	return nil
}

func (h *Libnbd) callBool(op string, f func(*C.struct_nbd_handle) C.int) (bool, error) {
	var r C.int
	err := h.call(op, func(c *C.struct_nbd_handle) bool { r = f(c); return r != -1 })
	return r > 0, err
}

func (h *Libnbd) callInt64(op string, f func(*C.struct_nbd_handle) C.int64_t) (uint64, error) {
	var r C.int64_t
	if err := h.call(op, func(c *C.struct_nbd_handle) bool { r = f(c); return r != -1 }); err != nil {
		return 0, err
	}
	return uint64(r), nil
}

func (h *Libnbd) callString(op, arg string, f func(*C.struct_nbd_handle, *C.char) C.int) error {
	s := C.CString(arg)
	defer C.free(unsafe.Pointer(s))
	return h.call(op, func(c *C.struct_nbd_handle) bool { return f(c, s) != -1 })
}

// callText is for calls that return a string which the caller frees.
func (h *Libnbd) callText(op string, f func(*C.struct_nbd_handle) *C.char) (*string, error) {
	var r *C.char
	if err := h.call(op, func(c *C.struct_nbd_handle) bool { r = f(c); return r != nil }); err != nil {
		return nil, err
	}
	defer C.free(unsafe.Pointer(r))
	s := C.GoString(r)
	return &s, nil
}
