package libnbd

// #include "callbacks.h"
import "C"

import "runtime/cgo"

// AioPreadOptargs are the optional arguments of AioPread.
type AioPreadOptargs struct {
	CompletionCallbackSet bool // whether CompletionCallback counts
	CompletionCallback    CompletionCallback
	FlagsSet              bool // whether Flags counts
	Flags                 CmdFlag
}

// AioPread begins to read buf.Size bytes, and returns a cookie that
// names the command.
func (h *Libnbd) AioPread(buf AioBuffer, offset uint64, optargs *AioPreadOptargs) (uint64, error) {
	var o AioPreadOptargs
	if optargs != nil {
		o = *optargs
	}
	if !o.FlagsSet {
		o.Flags = 0
	}
	return h.callInt64("aio_pread", func(c *C.struct_nbd_handle) C.int64_t {
		return C.nbd_aio_pread(c, buf.P, C.size_t(buf.Size), C.uint64_t(offset),
			optionalCompletion(o.CompletionCallbackSet, o.CompletionCallback), C.uint32_t(o.Flags))
	})
}

// AioPwriteOptargs are the optional arguments of AioPwrite.
type AioPwriteOptargs struct {
	CompletionCallbackSet bool // whether CompletionCallback counts
	CompletionCallback    CompletionCallback
	FlagsSet              bool // whether Flags counts
	Flags                 CmdFlag
}

// AioPwrite begins to write the buffer, and returns a cookie that
// names the command.
func (h *Libnbd) AioPwrite(buf AioBuffer, offset uint64, optargs *AioPwriteOptargs) (uint64, error) {
	var o AioPwriteOptargs
	if optargs != nil {
		o = *optargs
	}
	if !o.FlagsSet {
		o.Flags = 0
	}
	return h.callInt64("aio_pwrite", func(c *C.struct_nbd_handle) C.int64_t {
		return C.nbd_aio_pwrite(c, buf.P, C.size_t(buf.Size), C.uint64_t(offset),
			optionalCompletion(o.CompletionCallbackSet, o.CompletionCallback), C.uint32_t(o.Flags))
	})
}

// AioFlushOptargs are the optional arguments of AioFlush.
type AioFlushOptargs struct {
	CompletionCallbackSet bool // whether CompletionCallback counts
	CompletionCallback    CompletionCallback
	FlagsSet              bool // whether Flags counts
	Flags                 CmdFlag
}

// AioFlush begins to make completed writes durable, and returns a cookie that
// names the command.
func (h *Libnbd) AioFlush(optargs *AioFlushOptargs) (uint64, error) {
	var o AioFlushOptargs
	if optargs != nil {
		o = *optargs
	}
	if !o.FlagsSet {
		o.Flags = 0
	}
	return h.callInt64("aio_flush", func(c *C.struct_nbd_handle) C.int64_t {
		return C.nbd_aio_flush(c,
			optionalCompletion(o.CompletionCallbackSet, o.CompletionCallback), C.uint32_t(o.Flags))
	})
}

// AioTrimOptargs are the optional arguments of AioTrim.
type AioTrimOptargs struct {
	CompletionCallbackSet bool // whether CompletionCallback counts
	CompletionCallback    CompletionCallback
	FlagsSet              bool // whether Flags counts
	Flags                 CmdFlag
}

// AioTrim begins to say that a range is not needed, and returns a cookie that
// names the command.
func (h *Libnbd) AioTrim(count uint64, offset uint64, optargs *AioTrimOptargs) (uint64, error) {
	var o AioTrimOptargs
	if optargs != nil {
		o = *optargs
	}
	if !o.FlagsSet {
		o.Flags = 0
	}
	return h.callInt64("aio_trim", func(c *C.struct_nbd_handle) C.int64_t {
		return C.nbd_aio_trim(c, C.uint64_t(count), C.uint64_t(offset),
			optionalCompletion(o.CompletionCallbackSet, o.CompletionCallback), C.uint32_t(o.Flags))
	})
}

// AioZeroOptargs are the optional arguments of AioZero.
type AioZeroOptargs struct {
	CompletionCallbackSet bool // whether CompletionCallback counts
	CompletionCallback    CompletionCallback
	FlagsSet              bool // whether Flags counts
	Flags                 CmdFlag
}

// AioZero begins to zero a range, and returns a cookie that
// names the command.
func (h *Libnbd) AioZero(count uint64, offset uint64, optargs *AioZeroOptargs) (uint64, error) {
	var o AioZeroOptargs
	if optargs != nil {
		o = *optargs
	}
	if !o.FlagsSet {
		o.Flags = 0
	}
	return h.callInt64("aio_zero", func(c *C.struct_nbd_handle) C.int64_t {
		return C.nbd_aio_zero(c, C.uint64_t(count), C.uint64_t(offset),
			optionalCompletion(o.CompletionCallbackSet, o.CompletionCallback), C.uint32_t(o.Flags))
	})
}

// AioBlockStatusOptargs are the optional arguments of AioBlockStatus.
type AioBlockStatusOptargs struct {
	CompletionCallbackSet bool // whether CompletionCallback counts
	CompletionCallback    CompletionCallback
	FlagsSet              bool // whether Flags counts
	Flags                 CmdFlag
}

// AioBlockStatus begins to ask for extents, as BlockStatus does, and returns a cookie
// that names the command.
func (h *Libnbd) AioBlockStatus(count uint64, offset uint64, extent ExtentCallback, optargs *AioBlockStatusOptargs) (uint64, error) {
	var o AioBlockStatusOptargs
	if optargs != nil {
		o = *optargs
	}
	if !o.FlagsSet {
		o.Flags = 0
	}
	return h.callInt64("aio_block_status", func(c *C.struct_nbd_handle) C.int64_t {
		return C.nbd_aio_block_status(c, C.uint64_t(count), C.uint64_t(offset),
			C.golibnbd_extent(C.uintptr_t(cgo.NewHandle(extent))),
			optionalCompletion(o.CompletionCallbackSet, o.CompletionCallback), C.uint32_t(o.Flags))
	})
}

// AioGetFd returns the file descriptor to wait on, which belongs to the library.
func (h *Libnbd) AioGetFd() (int, error) {
	var fd C.int
	err := h.call("aio_get_fd", func(c *C.struct_nbd_handle) bool { fd = C.nbd_aio_get_fd(c); return fd != -1 })
	return int(fd), err
}

// AioGetDirection returns what the library waits for: AIO_DIRECTION_READ,
// AIO_DIRECTION_WRITE, both or 0.
func (h *Libnbd) AioGetDirection() (uint, error) {
	var d C.uint
	err := h.call("aio_get_direction", func(c *C.struct_nbd_handle) bool { d = C.nbd_aio_get_direction(c); return true })
	return uint(d), err
}

// AioNotifyRead tells the library that the descriptor is readable.
func (h *Libnbd) AioNotifyRead() error {
	return h.call("aio_notify_read", func(c *C.struct_nbd_handle) bool { return C.nbd_aio_notify_read(c) != -1 })
}

// AioNotifyWrite tells the library that the descriptor is writable.
func (h *Libnbd) AioNotifyWrite() error {
	return h.call("aio_notify_write", func(c *C.struct_nbd_handle) bool { return C.nbd_aio_notify_write(c) != -1 })
}

// AioCommandCompleted reports whether a command has completed and, if so,
// retires it; its error if it completed with one.
func (h *Libnbd) AioCommandCompleted(cookie uint64) (bool, error) {
	return h.callBool("aio_command_completed", func(c *C.struct_nbd_handle) C.int {
		return C.nbd_aio_command_completed(c, C.uint64_t(cookie))
	})
}

// AioPeekCommandCompleted returns the cookie of a command that has completed and
// is not retired, 0 if none has; an error if no command is in flight either.
func (h *Libnbd) AioPeekCommandCompleted() (uint64, error) {
	return h.callInt64("aio_peek_command_completed", func(c *C.struct_nbd_handle) C.int64_t {
		return C.nbd_aio_peek_command_completed(c)
	})
}

// AioInFlight returns how many commands are not retired.
func (h *Libnbd) AioInFlight() (uint, error) {
	var n C.int
	err := h.call("aio_in_flight", func(c *C.struct_nbd_handle) bool { n = C.nbd_aio_in_flight(c); return n != -1 })
	return uint(max(n, 0)), err
}

// Poll waits until something moves or timeout milliseconds have passed, -1 for
// ever. It returns 1, or 0 after the timeout.
func (h *Libnbd) Poll(timeout int) (uint, error) {
	var n C.int
	err := h.call("poll", func(c *C.struct_nbd_handle) bool { n = C.nbd_poll(c, C.int(timeout)); return n != -1 })
	return uint(max(n, 0)), err
}
