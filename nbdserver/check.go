package nbdserver

import "github.com/sendense/sendense/block"

// allowedFlags returns the flags that a command may have. FUA may come with any
// command, as old clients do it.
func (c *conn) allowedFlags(cmd Command) uint16 {
	allowed := uint16(flagFUA)
	switch cmd {
	case CmdRead:
		if c.style != simpleReplies {
			allowed |= flagDF
		}
	case CmdWrite:
		if c.style == extendedReplies {
			allowed |= flagPayloadLen
		}
	case CmdWriteZeroes:
		allowed |= flagNoHole | flagFastZero
	case CmdBlockStatus:
		allowed |= flagReqOne
		if c.style == extendedReplies {
			allowed |= flagPayloadLen
		}
	}
	return allowed
}

// check refuses requests that break the rules. payload is the number of bytes
// that follow the head.
func (c *conn) check(r *request, payload int64) (Errno, string) {
	if r.cmd > CmdBlockStatus {
		return ErrnoInvalid, "unknown command"
	}
	if r.flags&^c.allowedFlags(r.cmd) != 0 {
		return ErrnoInvalid, "flag is not valid with this command"
	}
	switch r.cmd {
	case CmdWrite, CmdTrim, CmdWriteZeroes:
		if c.x.ReadOnly {
			return ErrnoPerm, "export is read-only"
		}
	case CmdFlush:
		if r.off != 0 || r.n != 0 {
			return ErrnoInvalid, "flush takes no range"
		}
		return 0, ""
	case CmdBlockStatus:
		switch {
		case len(c.contexts) == 0:
			return ErrnoInvalid, "no metadata context was selected"
		case r.flags&flagPayloadLen != 0:
			return 0, "" // the range comes with the payload
		case r.n == 0:
			return ErrnoInvalid, "length is zero"
		}
	}
	if r.cmd == CmdWrite && c.style == extendedReplies && r.flags&flagPayloadLen == 0 {
		return ErrnoInvalid, "write without payload"
	}
	if errno, why := c.checkRange(r); errno != 0 {
		return errno, why
	}
	return c.checkLength(r)
}

// checkRange refuses what is not inside the device or not aligned. The last block
// may be a part of one.
func (c *conn) checkRange(r *request) (Errno, string) {
	if r.off > uint64(c.size) || r.n > uint64(c.size)-r.off {
		return outOfRange(r.cmd), "request reaches beyond the end of the export"
	}
	mask := uint64(c.x.MinBlock) - 1
	if r.off&mask != 0 || r.n&mask != 0 && r.off+r.n != uint64(c.size) {
		return ErrnoInvalid, "request is not aligned to the minimum block size"
	}
	return 0, ""
}

func (c *conn) checkLength(r *request) (Errno, string) {
	if r.n <= uint64(c.x.MaxBlock) || r.cmd != CmdRead && r.cmd != CmdWrite {
		return 0, ""
	}
	if r.cmd == CmdRead && c.style != simpleReplies {
		return ErrnoOverflow, "read is longer than the maximum block size"
	}
	return ErrnoInvalid, "request is longer than the maximum block size"
}

// zeroFlags translates the flags of WRITE_ZEROES.
func (r *request) zeroFlags() block.ZeroFlags {
	var f block.ZeroFlags
	if r.flags&flagNoHole == 0 {
		f |= block.MayTrim
	}
	if r.flags&flagFastZero != 0 {
		f |= block.FastOnly
	}
	return f
}
