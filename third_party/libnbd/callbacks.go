package libnbd

// #include "callbacks.h"
import "C"

import (
	"runtime/cgo"
	"slices"
	"unsafe"
)

// CompletionCallback is called when a command has completed; *error is its errno
// or 0. Returning 1 retires the command, so that it need not be collected with
// AioCommandCompleted. It must not call the handle.
type CompletionCallback func(error *int) int

// ExtentCallback is called with what the server says of one metadata context
// from offset on: entries alternate between a length and its flags. Returning -1
// makes the command fail with *error. It must not call the handle.
type ExtentCallback func(metacontext string, offset uint64, entries []uint32, error *int) int

// ListCallback is called for each export that a server lists.
type ListCallback func(name string, description string) int

// ContextCallback is called for each metadata context that a server lists.
type ContextCallback func(name string) int

func optionalCompletion(set bool, f CompletionCallback) C.nbd_completion_callback {
	if !set || f == nil {
		return C.golibnbd_completion(0)
	}
	return C.golibnbd_completion(C.uintptr_t(cgo.NewHandle(f)))
}

//export golibnbdCompletion
func golibnbdCompletion(fn C.uintptr_t, error *C.int) C.int {
	e := int(*error)
	r := cgo.Handle(fn).Value().(CompletionCallback)(&e)
	*error = C.int(e)
	return C.int(r)
}

//export golibnbdExtent
func golibnbdExtent(fn C.uintptr_t, context *C.char, offset C.uint64_t, entries *C.uint32_t, n C.size_t, error *C.int) C.int {
	e := int(*error)
	own := slices.Clone(unsafe.Slice((*uint32)(entries), n))
	r := cgo.Handle(fn).Value().(ExtentCallback)(C.GoString(context), uint64(offset), own, &e)
	*error = C.int(e)
	return C.int(r)
}

//export golibnbdList
func golibnbdList(fn C.uintptr_t, name, description *C.char) C.int {
	return C.int(cgo.Handle(fn).Value().(ListCallback)(C.GoString(name), C.GoString(description)))
}

//export golibnbdContext
func golibnbdContext(fn C.uintptr_t, name *C.char) C.int {
	return C.int(cgo.Handle(fn).Value().(ContextCallback)(C.GoString(name)))
}

//export golibnbdRelease
func golibnbdRelease(fn C.uintptr_t) { cgo.Handle(fn).Delete() }
