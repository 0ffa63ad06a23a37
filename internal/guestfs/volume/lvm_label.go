package volume

import (
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
)

// Limits of what a physical volume may ask for.
const (
	maxMetadataAreas = 8
	maxMetadataText  = 16 << 20 // bytes
)

// pvLabel is the label and header of a physical volume of LVM2 (libyal/libvslvm
// documentation, physical volume label).
type pvLabel struct {
	id    string // with dashes
	at    int64
	areas []extent // that hold metadata
}

type extent struct{ off, size int64 }

// lvmSum is LVM's CRC-32: seeded otherwise, and not inverted.
func lvmSum(b []byte) uint32 { return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b) }

// readPVLabel returns the label in one of the first four sectors, nil if there is
// none.
func readPVLabel(w *window) *pvLabel {
	for sector := range int64(4) {
		b := w.bytes(sector*512, 512)
		if b == nil {
			return nil
		}
		if l := parsePVLabel(b, sector); l != nil {
			return l
		}
	}
	return nil
}

func parsePVLabel(b []byte, sector int64) *pvLabel {
	if string(b[:8]) != "LABELONE" || string(b[24:32]) != "LVM2 001" || le.Uint64(b[8:]) != uint64(sector) ||
		le.Uint32(b[16:]) != lvmSum(b[20:512]) {
		return nil
	}
	at := le.Uint32(b[20:])
	if at < 32 || at > 512-40 {
		return nil
	}
	h := b[at:]
	l := &pvLabel{id: lvmID(string(h[:32])), at: sector * 512}
	if l.id == "" {
		return nil
	}
	_, h = locations(h[40:])
	l.areas, _ = locations(h)
	return l
}

// locations parses a list of offsets and sizes that ends with a zero offset, and
// returns what follows it.
func locations(b []byte) (list []extent, rest []byte) {
	for ; len(b) >= 16; b = b[16:] {
		off, size := le.Uint64(b), le.Uint64(b[8:])
		if off == 0 {
			return list, b[16:]
		}
		if off < maxBytes && size < maxBytes && len(list) < maxMetadataAreas {
			list = append(list, extent{int64(off), int64(size)})
		}
	}
	return list, nil
}

// lvmID writes an identifier of 32 characters the way that metadata and tools do;
// none if it is not one.
func lvmID(s string) string {
	if len(s) != 32 || strings.ContainsFunc(s, func(r rune) bool { return !nameRune(r) && r != '!' && r != '#' }) {
		return ""
	}
	return strings.Join([]string{s[:6], s[6:10], s[10:14], s[14:18], s[18:22], s[22:26], s[26:]}, "-")
}

var errNoMetadata = errors.New("it holds no metadata")

// readMetadata returns the committed metadata of a metadata area as text
// (libyal/libvslvm documentation, metadata area). It is errNoMetadata if there is
// none, or none to be used.
func readMetadata(w *window, area extent) (string, error) {
	const header, ignored = 512, 1
	h := w.bytes(area.off, header)
	if h == nil {
		return "", errors.New("its metadata lies past its end")
	}
	if string(h[4:20]) != " LVM2 x[5A%r0N*>" || le.Uint32(h) != lvmSum(h[4:]) || le.Uint64(h[24:]) != uint64(area.off) {
		return "", errors.New("its metadata has no sound header")
	}
	size := le.Uint64(h[32:])
	off, n, sum, flags := le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint32(h[56:]), le.Uint32(h[60:])
	if off == 0 || flags&ignored != 0 {
		return "", errNoMetadata
	}
	if size <= header || size > maxBytes || off < header || off >= size || n > size-header || n > maxMetadataText {
		return "", fmt.Errorf("its metadata of %d bytes at %d does not fit into %d", n, off, size)
	}
	// What reaches the end of the area goes on after its header.
	first := min(n, size-off)
	b := append(w.bytes(area.off+int64(off), int(first)), w.bytes(area.off+header, int(n-first))...)
	if uint64(len(b)) != n || lvmSum(b) != sum {
		return "", errors.New("its metadata has a wrong checksum")
	}
	return strings.TrimRight(string(b), "\x00"), nil
}
