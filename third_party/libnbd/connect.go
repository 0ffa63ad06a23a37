package libnbd

// #include <stdlib.h>
// #include "callbacks.h"
import "C"

import "runtime/cgo"

// ConnectUri connects as the URI says, through to the export unless SetOptMode.
func (h *Libnbd) ConnectUri(uri string) error {
	return h.callString("connect_uri", uri, func(c *C.struct_nbd_handle, s *C.char) C.int {
		return C.nbd_connect_uri(c, s)
	})
}

// AioConnectUri begins to connect as the URI says.
func (h *Libnbd) AioConnectUri(uri string) error {
	return h.callString("aio_connect_uri", uri, func(c *C.struct_nbd_handle, s *C.char) C.int {
		return C.nbd_aio_connect_uri(c, s)
	})
}

// ShutdownOptargs are the optional arguments of Shutdown.
type ShutdownOptargs struct {
	FlagsSet bool // whether Flags counts
	Flags    Shutdown
}

// Shutdown waits for the commands in flight, says good-bye and disconnects.
func (h *Libnbd) Shutdown(optargs *ShutdownOptargs) error {
	var flags C.uint32_t
	if optargs != nil && optargs.FlagsSet {
		flags = C.uint32_t(optargs.Flags)
	}
	return h.call("shutdown", func(c *C.struct_nbd_handle) bool { return C.nbd_shutdown(c, flags) != -1 })
}

// AioDisconnectOptargs are the optional arguments of AioDisconnect.
type AioDisconnectOptargs struct {
	FlagsSet bool // whether Flags counts
	Flags    CmdFlag
}

// AioDisconnect sends the command that ends the connection.
func (h *Libnbd) AioDisconnect(optargs *AioDisconnectOptargs) error {
	var flags C.uint32_t
	if optargs != nil && optargs.FlagsSet {
		flags = C.uint32_t(optargs.Flags)
	}
	return h.call("aio_disconnect", func(c *C.struct_nbd_handle) bool {
		return C.nbd_aio_disconnect(c, flags) != -1
	})
}

// OptGo chooses the export, in option mode.
func (h *Libnbd) OptGo() error {
	return h.call("opt_go", func(c *C.struct_nbd_handle) bool { return C.nbd_opt_go(c) != -1 })
}

// OptAbort ends negotiation and the connection, in option mode.
func (h *Libnbd) OptAbort() error {
	return h.call("opt_abort", func(c *C.struct_nbd_handle) bool { return C.nbd_opt_abort(c) != -1 })
}

// OptInfo asks about the export without choosing it, in option mode.
func (h *Libnbd) OptInfo() error {
	return h.call("opt_info", func(c *C.struct_nbd_handle) bool { return C.nbd_opt_info(c) != -1 })
}

// OptList calls list for each export and returns how many there are, in option
// mode.
func (h *Libnbd) OptList(list ListCallback) (uint, error) {
	var n C.int
	err := h.call("opt_list", func(c *C.struct_nbd_handle) bool {
		n = C.nbd_opt_list(c, C.golibnbd_list(C.uintptr_t(cgo.NewHandle(list))))
		return n != -1
	})
	return uint(max(n, 0)), err
}

// OptListMetaContext calls context for each metadata context of the export that
// matches those asked for, all if none was, and returns how many there are.
func (h *Libnbd) OptListMetaContext(context ContextCallback) (uint, error) {
	var n C.int
	err := h.call("opt_list_meta_context", func(c *C.struct_nbd_handle) bool {
		n = C.nbd_opt_list_meta_context(c, C.golibnbd_context(C.uintptr_t(cgo.NewHandle(context))))
		return n != -1
	})
	return uint(max(n, 0)), err
}

// AioOptAbort begins to end negotiation and the connection.
func (h *Libnbd) AioOptAbort() error {
	return h.call("aio_opt_abort", func(c *C.struct_nbd_handle) bool { return C.nbd_aio_opt_abort(c) != -1 })
}

// AioOptInfoOptargs are the optional arguments of AioOptInfo.
type AioOptInfoOptargs struct {
	CompletionCallbackSet bool // whether CompletionCallback counts
	CompletionCallback    CompletionCallback
}

// AioOptInfo begins to ask about the export.
func (h *Libnbd) AioOptInfo(optargs *AioOptInfoOptargs) error {
	var o AioOptInfoOptargs
	if optargs != nil {
		o = *optargs
	}
	return h.call("aio_opt_info", func(c *C.struct_nbd_handle) bool {
		return C.nbd_aio_opt_info(c, optionalCompletion(o.CompletionCallbackSet, o.CompletionCallback)) != -1
	})
}

// AioOptListOptargs are the optional arguments of AioOptList.
type AioOptListOptargs struct {
	CompletionCallbackSet bool // whether CompletionCallback counts
	CompletionCallback    CompletionCallback
}

// AioOptList begins to list the exports.
func (h *Libnbd) AioOptList(list ListCallback, optargs *AioOptListOptargs) error {
	var o AioOptListOptargs
	if optargs != nil {
		o = *optargs
	}
	return h.call("aio_opt_list", func(c *C.struct_nbd_handle) bool {
		return C.nbd_aio_opt_list(c, C.golibnbd_list(C.uintptr_t(cgo.NewHandle(list))),
			optionalCompletion(o.CompletionCallbackSet, o.CompletionCallback)) != -1
	})
}

// AioOptListMetaContextOptargs are the optional arguments of
// AioOptListMetaContext.
type AioOptListMetaContextOptargs struct {
	CompletionCallbackSet bool // whether CompletionCallback counts
	CompletionCallback    CompletionCallback
}

// AioOptListMetaContext begins to list the export's metadata contexts.
func (h *Libnbd) AioOptListMetaContext(context ContextCallback, optargs *AioOptListMetaContextOptargs) (uint, error) {
	var o AioOptListMetaContextOptargs
	if optargs != nil {
		o = *optargs
	}
	var n C.int
	err := h.call("aio_opt_list_meta_context", func(c *C.struct_nbd_handle) bool {
		n = C.nbd_aio_opt_list_meta_context(c, C.golibnbd_context(C.uintptr_t(cgo.NewHandle(context))),
			optionalCompletion(o.CompletionCallbackSet, o.CompletionCallback))
		return n != -1
	})
	return uint(max(n, 0)), err
}

// AioIsCreated reports whether the handle has not connected yet.
func (h *Libnbd) AioIsCreated() (bool, error) {
	return h.callBool("aio_is_created", func(c *C.struct_nbd_handle) C.int { return C.nbd_aio_is_created(c) })
}

// AioIsConnecting reports whether the connection is being made.
func (h *Libnbd) AioIsConnecting() (bool, error) {
	return h.callBool("aio_is_connecting", func(c *C.struct_nbd_handle) C.int { return C.nbd_aio_is_connecting(c) })
}

// AioIsNegotiating reports whether options can be negotiated.
func (h *Libnbd) AioIsNegotiating() (bool, error) {
	return h.callBool("aio_is_negotiating", func(c *C.struct_nbd_handle) C.int { return C.nbd_aio_is_negotiating(c) })
}

// AioIsReady reports whether commands can be sent and no reply is being read.
func (h *Libnbd) AioIsReady() (bool, error) {
	return h.callBool("aio_is_ready", func(c *C.struct_nbd_handle) C.int { return C.nbd_aio_is_ready(c) })
}

// AioIsProcessing reports whether a command or reply is on its way.
func (h *Libnbd) AioIsProcessing() (bool, error) {
	return h.callBool("aio_is_processing", func(c *C.struct_nbd_handle) C.int { return C.nbd_aio_is_processing(c) })
}

// AioIsDead reports whether the connection was lost.
func (h *Libnbd) AioIsDead() (bool, error) {
	return h.callBool("aio_is_dead", func(c *C.struct_nbd_handle) C.int { return C.nbd_aio_is_dead(c) })
}

// AioIsClosed reports whether the connection was ended.
func (h *Libnbd) AioIsClosed() (bool, error) {
	return h.callBool("aio_is_closed", func(c *C.struct_nbd_handle) C.int { return C.nbd_aio_is_closed(c) })
}
