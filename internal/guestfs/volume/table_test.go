package volume_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf16"
)

// partition is one that a test makes.
type partition struct {
	mib  int64 // size; 0: to the end
	name string
	lvm  bool
}

var le = binary.LittleEndian

// Type GUIDs as they lie on disk: Linux data, and LVM.
var (
	linuxData = []byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}
	linuxLVM  = []byte{0x79, 0xd3, 0xd6, 0xe6, 0x07, 0xf5, 0xc2, 0x44, 0xa2, 0x3c, 0x23, 0x8f, 0x2a, 0x3d, 0xf9, 0x28}
)

// partitioned makes an image with a partition table, gpt or dos, or with none. The
// kernel of the machine that it is given to is what says whether it is right.
func partitioned(t testing.TB, name string, size int64, label string, parts ...partition) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	switch label {
	case "gpt":
		err = writeGPT(f, size/512, parts)
	case "dos":
		err = writeDOS(f, size/512, parts)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// ranges lays partitions out one behind the other from 1 MiB: first and last
// sector of each.
func ranges(sectors int64, parts []partition) [][2]int64 {
	var list [][2]int64
	at := int64(2048)
	for _, p := range parts {
		end := at + p.mib*2048
		if p.mib == 0 {
			end = (sectors - 34) &^ 2047
		}
		list = append(list, [2]int64{at, end - 1})
		at = end
	}
	return list
}

func protective(sectors int64) []byte {
	b := make([]byte, 512)
	b[510], b[511] = 0x55, 0xaa
	b[450] = 0xee
	le.PutUint32(b[454:], 1)
	le.PutUint32(b[458:], uint32(sectors-1))
	return b
}

func writeGPT(f *os.File, sectors int64, parts []partition) error {
	return writeGPTOf(f, sectors, 512, parts)
}

// writeGPTOf writes the table of a disk whose sectors have other sizes.
func writeGPTOf(f *os.File, sectors, sector int64, parts []partition) error {
	entries := make([]byte, 128*128)
	for i, r := range ranges(sectors*sector/512, parts) {
		r[0], r[1] = r[0]*512/sector, (r[1]+1)*512/sector-1
		e := entries[i*128:]
		copy(e, linuxData)
		if parts[i].lvm {
			copy(e, linuxLVM)
		}
		e[16], e[31] = byte(i+1), 1 // an identifier of its own
		le.PutUint64(e[32:], uint64(r[0]))
		le.PutUint64(e[40:], uint64(r[1]))
		for j, u := range utf16.Encode([]rune(parts[i].name)) {
			le.PutUint16(e[56+2*j:], u)
		}
	}
	array := int64(len(entries)) / sector
	header := func(own, other, table int64) []byte {
		h := make([]byte, sector)
		copy(h, "EFI PART")
		le.PutUint32(h[8:], 0x10000)
		le.PutUint32(h[12:], 92)
		le.PutUint64(h[24:], uint64(own))
		le.PutUint64(h[32:], uint64(other))
		le.PutUint64(h[40:], uint64(2+array))
		le.PutUint64(h[48:], uint64(sectors-2-array))
		h[56] = 7
		le.PutUint64(h[72:], uint64(table))
		le.PutUint32(h[80:], 128)
		le.PutUint32(h[84:], 128)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		return h
	}
	var errs []error
	for at, b := range map[int64][]byte{
		0: protective(sectors), 1: header(1, sectors-1, 2), 2: entries, sectors - 1 - array: entries, sectors - 1: header(sectors-1, 1, sectors-1-array),
	} {
		_, err := f.WriteAt(b, at*sector)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func writeDOS(f *os.File, sectors int64, parts []partition) error {
	b := make([]byte, 512)
	b[510], b[511] = 0x55, 0xaa
	for i, r := range ranges(sectors, parts) {
		e := b[446+16*i:]
		e[4] = 0x83
		le.PutUint32(e[8:], uint32(r[0]))
		le.PutUint32(e[12:], uint32(r[1]-r[0]+1))
	}
	_, err := f.WriteAt(b, 0)
	return err
}
