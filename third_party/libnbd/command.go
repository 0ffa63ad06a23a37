package libnbd

// #include "callbacks.h"
import "C"

import (
	"runtime/cgo"
	"unsafe"
)

func bytesPointer(b []byte) unsafe.Pointer {
	if len(b) == 0 {
		var none [1]byte
		return unsafe.Pointer(&none)
	}
	return unsafe.Pointer(unsafe.SliceData(b))
}

// PreadOptargs are the optional arguments of Pread.
type PreadOptargs struct {
	FlagsSet bool // whether Flags counts
	Flags    CmdFlag
}

// Pread reads len(buf) bytes.
func (h *Libnbd) Pread(buf []byte, offset uint64, optargs *PreadOptargs) error {
	var flags C.uint32_t
	if optargs != nil && optargs.FlagsSet {
		flags = C.uint32_t(optargs.Flags)
	}
	return h.call("pread", func(c *C.struct_nbd_handle) bool {
		return C.nbd_pread(c, bytesPointer(buf), C.size_t(len(buf)), C.uint64_t(offset), flags) != -1
	})
}

// PwriteOptargs are the optional arguments of Pwrite.
type PwriteOptargs struct {
	FlagsSet bool // whether Flags counts
	Flags    CmdFlag
}

// Pwrite writes buf.
func (h *Libnbd) Pwrite(buf []byte, offset uint64, optargs *PwriteOptargs) error {
	var flags C.uint32_t
	if optargs != nil && optargs.FlagsSet {
		flags = C.uint32_t(optargs.Flags)
	}
	return h.call("pwrite", func(c *C.struct_nbd_handle) bool {
		return C.nbd_pwrite(c, bytesPointer(buf), C.size_t(len(buf)), C.uint64_t(offset), flags) != -1
	})
}

// FlushOptargs are the optional arguments of Flush.
type FlushOptargs struct {
	FlagsSet bool // whether Flags counts
	Flags    CmdFlag
}

// Flush makes completed writes durable.
func (h *Libnbd) Flush(optargs *FlushOptargs) error {
	var flags C.uint32_t
	if optargs != nil && optargs.FlagsSet {
		flags = C.uint32_t(optargs.Flags)
	}
	return h.call("flush", func(c *C.struct_nbd_handle) bool {
		return C.nbd_flush(c, flags) != -1
	})
}

// TrimOptargs are the optional arguments of Trim.
type TrimOptargs struct {
	FlagsSet bool // whether Flags counts
	Flags    CmdFlag
}

// Trim says that a range is not needed.
func (h *Libnbd) Trim(count uint64, offset uint64, optargs *TrimOptargs) error {
	var flags C.uint32_t
	if optargs != nil && optargs.FlagsSet {
		flags = C.uint32_t(optargs.Flags)
	}
	return h.call("trim", func(c *C.struct_nbd_handle) bool {
		return C.nbd_trim(c, C.uint64_t(count), C.uint64_t(offset), flags) != -1
	})
}

// ZeroOptargs are the optional arguments of Zero.
type ZeroOptargs struct {
	FlagsSet bool // whether Flags counts
	Flags    CmdFlag
}

// Zero zeroes a range.
func (h *Libnbd) Zero(count uint64, offset uint64, optargs *ZeroOptargs) error {
	var flags C.uint32_t
	if optargs != nil && optargs.FlagsSet {
		flags = C.uint32_t(optargs.Flags)
	}
	return h.call("zero", func(c *C.struct_nbd_handle) bool {
		return C.nbd_zero(c, C.uint64_t(count), C.uint64_t(offset), flags) != -1
	})
}

// BlockStatusOptargs are the optional arguments of BlockStatus.
type BlockStatusOptargs struct {
	FlagsSet bool // whether Flags counts
	Flags    CmdFlag
}

// BlockStatus calls extent for each metadata context asked for, with its extents from offset
// on; the server may stop short of count.
func (h *Libnbd) BlockStatus(count uint64, offset uint64, extent ExtentCallback, optargs *BlockStatusOptargs) error {
	var flags C.uint32_t
	if optargs != nil && optargs.FlagsSet {
		flags = C.uint32_t(optargs.Flags)
	}
	return h.call("block_status", func(c *C.struct_nbd_handle) bool {
		return C.nbd_block_status(c, C.uint64_t(count), C.uint64_t(offset),
			C.golibnbd_extent(C.uintptr_t(cgo.NewHandle(extent))), flags) != -1
	})
}
