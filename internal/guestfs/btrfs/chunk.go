package btrfs

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// stripeLen is how many bytes lie on one device before the next one's turn.
const stripeLen = 64 << 10

// Bounds of the memory that the map takes. There is a chunk for each GiB, and fewer
// where they lie on several devices.
const (
	maxChunks  = 1 << 17
	maxStripes = 1 << 19 // of all chunks
)

// Profiles of chunks.
const (
	raid0   = 1 << 3
	raid1   = 1 << 4
	dup     = 1 << 5
	raid10  = 1 << 6
	raid5   = 1 << 7
	raid6   = 1 << 8
	raid1c3 = 1 << 9
	raid1c4 = 1 << 10

	chunkData     = 1
	chunkTypes    = 1<<3 - 1
	chunkProfiles = 1<<11 - 1<<3
)

// deviceItem describes a device of a file system.
type deviceItem struct {
	id, size uint64
	uuid     uuid
	fsid     uuid
}

func parseDeviceItem(b []byte) deviceItem {
	return deviceItem{id: le64(b), size: le64(b[8:]), uuid: uuid(b[66:82]), fsid: uuid(b[82:98])}
}

// chunk is a range of logical addresses, and where it lies.
type chunk struct {
	start, length uint64
	profile       uint64
	kind          uint64
	sub           int // stripes that hold the same, of RAID10
	stripes       []stripe
}

// stripe is what a device holds of a chunk.
type stripe struct {
	dev    *device
	offset uint64
}

// chunkBytes is the size of a chunk item with n stripes.
func chunkBytes(n int) int { return 48 + 32*n }

// parseChunk decodes a chunk item. It returns how many bytes it takes; there may
// be more in b. Devices that are not at hand are noted as missing.
func (s *space) parseChunk(start uint64, b []byte, sector uint32) (chunk, int, error) {
	fail := func(format string, args ...any) (chunk, int, error) {
		return chunk{}, 0, fmt.Errorf("chunk at %d: %s: %w", start, fmt.Sprintf(format, args...), fsys.ErrCorrupt)
	}
	if len(b) < chunkBytes(1) {
		return fail("%d bytes are too few", len(b))
	}
	flags := le64(b[24:])
	c := chunk{start: start, length: le64(b), kind: flags & chunkTypes, profile: flags & chunkProfiles, sub: int(le16(b[46:]))}
	n := int(le16(b[44:]))
	if n == 0 || len(b) < chunkBytes(n) {
		return fail("%d stripes in %d bytes", n, len(b))
	}
	if unknown := flags &^ (chunkTypes | chunkProfiles); unknown != 0 {
		return chunk{}, 0, fmt.Errorf("chunk at %d of type %#x: %w", start, flags, fsys.ErrUnsupported)
	}
	align := uint64(sector - 1)
	if c.length == 0 || (c.start|c.length)&align != 0 || c.length > math.MaxInt64 || c.start > math.MaxInt64-c.length {
		return fail("length %d", c.length)
	}
	if le64(b[16:]) != stripeLen {
		return fail("stripes of %d bytes", le64(b[16:]))
	}
	if !c.shape(n) {
		return fail("profile %#x with %d stripes, %d the same", c.profile, n, c.sub)
	}
	for i := range n {
		at := b[chunkBytes(i):]
		st := stripe{s.device(uuid(at[16:32]), le64(at)), le64(at[8:])}
		if st.offset > math.MaxInt64-c.length {
			return fail("stripe at %d", st.offset)
		}
		c.stripes = append(c.stripes, st)
	}
	return c, chunkBytes(n), nil
}

// shape says whether the profile is one that n stripes can form.
func (c *chunk) shape(n int) bool {
	switch c.profile {
	case 0:
		return n == 1
	case raid0:
		return true
	case raid1, dup:
		return n == 2
	case raid1c3:
		return n == 3
	case raid1c4:
		return n == 4
	case raid10:
		return c.sub > 0 && n%c.sub == 0
	case raid5:
		return n >= 2
	case raid6:
		return n >= 3
	}
	return false
}

// copies is how often each byte is stored.
func (c *chunk) copies() int {
	switch c.profile {
	case raid1, dup, raid1c3, raid1c4:
		return len(c.stripes)
	case raid10:
		return c.sub
	}
	return 1
}

// at returns the stripes that hold byte off of the chunk, each of them at the same
// place from the stripe's beginning, and for how many bytes this holds.
func (c *chunk) at(off uint64) (from []stripe, in, run uint64) {
	n := uint64(len(c.stripes))
	number, rest := off/stripeLen, off%stripeLen
	run = min(stripeLen-rest, c.length-off)
	switch c.profile {
	case raid0:
		i := number % n
		return c.stripes[i : i+1], number/n*stripeLen + rest, run
	case raid10:
		sub := uint64(c.sub)
		i := number % (n / sub) * sub
		return c.stripes[i : i+sub], number/(n/sub)*stripeLen + rest, run
	case raid5, raid6:
		data := n - 1
		if c.profile == raid6 {
			data--
		}
		row := number / data
		i := (row + number%data) % n
		return c.stripes[i : i+1], row*stripeLen + rest, run
	}
	return c.stripes, off, c.length - off
}

// space maps logical addresses to devices. Once open, it does not change.
type space struct {
	devices []*device
	chunks  []chunk // by start
	stripes int     // of all chunks
}

// add puts a chunk in its place. It replaces the one that the superblock told of.
func (s *space) add(c chunk) error {
	i, known := slices.BinarySearchFunc(s.chunks, c.start, func(c chunk, at uint64) int { return cmp.Compare(c.start, at) })
	if known {
		s.chunks[i] = c
	} else {
		if s.stripes += len(c.stripes); len(s.chunks) == maxChunks || s.stripes > maxStripes {
			return fmt.Errorf("more than %d chunks or %d stripes: %w", maxChunks, maxStripes, fsys.ErrUnsupported)
		}
		s.chunks = slices.Insert(s.chunks, i, c)
	}
	if i > 0 && s.chunks[i-1].start+s.chunks[i-1].length > c.start || i+1 < len(s.chunks) && c.start+c.length > s.chunks[i+1].start {
		return fmt.Errorf("chunk at %d overlaps its neighbour: %w", c.start, fsys.ErrCorrupt)
	}
	return nil
}

// chunk returns the chunk that holds a logical address.
func (s *space) chunk(logical uint64) (*chunk, error) {
	i, ok := slices.BinarySearchFunc(s.chunks, logical, func(c chunk, at uint64) int { return cmp.Compare(c.start, at) })
	if !ok {
		i--
	}
	if i < 0 || logical-s.chunks[i].start >= s.chunks[i].length {
		return nil, fmt.Errorf("address %d is in no chunk: %w", logical, fsys.ErrCorrupt)
	}
	return &s.chunks[i], nil
}

// profileName names a profile for people.
func profileName(p uint64) string {
	names := []string{"raid0", "raid1", "dup", "raid10", "raid5", "raid6", "raid1c3", "raid1c4"}
	if p == 0 {
		return "single"
	}
	return names[bits.TrailingZeros64(p)-3]
}
