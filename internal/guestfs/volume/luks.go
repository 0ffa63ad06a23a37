package volume

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"runtime/debug"

	"golang.org/x/crypto/argon2"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// luksHeader is a header of LUKS, of either version.
type luksHeader struct {
	version     int
	uuid, label string
	slots       []luksSlot
	digests     []luksDigest
	cipher      string // of the content: aes-xts-plain64
	keyBytes    int
	off, length int64 // of the content; length 0: up to the end
	sector      int64 // bytes
	tweak       uint64
	refusal     string // why it cannot be unlocked, whatever the passphrase
}

// luksSlot keeps the key, encrypted with one that is derived from a passphrase.
type luksSlot struct {
	number      int
	kdf         luksKDF
	cipher      string
	areaKey     int // bytes of the key that the area is encrypted with
	off, length int64
	keyBytes    int
	stripes     int
	splitHash   string
}

// luksKDF derives a key from a passphrase.
type luksKDF struct {
	kind       string // pbkdf2, argon2i, argon2id
	hash       string // of pbkdf2
	iterations int64
	memory     int64 // KiB, of argon2
	threads    int64
	salt       []byte
}

// luksDigest tells whether a key is the right one.
type luksDigest struct {
	slots []int
	kdf   luksKDF
	sum   []byte
}

// Limits of what a header may ask for. cryptsetup aims at two seconds: some
// millions of iterations of PBKDF2, four passes of Argon2 over 1 GiB.
const (
	maxIterations = 64 << 20
	maxPasses     = 64
	maxThreads    = 64
	maxKeyBytes   = 512
	maxStripes    = 8000
	maxSlots      = 32
	// maxWork is for all containers of a scan together: iterations, of which
	// argonWork take as long as Argon2 takes to go over one KiB.
	maxWork   = 1 << 30
	argonWork = 8
)

const (
	luksMagic  = "LUKS\xba\xbe"
	luksMagic2 = "SKUL\xba\xbe" // of the second header of version 2
)

// readLUKS returns the header of a container, nil if there is none.
func readLUKS(w *window) *luksHeader {
	b := w.bytes(0, 592)
	if b == nil || string(b[:6]) != luksMagic {
		return nil
	}
	switch version := be.Uint16(b[6:]); version {
	case 1:
		return parseLUKS1(b)
	case 2:
		return readLUKS2(w)
	default:
		return &luksHeader{version: int(version), refusal: fmt.Sprintf("It is encrypted with version %d of LUKS, which is not known.", version)}
	}
}

var luksHashes = map[string]func() hash.Hash{"sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New, "sha384": sha512.New384, "sha224": sha256.New224}

var errPassphrase = errors.New("no keyslot fits the passphrase")

// derive returns n bytes that follow from a passphrase or a key.
func (k *luksKDF) derive(secret []byte, n int, b *budget) ([]byte, error) {
	switch k.kind {
	case "pbkdf2":
		h := luksHashes[k.hash]
		if h == nil {
			return nil, fmt.Errorf("hash %.40q is not known", k.hash)
		}
		blocks := int64((n + h().Size() - 1) / h().Size())
		if k.iterations < 1 || k.iterations > maxIterations {
			return nil, fmt.Errorf("deriving its key takes %d iterations, and %d are the most", k.iterations, maxIterations)
		}
		if err := b.spend(k.iterations * blocks); err != nil {
			return nil, err
		}
		return pbkdf2.Key(h, string(secret), k.salt, int(k.iterations), n)
	case "argon2i", "argon2id":
		if k.iterations < 1 || k.iterations > maxPasses || k.threads < 1 || k.threads > maxThreads || k.memory < 8 {
			return nil, fmt.Errorf("deriving its key takes %d passes over %d KiB with %d threads, which is not valid", k.iterations, k.memory, k.threads)
		}
		if k.memory > b.memory>>10 {
			return nil, fmt.Errorf("deriving its key takes %d MiB of memory, and %d MiB are the most", k.memory>>10, b.memory>>20)
		}
		if err := b.spend(k.iterations * k.memory * argonWork); err != nil {
			return nil, err
		}
		f := argon2.Key
		if k.kind == "argon2id" {
			f = argon2.IDKey
		}
		defer debug.FreeOSMemory() // before the next one takes as much again
		return f(secret, k.salt, uint32(k.iterations), uint32(k.memory), uint8(k.threads), uint32(n)), nil
	}
	return nil, fmt.Errorf("key derivation %.40q is not known", k.kind)
}

// open returns the key that a slot keeps.
func (h *luksHeader) open(v fsys.Volume, s *luksSlot, passphrase []byte, b *budget) ([]byte, error) {
	if s.keyBytes < 1 || s.keyBytes > maxKeyBytes || s.areaKey < 1 || s.areaKey > maxKeyBytes || s.stripes < 1 || s.stripes > maxStripes {
		return nil, errors.New("it is not valid")
	}
	size := int64(s.keyBytes) * int64(s.stripes)
	if size > s.length || fsys.CheckRange(s.off, (size+511)&^511, v.Size()) != nil {
		return nil, errors.New("it lies past the end of its area")
	}
	derived, err := s.kdf.derive(passphrase, s.areaKey, b)
	if err != nil {
		return nil, err
	}
	c, err := newSectorCipher(s.cipher, derived)
	if err != nil {
		return nil, err
	}
	area := make([]byte, (size+511)&^511)
	if err := v.ReadAt(area, s.off); err != nil {
		return nil, err
	}
	for i := 0; i < len(area); i += 512 {
		c.decrypt(area[i:i+512], uint64(i/512))
	}
	key, err := merge(area[:size], s.keyBytes, s.splitHash)
	if err != nil {
		return nil, err
	}
	return key, h.check(s.number, key, b)
}

// anySlot stands for all of them.
const anySlot = -1

// check says whether key is the one of a digest that goes with a slot.
func (h *luksHeader) check(slot int, key []byte, b *budget) error {
	for _, d := range h.digests {
		fits := len(d.slots) == 0 || slot == anySlot
		for _, n := range d.slots {
			fits = fits || n == slot
		}
		if !fits || len(d.sum) == 0 || len(d.sum) > 128 {
			continue
		}
		sum, err := d.kdf.derive(key, len(d.sum), b)
		if err != nil {
			return err
		}
		if subtle.ConstantTimeCompare(sum, d.sum) == 1 {
			return nil
		}
	}
	return errPassphrase
}

// merge joins what the anti-forensic splitter spread over stripes of n bytes (LUKS
// on-disk format specification, 2.4).
func merge(stripes []byte, n int, hashName string) ([]byte, error) {
	h := luksHashes[hashName]
	if h == nil {
		return nil, fmt.Errorf("hash %.40q is not known", hashName)
	}
	d := make([]byte, n)
	for {
		subtle.XORBytes(d, d, stripes[:n])
		if stripes = stripes[n:]; len(stripes) == 0 {
			return d, nil
		}
		diffuse(d, h())
	}
}

// diffuse replaces each part of b that is as long as a digest by the digest of its
// number and itself.
func diffuse(b []byte, h hash.Hash) {
	for i := 0; i*h.Size() < len(b); i++ {
		part := b[i*h.Size() : min((i+1)*h.Size(), len(b))]
		h.Reset()
		h.Write(be.AppendUint32(nil, uint32(i)))
		h.Write(part)
		copy(part, h.Sum(nil))
	}
}

// content returns the decrypted content.
func (h *luksHeader) content(v fsys.Volume, key []byte) (fsys.Volume, error) {
	c, err := newSectorCipher(h.cipher, key)
	if err != nil {
		return nil, err
	}
	size := v.Size() - h.off
	if h.length != 0 {
		if h.length > size {
			return nil, errors.New("its content lies past the end of the volume")
		}
		size = h.length
	}
	size -= size % h.sector
	if h.off < 0 || size <= 0 {
		return nil, errors.New("its content lies past the end of the volume")
	}
	return &decrypted{vol: v, off: h.off, size: size, sector: h.sector, tweak: h.tweak, cipher: c}, nil
}
