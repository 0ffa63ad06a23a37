package volume

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// parseLUKS1 parses a header of version 1 (LUKS on-disk format specification,
// 1.2.3: figures 1 and 2).
func parseLUKS1(b []byte) *luksHeader {
	const (
		active   = 0x00ac71f3
		firstKey = 208
		slotSize = 48
	)
	h := &luksHeader{
		version: 1, uuid: text(b[168:208]), cipher: text(b[8:40]) + "-" + text(b[40:72]), keyBytes: int(be.Uint32(b[108:])),
		off: int64(be.Uint32(b[104:])) * 512, sector: 512,
	}
	hashName := strings.ToLower(text(b[72:104]))
	h.digests = []luksDigest{{
		kdf: luksKDF{kind: "pbkdf2", hash: hashName, iterations: int64(be.Uint32(b[164:])), salt: slices.Clone(b[132:164])},
		sum: slices.Clone(b[112:132]),
	}}
	for i := range 8 {
		s := b[firstKey+slotSize*i:][:slotSize]
		if be.Uint32(s) != active {
			continue
		}
		stripes := be.Uint32(s[44:])
		if h.keyBytes > maxKeyBytes || stripes > maxStripes {
			continue
		}
		h.slots = append(h.slots, luksSlot{
			number: i, kdf: luksKDF{kind: "pbkdf2", hash: hashName, iterations: int64(be.Uint32(s[4:])), salt: slices.Clone(s[8:40])},
			cipher: h.cipher, areaKey: h.keyBytes, keyBytes: h.keyBytes, stripes: int(stripes), splitHash: hashName,
			off: int64(be.Uint32(s[40:])) * 512, length: int64(h.keyBytes) * int64(stripes),
		})
	}
	return h
}

// luks2Offsets are where the second header of version 2 may lie (LUKS2 on-disk
// format specification, 2.1), which is the size of each as well.
var luks2Offsets = []int64{16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20}

// readLUKS2 returns the newer one of the two headers that are sound.
func readLUKS2(w *window) *luksHeader {
	text, sequence, primary := luks2Text(w, 0, luksMagic)
	for _, at := range luks2Offsets {
		if !w.has(at, luksMagic2) {
			continue
		}
		if t, s, err := luks2Text(w, at, luksMagic2); err == nil && (primary != nil || s > sequence) {
			text, sequence, primary = t, s, nil
		}
	}
	h := &luksHeader{version: 2}
	if primary != nil {
		h.refusal = fmt.Sprintf("It is encrypted with LUKS, and its header is damaged: %v.", primary)
	} else if err := h.parse(text.json); err != nil {
		h.refusal = fmt.Sprintf("It is encrypted with LUKS and cannot be unlocked: %v.", err)
	}
	h.uuid, h.label = text.uuid, text.label
	return h
}

// luks2Header is the text of a header, with what the binary part before it says.
type luks2Header struct {
	uuid, label string
	json        []byte
}

// luks2Text reads a header of version 2 (LUKS2 on-disk format specification, 2.2).
func luks2Text(w *window, at int64, magic string) (t luks2Header, sequence uint64, err error) {
	const binary = 4096
	b := w.bytes(at, binary)
	if b == nil || string(b[:6]) != magic || be.Uint16(b[6:]) != 2 {
		return t, 0, errors.New("no header")
	}
	t.uuid, t.label = text(b[168:208]), text(b[24:72])
	size := be.Uint64(b[8:])
	if !slices.Contains(luks2Offsets, int64(size)) || be.Uint64(b[256:]) != uint64(at) {
		return t, 0, fmt.Errorf("header of %d bytes", size)
	}
	if sum := text(b[72:104]); sum != "sha256" {
		return t, 0, fmt.Errorf("checksums of type %.32q", sum)
	}
	t.json = w.bytes(at+binary, int(size-binary))
	want := slices.Clone(b[448:480])
	clear(b[448:512])
	h := sha256.New()
	h.Write(b)
	h.Write(t.json)
	if t.json == nil || string(h.Sum(nil)) != string(want) {
		return t, 0, errors.New("wrong checksum")
	}
	t.json = []byte(strings.TrimRight(string(t.json), "\x00"))
	return t, be.Uint64(b[16:]), nil
}

// luks2JSON is the text of a header (LUKS2 on-disk format specification, 3).
type luks2JSON struct {
	Keyslots map[string]struct {
		Type     string
		KeySize  int `json:"key_size"`
		Priority *int
		AF       struct {
			Type, Hash string
			Stripes    int
		}
		Area struct {
			Type, Encryption string
			KeySize          int `json:"key_size"`
			Offset, Size     string
		}
		KDF luks2KDF
	}
	Segments map[string]struct {
		Type, Offset, Size, Encryption string
		Tweak                          string `json:"iv_tweak"`
		SectorSize                     int64  `json:"sector_size"`
		Integrity                      json.RawMessage
		Flags                          []string
	}
	Digests map[string]struct {
		Keyslots, Segments []string
		luks2KDF
		Digest []byte
	}
	Config struct {
		Requirements struct{ Mandatory []string }
	}
}

type luks2KDF struct {
	Type, Hash         string
	Iterations         int64
	Time, Memory, CPUs int64
	Salt               []byte
}

func (k luks2KDF) kdf() luksKDF {
	n := k.Iterations
	if k.Type != "pbkdf2" {
		n = k.Time
	}
	return luksKDF{kind: k.Type, hash: strings.ToLower(k.Hash), iterations: n, memory: k.Memory, threads: k.CPUs, salt: k.Salt}
}

// parse fills the header in from the text.
func (h *luksHeader) parse(b []byte) error {
	var j luks2JSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	if r := j.Config.Requirements.Mandatory; len(r) > 0 {
		return fmt.Errorf("it requires %.100q", strings.Join(r, ", "))
	}
	s, ok := j.Segments["0"]
	if len(j.Segments) != 1 || !ok || s.Type != "crypt" {
		return fmt.Errorf("it has %d segments, or one that is not encrypted", len(j.Segments))
	}
	if len(s.Integrity) > 0 || len(s.Flags) > 0 {
		return errors.New("its segment has integrity data or flags, which are not known")
	}
	if s.SectorSize < 512 || s.SectorSize > 4096 || s.SectorSize&(s.SectorSize-1) != 0 {
		return fmt.Errorf("sectors of %d bytes", s.SectorSize)
	}
	var errs [3]error
	h.cipher, h.sector = s.Encryption, s.SectorSize
	h.off, errs[0] = luksNumber(s.Offset)
	if s.Size != "dynamic" {
		h.length, errs[1] = luksNumber(s.Size)
	}
	tweak, err := luksNumber(s.Tweak)
	h.tweak, errs[2] = uint64(tweak), err
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	h.digest(&j)
	return h.keyslots(&j)
}

// digest takes over the digests of the segment.
func (h *luksHeader) digest(j *luks2JSON) {
	for _, d := range j.Digests {
		if !slices.Contains(d.Segments, "0") {
			continue
		}
		own := luksDigest{kdf: d.kdf(), sum: d.Digest, slots: []int{}}
		for _, k := range d.Keyslots {
			if n, err := strconv.Atoi(k); err == nil {
				own.slots = append(own.slots, n)
			}
		}
		if len(own.slots) > 0 {
			h.digests = append(h.digests, own)
		}
	}
}

// keyslots takes over the slots, by priority and number.
func (h *luksHeader) keyslots(j *luks2JSON) error {
	priority := map[int]int{}
	for name, k := range j.Keyslots {
		n, err := strconv.Atoi(name)
		if err != nil || k.Type != "luks2" || k.AF.Type != "luks1" || k.Area.Type != "raw" {
			continue
		}
		off, err := luksNumber(k.Area.Offset)
		size, err2 := luksNumber(k.Area.Size)
		if err != nil || err2 != nil || len(h.slots) == maxSlots {
			continue
		}
		priority[n] = 1
		if k.Priority != nil {
			priority[n] = *k.Priority
		}
		h.slots = append(h.slots, luksSlot{
			number: n, kdf: k.KDF.kdf(), cipher: k.Area.Encryption, areaKey: k.Area.KeySize, off: off, length: size,
			keyBytes: k.KeySize, stripes: k.AF.Stripes, splitHash: strings.ToLower(k.AF.Hash),
		})
	}
	slices.SortFunc(h.slots, func(a, b luksSlot) int {
		if p := priority[b.number] - priority[a.number]; p != 0 {
			return p
		}
		return a.number - b.number
	})
	h.slots = slices.DeleteFunc(h.slots, func(s luksSlot) bool { return priority[s.number] == 0 })
	return nil
}

// luksNumber parses a number, which the text has as a string.
func luksNumber(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxBytes {
		return 0, fmt.Errorf("number %.40q is not valid", s)
	}
	return n, nil
}
