package volume_test

import (
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/volume"
)

// FuzzLUKS has any text in a sound header of version 2, and anything in one of
// version 1. No key is derived: what is asked for is only read.
func FuzzLUKS(f *testing.F) {
	f.Add([]byte(`{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},
"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},
"kdf":{"type":"argon2id","time":4,"memory":1000,"cpus":1,"salt":"AAAA"}}},"tokens":{},
"segments":{"0":{"type":"crypt","offset":"16384","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}},
"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"AAAA","digest":"AAAA"}},
"config":{"json_size":"12288","keyslots_size":"16744448"}}`), uint16(2))
	f.Add([]byte("aes\x00"), uint16(1))
	f.Fuzz(func(t *testing.T, text []byte, version uint16) {
		b := make([]byte, 16<<10)
		copy(b[6:], text[:min(len(text), 586)]) // of version 1
		if version == 2 {
			clear(b)
			copy(b[4096:], text)
			binary.BigEndian.PutUint64(b[8:], uint64(len(b)))
			copy(b[72:], "sha256")
			copy(b, "LUKS\xba\xbe")
			binary.BigEndian.PutUint16(b[6:], version)
			sum := sha256.Sum256(b)
			copy(b[448:], sum[:])
		}
		copy(b, "LUKS\xba\xbe")
		binary.BigEndian.PutUint16(b[6:], version)
		nodes := checkScan(t, []volume.Disk{{Index: 0, Key: "vda", Volume: memory{4 << 20, map[int64][]byte{0: b}}}})
		if nodes[0].Type != "crypto_LUKS" || nodes[0].Refusal == "" {
			t.Errorf("got type %q, refusal %q", nodes[0].Type, nodes[0].Refusal)
		}
	})
}
