package libnbd

// #include <stdlib.h>
// #include <libnbd.h>
import "C"

import "unsafe"

// GetSize returns the export's size in bytes.
func (h *Libnbd) GetSize() (uint64, error) {
	return h.callInt64("get_size", func(c *C.struct_nbd_handle) C.int64_t { return C.nbd_get_size(c) })
}

// GetBlockSize returns one of the export's block sizes in bytes, 0 where the
// server did not say.
func (h *Libnbd) GetBlockSize(sizeType Size) (uint64, error) {
	return h.callInt64("get_block_size", func(c *C.struct_nbd_handle) C.int64_t {
		return C.nbd_get_block_size(c, C.int(sizeType))
	})
}

// CanMetaContext reports whether the server granted a metadata context.
func (h *Libnbd) CanMetaContext(metacontext string) (bool, error) {
	s := C.CString(metacontext)
	defer C.free(unsafe.Pointer(s))
	return h.callBool("can_meta_context", func(c *C.struct_nbd_handle) C.int {
		return C.nbd_can_meta_context(c, s)
	})
}

// GetProtocol returns the variant of the protocol in use. The string belongs to
// the library.
func (h *Libnbd) GetProtocol() (*string, error) {
	var r *C.char
	err := h.call("get_protocol", func(c *C.struct_nbd_handle) bool {
		r = C.nbd_get_protocol(c)
		return r != nil
	})
	if err != nil {
		return nil, err
	}
	s := C.GoString(r)
	return &s, nil
}

// GetCanonicalExportName returns the export's name as the server spells it, with
// SetFullInfo.
func (h *Libnbd) GetCanonicalExportName() (*string, error) {
	return h.callText("get_canonical_export_name", func(c *C.struct_nbd_handle) *C.char {
		return C.nbd_get_canonical_export_name(c)
	})
}

// GetExportDescription returns the server's description of the export, with
// SetFullInfo.
func (h *Libnbd) GetExportDescription() (*string, error) {
	return h.callText("get_export_description", func(c *C.struct_nbd_handle) *C.char {
		return C.nbd_get_export_description(c)
	})
}

// IsReadOnly reports whether the export cannot be written.
func (h *Libnbd) IsReadOnly() (bool, error) {
	return h.callBool("is_read_only", func(c *C.struct_nbd_handle) C.int { return C.nbd_is_read_only(c) })
}

// IsRotational reports whether the export lies on rotating disks.
func (h *Libnbd) IsRotational() (bool, error) {
	return h.callBool("is_rotational", func(c *C.struct_nbd_handle) C.int { return C.nbd_is_rotational(c) })
}

// CanFlush reports whether the server takes flush commands.
func (h *Libnbd) CanFlush() (bool, error) {
	return h.callBool("can_flush", func(c *C.struct_nbd_handle) C.int { return C.nbd_can_flush(c) })
}

// CanFua reports whether the server takes CMD_FLAG_FUA.
func (h *Libnbd) CanFua() (bool, error) {
	return h.callBool("can_fua", func(c *C.struct_nbd_handle) C.int { return C.nbd_can_fua(c) })
}

// CanTrim reports whether the server takes trim commands.
func (h *Libnbd) CanTrim() (bool, error) {
	return h.callBool("can_trim", func(c *C.struct_nbd_handle) C.int { return C.nbd_can_trim(c) })
}

// CanZero reports whether the server takes zero commands.
func (h *Libnbd) CanZero() (bool, error) {
	return h.callBool("can_zero", func(c *C.struct_nbd_handle) C.int { return C.nbd_can_zero(c) })
}

// CanFastZero reports whether the server takes CMD_FLAG_FAST_ZERO.
func (h *Libnbd) CanFastZero() (bool, error) {
	return h.callBool("can_fast_zero", func(c *C.struct_nbd_handle) C.int { return C.nbd_can_fast_zero(c) })
}

// CanDf reports whether the server takes CMD_FLAG_DF.
func (h *Libnbd) CanDf() (bool, error) {
	return h.callBool("can_df", func(c *C.struct_nbd_handle) C.int { return C.nbd_can_df(c) })
}

// CanMultiConn reports whether several connections to the export see each other's writes
// and share their flushes.
func (h *Libnbd) CanMultiConn() (bool, error) {
	return h.callBool("can_multi_conn", func(c *C.struct_nbd_handle) C.int { return C.nbd_can_multi_conn(c) })
}

// CanCache reports whether the server takes cache commands.
func (h *Libnbd) CanCache() (bool, error) {
	return h.callBool("can_cache", func(c *C.struct_nbd_handle) C.int { return C.nbd_can_cache(c) })
}

// GetTlsNegotiated reports whether the connection is encrypted.
func (h *Libnbd) GetTlsNegotiated() (bool, error) {
	return h.callBool("get_tls_negotiated", func(c *C.struct_nbd_handle) C.int { return C.nbd_get_tls_negotiated(c) })
}

// GetStructuredRepliesNegotiated reports whether the server sends structured
// replies.
func (h *Libnbd) GetStructuredRepliesNegotiated() (bool, error) {
	return h.callBool("get_structured_replies_negotiated", func(c *C.struct_nbd_handle) C.int { return C.nbd_get_structured_replies_negotiated(c) })
}
