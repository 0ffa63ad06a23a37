package archive

import "io"

// NewZipAt begins a zip that is written from offset at of a file.
func NewZipAt(w io.Writer, at int64) *Writer {
	return &Writer{f: newZip(&output{w: w, n: at})}
}

// ACLText returns the text of an access ACL.
func ACLText(b []byte) (string, bool) {
	r, ok := aclText(Xattr{aclAccess, b})
	return r.value, ok
}
