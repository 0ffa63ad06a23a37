package ext4

import (
	"bytes"
	"fmt"
	"time"
)

// notes gathers what an operator should know of a file system.
type notes struct {
	super   *superblock
	volume  int64 // bytes
	found   recovery
	skipped bool // what the journal holds was left out
}

func (n *notes) list() (list []string) {
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	s := n.super
	if size := int64(s.blocks) * s.blockSize; size > n.volume {
		add("The volume ends at %d bytes, but the file system has %d; what lies beyond cannot be read.", n.volume, size)
	}
	n.journal(add)
	if s.state&stateErrors != 0 {
		add("The kernel found errors in it%s; check it with e2fsck.", s.errors())
	}
	return list
}

// journal tells of what was not unmounted in order.
func (n *notes) journal(add func(string, ...any)) {
	s := n.super
	external := !bytes.Equal(s.raw[0xd0:0xe0], make([]byte, 16)) && s.compat&compatHasJournal != 0 && s.journalInode == 0
	switch {
	case external && n.skipped:
		add("It was not unmounted%s, and its journal is on another device (UUID %s): what that holds is missing.", s.mounted(), formatUUID(s.raw[0xd0:0xe0]))
	case external:
		add("Its journal is on another device (UUID %s).", formatUUID(s.raw[0xd0:0xe0]))
	case n.skipped:
		add("It was not unmounted%s, and its journal was not replayed: it may contradict itself.", s.mounted())
	case n.found.replayed:
		add("It was not unmounted%s; its journal was replayed in memory (%d transactions, %d blocks).", s.mounted(), n.found.transactions, len(n.found.blocks))
	case s.has(incompatRecover):
		add("It was not unmounted%s; its journal holds nothing to replay.", s.mounted())
	case s.state&stateValid == 0:
		add("It was not unmounted%s.", s.mounted())
	}
	if n.found.cut != 0 {
		add("Transaction %d of the journal does not match its checksum; it is left out with all that came after it.", n.found.cut)
	}
	if n.found.fast > 0 {
		add("The journal holds %d fast commits, which were not replayed: what was synced in the last seconds may be missing.", n.found.fast)
	}
	if n.found.errno != 0 {
		add("The journal was aborted with error %d.", n.found.errno)
	}
}

// mounted says where a file system was mounted, and since when.
func (s *superblock) mounted() string {
	where := ""
	if s.lastMounted != "" {
		where = fmt.Sprintf(" from %q", s.lastMounted)
	}
	if at := s.time(0x2c, 0x275); !at.IsZero() {
		where += ", where it had been mounted on " + at.Format(time.DateTime) + " UTC"
	}
	return where
}

// errors says how many there were, and when.
func (s *superblock) errors() string {
	n := le.Uint32(s.raw[0x194:])
	if n == 0 {
		return ""
	}
	told := fmt.Sprintf(" (%d", n)
	if at := s.time(0x198, 0x278); !at.IsZero() {
		told += ", the first on " + at.Format(time.DateTime) + " UTC"
	}
	if at := s.time(0x1cc, 0x279); !at.IsZero() {
		told += ", the last on " + at.Format(time.DateTime) + " UTC"
	}
	return told + ")"
}

// time returns a time of the superblock, of which 8 bits are elsewhere.
func (s *superblock) time(low, high int) time.Time {
	if t := int64(le.Uint32(s.raw[low:])) | int64(s.raw[high])<<32; t != 0 {
		return time.Unix(t, 0).UTC()
	}
	return time.Time{}
}
