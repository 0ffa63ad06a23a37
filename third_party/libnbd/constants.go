package libnbd

// Tls says whether a connection is encrypted.
type Tls int

// Values of Tls.
const (
	TLS_DISABLE = Tls(0)
	TLS_ALLOW   = Tls(1)
	TLS_REQUIRE = Tls(2)
)

// Size names one of a server's block sizes.
type Size int

// Values of Size.
const (
	SIZE_MINIMUM   = Size(0)
	SIZE_PREFERRED = Size(1)
	SIZE_MAXIMUM   = Size(2)
)

// CmdFlag modifies a command.
type CmdFlag uint32

// Flags of commands.
const (
	CMD_FLAG_FUA       = CmdFlag(0x01)
	CMD_FLAG_NO_HOLE   = CmdFlag(0x02)
	CMD_FLAG_DF        = CmdFlag(0x04)
	CMD_FLAG_REQ_ONE   = CmdFlag(0x08)
	CMD_FLAG_FAST_ZERO = CmdFlag(0x10)
)

// Shutdown modifies how a connection ends.
type Shutdown uint32

// Flags of Shutdown and AioDisconnect.
const (
	SHUTDOWN_ABANDON_PENDING = Shutdown(0x10000)
)

// Constants of AioGetDirection, and the flags of base:allocation extents.
const (
	AIO_DIRECTION_READ  uint32 = 1
	AIO_DIRECTION_WRITE uint32 = 2
	AIO_DIRECTION_BOTH  uint32 = 3

	STATE_HOLE uint32 = 1
	STATE_ZERO uint32 = 2
)
