package volume

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"fmt"
	"strings"

	"golang.org/x/crypto/xts"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// sectorCipher decrypts sectors in place. It may be used concurrently.
type sectorCipher interface {
	// decrypt decrypts a sector; number counts units of 512 bytes.
	decrypt(b []byte, number uint64)
}

// newSectorCipher returns the cipher that dm-crypt calls by that name
// (torvalds/linux Documentation/admin-guide/device-mapper/dm-crypt.rst).
func newSectorCipher(name string, key []byte) (sectorCipher, error) {
	algorithm, mode, _ := strings.Cut(name, "-")
	if algorithm != "aes" {
		return nil, fmt.Errorf("cipher %.60q is not known", name)
	}
	switch mode {
	case "xts-plain64", "xts-plain":
		if len(key) != 32 && len(key) != 64 {
			return nil, fmt.Errorf("cipher %s with a key of %d bytes", name, len(key))
		}
		c, err := xts.NewCipher(aes.NewCipher, key)
		if err != nil {
			return nil, err
		}
		return xtsCipher{c, mode == "xts-plain"}, nil
	case "cbc-essiv:sha256", "cbc-plain64", "cbc-plain":
		c, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		b := cbcCipher{block: c, short: mode == "cbc-plain"}
		if mode == "cbc-essiv:sha256" {
			sum := sha256.Sum256(key)
			if b.essiv, err = aes.NewCipher(sum[:]); err != nil {
				return nil, err
			}
		}
		return b, nil
	}
	return nil, fmt.Errorf("cipher %.60q is not known", name)
}

type xtsCipher struct {
	*xts.Cipher
	short bool // numbers of 32 bits
}

func (c xtsCipher) decrypt(b []byte, number uint64) {
	if c.short {
		number &= 1<<32 - 1
	}
	c.Decrypt(b, b, number)
}

type cbcCipher struct {
	block, essiv cipher.Block
	short        bool
}

func (c cbcCipher) decrypt(b []byte, number uint64) {
	if c.short {
		number &= 1<<32 - 1
	}
	iv := make([]byte, aes.BlockSize)
	le.PutUint64(iv, number)
	if c.essiv != nil {
		c.essiv.Encrypt(iv, iv)
	}
	cipher.NewCBCDecrypter(c.block, iv).CryptBlocks(b, b)
}

// decrypted is the content of an encrypted volume.
type decrypted struct {
	vol       fsys.Volume
	off, size int64
	sector    int64
	tweak     uint64
	cipher    sectorCipher
}

func (d *decrypted) Size() int64 { return d.size }

// decryptChunk is how much is decrypted at a time, in bytes.
const decryptChunk = 256 << 10

func (d *decrypted) ReadAt(p []byte, off int64) error {
	if err := fsys.CheckRange(off, int64(len(p)), d.size); err != nil {
		return err
	}
	for len(p) > 0 {
		start := off - off%d.sector
		buf := make([]byte, min(decryptChunk, (off+int64(len(p))-start+d.sector-1)/d.sector*d.sector))
		if err := d.vol.ReadAt(buf, d.off+start); err != nil {
			return err
		}
		for at := int64(0); at < int64(len(buf)); at += d.sector {
			d.cipher.decrypt(buf[at:at+d.sector], uint64(start+at)/512+d.tweak)
		}
		n := copy(p, buf[off-start:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}
