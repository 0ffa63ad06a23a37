package volume

import (
	"fmt"
	"math"
	"strings"
)

// Levels of md arrays that have no number of their own.
const (
	levelLinear    = -1
	levelMultipath = -4
)

// mdSuper is a superblock of an md array (torvalds/linux
// include/uapi/linux/raid/md_p.h, mdp_superblock_s and mdp_superblock_1).
type mdSuper struct {
	at      int64
	version string // 0.90, 1.0, 1.1, 1.2
	uuid    string // of the array
	name    string // 1.x, with the host's before a colon; may be empty
	minor   uint32 // 0.90
	level   int32
	layout  uint32
	chunk   int64 // bytes
	disks   uint32
	size    int64 // bytes of each member that a mirror uses
	events  uint64

	// Of this member:
	role             int // in the array, -1: none
	number           uint32
	dataOff, dataLen int64
	behind           bool // it is being rebuilt, or replaces another
	badBlocks        bool
	active           []int // roles by number of member, as this one knows them: -1: none

	refusal string // what it cannot be read for
}

const mdMagic = 0xa92b4efc

// readMDSuper returns the superblock of a member, nil if there is none. Where more
// than one is, that of the newest update counts.
func readMDSuper(w *window) *mdSuper {
	sectors := w.size() / 512
	var best *mdSuper
	consider := func(s *mdSuper) {
		if s != nil && (best == nil || s.events > best.events) {
			best = s
		}
	}
	if sectors >= 128 {
		at := (sectors&^127 - 128) * 512
		consider(parseMD0(w.bytes(at, 4096), at))
	}
	for i, sector := range []int64{(sectors - 16) &^ 7, 0, 8} {
		if sector >= 0 {
			consider(parseMD1(w.bytes(sector*512, 4096), sector, fmt.Sprintf("1.%d", i), w.size()))
		}
	}
	return best
}

// parseMD0 parses a superblock of version 0.90. They are in the byte order of the
// machine; only those of little-endian ones are read.
func parseMD0(b []byte, at int64) *mdSuper {
	if b == nil || le.Uint32(b) != mdMagic || le.Uint32(b[4:]) != 0 {
		return nil
	}
	word := func(n int) uint32 { return le.Uint32(b[4*n:]) }
	const generic, personality, disks, this = 32, 64, 128, 992
	sum := uint64(0)
	for i := range 1024 {
		if i != generic+6 {
			sum += uint64(word(i))
		}
	}
	if uint32(sum&math.MaxUint32)+uint32(sum>>32) != word(generic+6) {
		return nil
	}
	id := make([]byte, 16)
	for i, n := range []int{5, 13, 14, 15} {
		be.PutUint32(id[4*i:], word(n))
	}
	s := &mdSuper{
		at: at, version: "0.90", uuid: uuid(id), minor: word(11), level: int32(word(7)), layout: word(personality), disks: word(10),
		chunk: int64(word(personality + 1)), size: int64(word(8)) * 1024, dataLen: at, number: word(this),
		events: uint64(word(generic+8))<<32 | uint64(word(generic+7)), role: -1,
	}
	if word(2) > 90 && le.Uint64(b[4*(generic+12):]) != math.MaxUint64 {
		s.refusal = "is being reshaped"
	}
	const faulty, active, sync, removed = 1, 2, 4, 8
	for i := range 27 {
		d, role := disks+32*i, -1
		if state := word(d + 4); state&(active|sync) == active|sync && state&(faulty|removed) == 0 {
			role = int(word(d + 3))
		}
		s.active = append(s.active, role)
	}
	if state := word(this + 4); state&(active|sync) == active|sync && state&(faulty|removed) == 0 {
		s.role = int(word(this + 3))
	}
	return s
}

// Features of a superblock of version 1.
const (
	mdBitmap          = 1
	mdRecoveryOffset  = 2
	mdReshape         = 4
	mdBadBlocks       = 8
	mdReplacement     = 16
	mdReshapeBack     = 32
	mdNewOffset       = 64
	mdRecoveryBitmap  = 128
	mdBitmapVersioned = 256
	mdJournal         = 512
	mdPPL             = 1024
	mdMultiplePPLs    = 2048
	mdRaid0Layout     = 4096
	mdKnown           = mdBitmap | mdRecoveryOffset | mdReshape | mdBadBlocks | mdReplacement | mdReshapeBack | mdNewOffset |
		mdRecoveryBitmap | mdBitmapVersioned | mdJournal | mdPPL | mdMultiplePPLs | mdRaid0Layout
)

// parseMD1 parses a superblock of version 1 that was read from a sector of a member
// of size bytes.
func parseMD1(b []byte, sector int64, version string, size int64) *mdSuper {
	if b == nil || le.Uint32(b) != mdMagic || le.Uint32(b[4:]) != 1 || le.Uint64(b[144:]) != uint64(sector) {
		return nil
	}
	members := le.Uint32(b[220:])
	if members > (4096-256)/2 || mdSum1(b[:256+2*members]) != le.Uint32(b[216:]) {
		return nil
	}
	features, dataOff, dataLen, used := le.Uint32(b[8:]), le.Uint64(b[128:]), le.Uint64(b[136:]), le.Uint64(b[80:])
	const most = maxBytes / 512 / 2
	if dataOff > most || dataLen > most || used > most {
		return nil
	}
	s := &mdSuper{
		at: sector * 512, version: version, uuid: uuid(b[16:32]), name: text(b[32:64]), level: int32(le.Uint32(b[72:])),
		layout: le.Uint32(b[76:]), chunk: int64(le.Uint32(b[88:])) * 512, disks: le.Uint32(b[92:]), size: int64(used) * 512,
		events: le.Uint64(b[200:]), number: le.Uint32(b[160:]), dataOff: int64(dataOff) * 512, dataLen: int64(dataLen) * 512,
		behind: features&(mdRecoveryOffset|mdReplacement) != 0, badBlocks: features&mdBadBlocks != 0, role: -1,
	}
	for i := range int(members) {
		role := int(le.Uint16(b[256+2*i:]))
		if role >= 0xff00 { // spare, failed, journal
			role = -1
		}
		s.active = append(s.active, role)
	}
	if s.number < members {
		s.role = s.active[s.number]
	}
	switch {
	case features&mdReshape != 0:
		s.refusal = "is being reshaped"
	case features&^mdKnown != 0:
		s.refusal = fmt.Sprintf("has features %#x, which are not known", features&^mdKnown)
	case s.dataOff > size || s.dataLen > size-s.dataOff:
		s.refusal = "has a member that is shorter than it was"
	}
	return s
}

// mdSum1 is the checksum of a superblock of version 1, whose own field counts as
// zero.
func mdSum1(b []byte) uint32 {
	sum := uint64(0)
	for i := 0; i+4 <= len(b); i += 4 {
		if i != 216 {
			sum += uint64(le.Uint32(b[i:]))
		}
	}
	if len(b)%4 == 2 {
		sum += uint64(le.Uint16(b[len(b)-2:]))
	}
	return uint32(sum&math.MaxUint32) + uint32(sum>>32)
}

// levelName names a level the way that mdadm does.
func (s *mdSuper) levelName() string {
	switch s.level {
	case levelLinear:
		return "linear"
	case levelMultipath:
		return "multipath"
	}
	return fmt.Sprintf("raid%d", s.level)
}

// arrayName returns the name that the array's device would have: by number where
// it has one, by the name that it was given otherwise; empty if it has neither.
func (s *mdSuper) arrayName() string {
	if s.version == "0.90" {
		return fmt.Sprintf("md%d", s.minor)
	}
	name := s.name[strings.LastIndexByte(s.name, ':')+1:]
	switch {
	case !validName(name):
		return ""
	case len(name) <= 6 && strings.Trim(name, "0123456789") == "":
		return "md" + name
	}
	return "md-" + name
}
