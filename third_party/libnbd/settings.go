package libnbd

// #include <libnbd.h>
import "C"

// SetExportName names the export to ask for; "" is the server's default.
func (h *Libnbd) SetExportName(name string) error {
	return h.callString("set_export_name", name, func(c *C.struct_nbd_handle, s *C.char) C.int {
		return C.nbd_set_export_name(c, s)
	})
}

// GetExportName returns the name of the export asked for.
func (h *Libnbd) GetExportName() (*string, error) {
	return h.callText("get_export_name", func(c *C.struct_nbd_handle) *C.char {
		return C.nbd_get_export_name(c)
	})
}

// AddMetaContext asks for a metadata context, before connecting.
func (h *Libnbd) AddMetaContext(name string) error {
	return h.callString("add_meta_context", name, func(c *C.struct_nbd_handle, s *C.char) C.int {
		return C.nbd_add_meta_context(c, s)
	})
}

// ClearMetaContexts takes back every context asked for.
func (h *Libnbd) ClearMetaContexts() error {
	return h.call("clear_meta_contexts", func(c *C.struct_nbd_handle) bool {
		return C.nbd_clear_meta_contexts(c) != -1
	})
}

// SetTls says whether the connection is to be encrypted.
func (h *Libnbd) SetTls(tls Tls) error {
	return h.call("set_tls", func(c *C.struct_nbd_handle) bool {
		return C.nbd_set_tls(c, C.int(tls)) != -1
	})
}

// SetTlsCertificates names the folder of ca-cert.pem, client-cert.pem and
// client-key.pem.
func (h *Libnbd) SetTlsCertificates(dir string) error {
	return h.callString("set_tls_certificates", dir, func(c *C.struct_nbd_handle, s *C.char) C.int {
		return C.nbd_set_tls_certificates(c, s)
	})
}

// SetTlsVerifyPeer says whether the server's certificate is checked.
func (h *Libnbd) SetTlsVerifyPeer(verify bool) error {
	return h.call("set_tls_verify_peer", func(c *C.struct_nbd_handle) bool {
		return C.nbd_set_tls_verify_peer(c, C.bool(verify)) != -1
	})
}

// SetTlsUsername sets the user name that goes with a pre-shared key.
func (h *Libnbd) SetTlsUsername(username string) error {
	return h.callString("set_tls_username", username, func(c *C.struct_nbd_handle, s *C.char) C.int {
		return C.nbd_set_tls_username(c, s)
	})
}

// SetTlsPskFile names the file with the pre-shared key.
func (h *Libnbd) SetTlsPskFile(filename string) error {
	return h.callString("set_tls_psk_file", filename, func(c *C.struct_nbd_handle, s *C.char) C.int {
		return C.nbd_set_tls_psk_file(c, s)
	})
}

// SetRequestStructuredReplies says whether to ask for structured replies, which
// metadata contexts need. The default is true.
func (h *Libnbd) SetRequestStructuredReplies(request bool) error {
	return h.call("set_request_structured_replies", func(c *C.struct_nbd_handle) bool {
		return C.nbd_set_request_structured_replies(c, C.bool(request)) != -1
	})
}

// SetFullInfo says whether to ask for the export's canonical name and
// description.
func (h *Libnbd) SetFullInfo(request bool) error {
	return h.call("set_full_info", func(c *C.struct_nbd_handle) bool {
		return C.nbd_set_full_info(c, C.bool(request)) != -1
	})
}

// SetPreadInitialize says whether reads zero their buffer first. The default is
// true; a caller who throws the buffer away after an error can do without.
func (h *Libnbd) SetPreadInitialize(request bool) error {
	return h.call("set_pread_initialize", func(c *C.struct_nbd_handle) bool {
		return C.nbd_set_pread_initialize(c, C.bool(request)) != -1
	})
}

// SetOptMode makes connecting stop before an export is chosen, so that options
// can be negotiated by hand.
func (h *Libnbd) SetOptMode(enable bool) error {
	return h.call("set_opt_mode", func(c *C.struct_nbd_handle) bool {
		return C.nbd_set_opt_mode(c, C.bool(enable)) != -1
	})
}

// SetUriAllowLocalFile says whether a URI may name files to be read, such as a
// pre-shared key. The default is false.
func (h *Libnbd) SetUriAllowLocalFile(allow bool) error {
	return h.call("set_uri_allow_local_file", func(c *C.struct_nbd_handle) bool {
		return C.nbd_set_uri_allow_local_file(c, C.bool(allow)) != -1
	})
}
