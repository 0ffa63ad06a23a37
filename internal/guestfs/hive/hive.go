// Package hive reads hives of the Windows registry, by "Windows registry file format
// specification" (msuhanov/regf): keys and values by path. What a machine that was not
// shut down left in the transaction logs is replayed in memory.
//
// It takes nothing that it reads for granted: whatever is in a hive, a call returns an
// answer or an error after a bounded number of reads, with bounded memory. It knows
// nothing of file systems, nor of what Windows keeps where.
package hive

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf16"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

var le = binary.LittleEndian

// cacheBytes is what the cache of a hive takes.
const cacheBytes = 2 << 20

// Hive is a hive that is open.
type Hive struct {
	vol   fsys.Volume
	size  int64  // bytes of the bins, which begin behind the base block
	root  uint32 // offset of the root's cell in these
	notes []string
}

// Open opens the hive in a file. The logs are those beside it that there are, .LOG1
// before .LOG2. They are read if the hive is dirty only.
func Open(file fsys.Volume, logs ...fsys.Volume) (*Hive, error) {
	b, err := readBase(file)
	if err != nil {
		return nil, fmt.Errorf("hive: %w", err)
	}
	h := &Hive{vol: file, size: b.size, root: b.root}
	if !b.sound || b.primary != b.secondary {
		if err := h.recover(b, file, logs); err != nil {
			return nil, fmt.Errorf("hive: %w", err)
		}
	}
	h.vol = fsys.Cached(h.vol, cacheBytes)
	if _, err := h.node(h.root); err != nil {
		return nil, fmt.Errorf("hive: root key: %w", err)
	}
	return h, nil
}

// Notes say, each in a sentence, what an operator should know: that the hive was in
// use and its logs could not be replayed. Nil for one that is up to date.
func (h *Hive) Notes() []string { return h.notes }

// baseBytes is the length of the base block, in bytes.
const baseBytes = 4096

// base is what a base block says ("Base block").
type base struct {
	primary, secondary uint32 // sequence numbers
	written            uint64 // when, in units of 100 ns
	kind               uint32 // of file
	root               uint32
	size               int64 // bytes of the bins
	sound              bool  // its checksum is right
}

// readBase reads the base block of a hive or of a log.
func readBase(v fsys.Volume) (base, error) {
	b := make([]byte, 512)
	if v.Size() < int64(len(b)) {
		return base{}, fsys.ErrNotFound
	}
	if err := v.ReadAt(b, 0); err != nil {
		return base{}, fmt.Errorf("read base block: %w", err)
	}
	if string(b[:4]) != "regf" {
		return base{}, fsys.ErrNotFound
	}
	if major, minor := le.Uint32(b[20:]), le.Uint32(b[24:]); major != 1 || minor > 6 {
		return base{}, fmt.Errorf("version %d.%d: %w", major, minor, fsys.ErrUnsupported)
	}
	var sum uint32
	for i := 0; i < 508; i += 4 {
		sum ^= le.Uint32(b[i:])
	}
	switch sum { // two values are not used
	case 0:
		sum = 1
	case 0xffffffff:
		sum = 0xfffffffe
	}
	return base{
		primary: le.Uint32(b[4:]), secondary: le.Uint32(b[8:]), written: le.Uint64(b[12:]), kind: le.Uint32(b[28:]),
		root: le.Uint32(b[36:]), size: int64(le.Uint32(b[40:])), sound: sum == le.Uint32(b[508:]),
	}, nil
}

// cell returns the first bytes of a cell's data, up to n, and how many it has ("Cell").
func (h *Hive) cell(offset uint32, n int) ([]byte, int, error) {
	at := int64(offset)
	corrupt := func() ([]byte, int, error) {
		return nil, 0, fmt.Errorf("cell at %#x of %#x: %w", at, h.size, fsys.ErrCorrupt)
	}
	if at < 32 || at%8 != 0 || at > h.size-8 {
		return corrupt()
	}
	var head [4]byte
	if err := h.vol.ReadAt(head[:], baseBytes+at); err != nil {
		return nil, 0, err
	}
	size := -int64(int32(le.Uint32(head[:])))
	if size < 8 || size > h.size-at { // what is not in use has a size above zero
		return corrupt()
	}
	b := make([]byte, min(int64(n), size-4))
	return b, int(size - 4), h.vol.ReadAt(b, baseBytes+at+4)
}

// record returns the first bytes of a cell that begins with a signature, at least n of
// them.
func (h *Hive) record(offset uint32, signature string, n, upTo int) ([]byte, error) {
	b, _, err := h.cell(offset, upTo)
	if err == nil && (len(b) < n || string(b[:2]) != signature) {
		err = fmt.Errorf("no record %s at %#x: %w", signature, offset, fsys.ErrCorrupt)
	}
	return b, err
}

// text decodes a name: of one byte for each character, or UTF-16.
func text(b []byte, narrow bool) string {
	if !narrow {
		return text16(b)
	}
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return string(runes)
}

func text16(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = le.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units))
}

// Key returns the key at a path, whose names are separated by backslashes and differ
// in more than case. The empty path is the root.
func (h *Hive) Key(path string) (*Key, error) {
	k, err := h.node(h.root)
	for name := range strings.SplitSeq(path, `\`) {
		if name == "" || err != nil {
			continue
		}
		if k, err = k.sub(name); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}
	return k, err
}

var errMissing = fs.ErrNotExist
