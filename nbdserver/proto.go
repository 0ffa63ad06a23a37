package nbdserver

import "fmt"

// The numbers of the NBD protocol, in the order of doc/proto.md.
const (
	magicInit         = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption       = 0x49484156454f5054 // "IHAVEOPT"
	magicOptionReply  = 0x3e889045565a9
	magicRequest      = 0x25609513
	magicRequestExt   = 0x21e41c71
	magicSimpleReply  = 0x67446698
	magicStructured   = 0x668e33ef
	magicExtendedPart = 0x6e8a278c

	maxString = 4096 // bytes in a name, a query or a message
)

// Handshake flags, sent by both sides with the same meaning.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options of the handshake.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
	optExtendedHeaders = 11
)

// Types of reply to an option.
const (
	repAck             = 1
	repServer          = 2
	repInfo            = 3
	repMetaContext     = 4
	repErrUnsup        = 1<<31 | 1
	repErrPolicy       = 1<<31 | 2
	repErrInvalid      = 1<<31 | 3
	repErrTLSRequired  = 1<<31 | 5
	repErrUnknown      = 1<<31 | 6
	repErrShutdown     = 1<<31 | 7
	repErrTooBig       = 1<<31 | 9
	repErrExtHeaderReq = 1<<31 | 10
)

// Items of information about an export.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags.
const (
	sendHasFlags      = 1 << 0
	sendReadOnly      = 1 << 1
	sendFlush         = 1 << 2
	sendFUA           = 1 << 3
	sendTrim          = 1 << 5
	sendWriteZeroes   = 1 << 6
	sendDF            = 1 << 7
	sendMultiConn     = 1 << 8
	sendCache         = 1 << 10
	sendFastZero      = 1 << 11
	sendStatusPayload = 1 << 12
)

// Command is the type of a request in the transmission phase.
type Command uint16

// The commands that the server understands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisconnect  Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
)

// String returns the command's name as a metric label would have it.
func (c Command) String() string {
	switch c {
	case CmdRead:
		return "read"
	case CmdWrite:
		return "write"
	case CmdDisconnect:
		return "disconnect"
	case CmdFlush:
		return "flush"
	case CmdTrim:
		return "trim"
	case CmdCache:
		return "cache"
	case CmdWriteZeroes:
		return "write_zeroes"
	case CmdBlockStatus:
		return "block_status"
	}
	return fmt.Sprintf("command_%d", uint16(c))
}

// Command flags.
const (
	flagFUA        = 1 << 0
	flagNoHole     = 1 << 1
	flagDF         = 1 << 2
	flagReqOne     = 1 << 3
	flagFastZero   = 1 << 4
	flagPayloadLen = 1 << 5
)

// Chunks of a structured reply.
const (
	chunkDone = 1 << 0 // the only flag

	chunkNone           = 0
	chunkData           = 1
	chunkHole           = 2
	chunkBlockStatus    = 5
	chunkBlockStatusExt = 6
	chunkError          = 1<<15 | 1
)

// States of an extent: the first two of base:allocation, the third of
// qemu:dirty-bitmap.
const (
	stateHole  = 1 << 0
	stateZero  = 1 << 1
	stateDirty = 1 << 0
)

// Sizes of what goes over the wire, in bytes.
const (
	requestLen    = 28
	requestLenExt = 32
	extendedLen   = 32
)
