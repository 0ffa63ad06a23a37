package nbdserver

import "encoding/binary"

// replyStyle is how replies look, as the handshake decided.
type replyStyle uint8

const (
	simpleReplies replyStyle = iota
	structuredReplies
	extendedReplies
)

// request is the head of a request.
type request struct {
	cmd    Command
	flags  uint16
	cookie uint64
	off    uint64
	n      uint64 // length of the payload or of the effect
}

// headLen returns the length of a request's head.
func (s replyStyle) headLen() int {
	if s == extendedReplies {
		return requestLenExt
	}
	return requestLen
}

// parse decodes the head of a request from b, which is long enough.
func (s replyStyle) parse(b []byte) (r request, ok bool) {
	be := binary.BigEndian
	r = request{
		flags:  be.Uint16(b[4:]),
		cmd:    Command(be.Uint16(b[6:])),
		cookie: be.Uint64(b[8:]),
		off:    be.Uint64(b[16:]),
	}
	if s == extendedReplies {
		r.n = be.Uint64(b[24:])
		return r, be.Uint32(b) == magicRequestExt
	}
	r.n = uint64(be.Uint32(b[24:]))
	return r, be.Uint32(b) == magicRequest
}

// fragments reports whether the reply to a read may come in several chunks.
func (s replyStyle) fragments(r *request) bool {
	return s != simpleReplies && r.flags&flagDF == 0
}

// appendChunk appends the head of a chunk with n bytes of payload.
func (s replyStyle) appendChunk(b []byte, r *request, done bool, kind uint16, n int) []byte {
	be := binary.BigEndian
	var flags uint16
	if done {
		flags = chunkDone
	}
	magic := uint32(magicStructured)
	if s == extendedReplies {
		magic = magicExtendedPart
	}
	b = be.AppendUint32(b, magic)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, kind)
	b = be.AppendUint64(b, r.cookie)
	if s == extendedReplies {
		b = be.AppendUint64(b, r.off)
		return be.AppendUint64(b, uint64(n))
	}
	return be.AppendUint32(b, uint32(n))
}

func appendSimple(b []byte, r *request, errno Errno) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimpleReply)
	b = binary.BigEndian.AppendUint32(b, uint32(errno))
	return binary.BigEndian.AppendUint64(b, r.cookie)
}

// appendDone appends a reply that says that r succeeded, without payload. A read
// is never answered by a simple reply where structured ones are in use.
func (s replyStyle) appendDone(b []byte, r *request) []byte {
	if s == simpleReplies || s == structuredReplies && r.cmd != CmdRead {
		return appendSimple(b, r, 0)
	}
	return s.appendChunk(b, r, true, chunkNone, 0)
}

// appendError appends a reply that says that r failed, with a sentence for
// people where there is room for one.
func (s replyStyle) appendError(b []byte, r *request, errno Errno, why string) []byte {
	if s == simpleReplies {
		return appendSimple(b, r, errno)
	}
	why = why[:min(len(why), 256)]
	b = s.appendChunk(b, r, true, chunkError, 6+len(why))
	b = binary.BigEndian.AppendUint32(b, uint32(errno))
	b = binary.BigEndian.AppendUint16(b, uint16(len(why)))
	return append(b, why...)
}

// maxDataHead is the longest that appendDataHead appends.
const maxDataHead = extendedLen + 8

// appendDataHead appends what comes before n bytes of data from off.
func (s replyStyle) appendDataHead(b []byte, r *request, done bool, off, n int64) []byte {
	if s == simpleReplies {
		return appendSimple(b, r, 0)
	}
	b = s.appendChunk(b, r, done, chunkData, int(n)+8)
	return binary.BigEndian.AppendUint64(b, uint64(off))
}

// appendHole appends a chunk that says that n bytes from off are zeroes.
func (s replyStyle) appendHole(b []byte, r *request, done bool, off, n int64) []byte {
	b = s.appendChunk(b, r, done, chunkHole, 12)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	return binary.BigEndian.AppendUint32(b, uint32(n))
}
