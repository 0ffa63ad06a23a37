package ntfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/ntfs"
)

// memory is a Volume in memory.
type memory = fstest.Memory

// loaded makes a small volume and reads it into memory.
func loaded(t testing.TB, options string, fill func(dir string)) memory {
	t.Helper()
	b, err := os.ReadFile(made(t, 16<<20, options, "", fill))
	must(t, err)
	return b
}

// mftRecord returns the MFT record of an inode, to be changed.
func mftRecord(t testing.TB, m memory, id fsys.ID) []byte {
	t.Helper()
	f, err := ntfs.Open(m)
	must(t, err)
	off, n, err := f.(fsys.Inodes).Inode(id)
	must(t, err)
	return m[off : off+n]
}

// attribute returns the attribute of a type in a record, to be changed.
func attribute(t testing.TB, record []byte, typ uint32) []byte {
	t.Helper()
	for at := binary.LittleEndian.Uint16(record[0x14:]); ; {
		got, n := binary.LittleEndian.Uint32(record[at:]), binary.LittleEndian.Uint32(record[at+4:])
		if got == typ {
			return record[at : uint32(at)+n]
		}
		if got > typ {
			t.Fatalf("there is no attribute %#x", typ)
		}
		at += uint16(n)
	}
}

func TestInfoIsThatOfTheVolume(t *testing.T) {
	image := made(t, 512<<20, "-c 2048 -L Größe", "", func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "x"), make([]byte, 7<<20), 0o644))
	})
	f, _ := opened(t, image)
	dir, unmount := fstest.Mount(t, image, "ntfs-3g", "ro")
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	unmount()
	got := f.Info()
	if got.Type != "ntfs" || got.Label != "Größe" || got.BlockSize != 2048 || !got.FoldsCase || len(got.Notes) > 0 {
		t.Errorf("got %+v", got)
	}
	if want := strings.TrimSpace(fstest.Run(t, "blkid", "-p", "-s", "UUID", "-o", "value", image)); got.UUID != want {
		t.Errorf("UUID: got %s, want %s", got.UUID, want)
	}
	if size, free := int64(st.Blocks)*st.Frsize, int64(st.Bfree)*st.Frsize; got.Size != size || got.Free != free {
		t.Errorf("got %d bytes, %d free, want %d, %d", got.Size, got.Free, size, free)
	}
}

// notes opens a volume and looks for a note with each of these words.
func notes(t *testing.T, m memory, want ...string) {
	t.Helper()
	f, err := ntfs.Open(m)
	if err != nil {
		t.Fatal(err)
	}
	got := f.Info().Notes
	if len(got) != len(want) {
		t.Errorf("notes: got %q, want %d", got, len(want))
		return
	}
	for i, w := range want {
		if !strings.Contains(got[i], w) {
			t.Errorf("note %d: got %q, want one with %q", i, got[i], w)
		}
	}
}

func TestNotesTellTheState(t *testing.T) {
	m := loaded(t, "", func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "Hiberfil.sys"), append([]byte("HIBR"), make([]byte, 5000)...), 0o644))
	})
	notes(t, m, "hibernated")
	f, err := ntfs.Open(m)
	must(t, err)
	id := walkTo(t, f, "hiberfil.sys")
	list, err := f.Extents(id, 0, 5004)
	must(t, err)
	copy(m[list[0].At:], "wake")
	notes(t, m)

	flags := attribute(t, mftRecord(t, m, 3), 0x70)
	flags = flags[binary.LittleEndian.Uint16(flags[0x14:])+10:]
	flags[0] |= 1
	notes(t, m, "dirty")
	flags[1] |= 0x40
	notes(t, m, "dirty", "chkdsk")
	flags[0], flags[1] = 0, 0
	notes(t, m)

	// The first run of the log tells where it is.
	log := attribute(t, mftRecord(t, m, 2), 0x80)
	pairs := log[binary.LittleEndian.Uint16(log[0x20:]):]
	count, delta := int(pairs[0]&15), int(pairs[0]>>4)
	var at [8]byte
	copy(at[:], pairs[1+count:1+count+delta])
	pages := m[binary.LittleEndian.Uint64(at[:])*4096:]
	for _, x := range []struct {
		name          string
		first, second []byte
		want          []string
	}{
		{"in use", restartPage(2, 0, 0), restartPage(1, 0xffff, 0), []string{"in use"}},
		{"in use by the second", restartPage(2, 0xffff, 0), restartPage(3, 0, 0), []string{"in use"}},
		{"nobody's", restartPage(2, 0xffff, 0), restartPage(1, 0, 0), nil},
		{"clean", restartPage(2, 0, 2), restartPage(1, 0, 0), nil},
		{"torn second", restartPage(2, 0xffff, 0), torn(restartPage(3, 0, 0)), nil},
		{"torn first", torn(restartPage(2, 0xffff, 0)), restartPage(3, 0, 0), []string{"in use"}},
		{"overwritten", make([]byte, 4096), make([]byte, 4096), []string{"not known"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			copy(pages, x.first)
			copy(pages[4096:], x.second)
			notes(t, m, x.want...)
		})
	}
}

// restartPage makes a restart page of the log.
func restartPage(lsn uint64, inUse, flags uint16) []byte {
	b := make([]byte, 4096)
	copy(b, "RSTR")
	binary.LittleEndian.PutUint16(b[4:], 0x1e)
	binary.LittleEndian.PutUint16(b[6:], 9)
	binary.LittleEndian.PutUint32(b[0x10:], 4096)
	binary.LittleEndian.PutUint32(b[0x14:], 4096)
	binary.LittleEndian.PutUint16(b[0x18:], 0x30)
	binary.LittleEndian.PutUint64(b[0x30:], lsn)
	binary.LittleEndian.PutUint16(b[0x3c:], inUse)
	binary.LittleEndian.PutUint16(b[0x3e:], flags)
	return b
}

func torn(b []byte) []byte { b[1023] ^= 1; return b }

func TestOnlyWhatIsKnownIsOpened(t *testing.T) {
	m := loaded(t, "", func(string) {})
	for _, x := range []struct {
		name   string
		change func(memory)
		want   error
	}{
		{"no NTFS", func(m memory) { copy(m[3:], "EXFAT   ") }, fsys.ErrNotFound},
		{"encrypted by BitLocker", func(m memory) { copy(m[3:], "-FVE-FS-") }, fsys.ErrNotFound},
		{"clusters of 3 sectors", func(m memory) { m[0x0d] = 3 }, fsys.ErrCorrupt},
		{"larger than the volume", func(m memory) { m[0x2b] = 1 }, fsys.ErrCorrupt},
		{"an MFT elsewhere", func(m memory) { m[0x31] = 4 }, fsys.ErrCorrupt},
		{"NTFS 1.2", func(m memory) {
			b := attribute(t, mftRecord(t, m, 3), 0x70)
			copy(b[binary.LittleEndian.Uint16(b[0x14:])+8:], "\x01\x02")
		}, fsys.ErrUnsupported},
		{"a torn root directory", func(m memory) { mftRecord(t, m, 5)[0x1fe] ^= 1 }, fsys.ErrCorrupt},
	} {
		t.Run(x.name, func(t *testing.T) {
			changed := bytes.Clone(m)
			x.change(changed)
			if _, err := ntfs.Open(memory(changed)); !errors.Is(err, x.want) {
				t.Errorf("got %v, want %v", err, x.want)
			}
		})
	}
	for _, n := range []int{0, 1, 511, 512, 4096} {
		if _, err := ntfs.Open(m[:n]); err == nil {
			t.Errorf("a volume cut at %d bytes was opened", n)
		}
	}
}

func TestIDsStandForOneUseOfARecord(t *testing.T) {
	m := loaded(t, "", func(dir string) { must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644)) })
	f, err := ntfs.Open(m)
	must(t, err)
	id := walkTo(t, f, "file")
	b := mftRecord(t, m, id)
	b[0x10]++ // the record was used anew, and the directory was not told
	f, err = ntfs.Open(m)
	must(t, err)
	if id := walkTo(t, f, "file"); id>>48 == fsys.ID(b[0x10]) {
		t.Fatalf("got ID %#x, want the one of the directory", id)
	}
	if _, err := f.Stat(id); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("stat of a record in another use: got %v, want fsys.ErrCorrupt", err)
	}
	b[0x10]--
	b[0x16] &^= 1 // it is free
	f, err = ntfs.Open(m)
	must(t, err)
	if _, err := f.Stat(id); !errors.Is(err, fsys.ErrCorrupt) {
		t.Errorf("stat of a free record: got %v, want fsys.ErrCorrupt", err)
	}
	for _, id := range []fsys.ID{1 << 47, 1<<64 - 1, 1 << 20} {
		if _, err := f.Stat(id); !errors.Is(err, fsys.ErrCorrupt) {
			t.Errorf("stat of %#x: got %v, want fsys.ErrCorrupt", id, err)
		}
	}
}

func TestWhatIsEncryptedIsRefused(t *testing.T) {
	m := loaded(t, "", func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("what the key is for"), 0o644))
	})
	f, err := ntfs.Open(m)
	must(t, err)
	b := mftRecord(t, m, walkTo(t, f, "file"))
	attribute(t, b, 0x80)[0x0d] |= 0x40
	info := attribute(t, b, 0x10)
	info[binary.LittleEndian.Uint16(info[0x14:])+0x21] |= 0x40
	f, err = ntfs.Open(m)
	must(t, err)
	refuses(t, f, "file", "EFS")
	if a, err := f.Stat(walkTo(t, f, "file")); err != nil || a.Size != 19 || !strings.Contains(strings.Join(a.Flags, " "), "encrypted") {
		t.Errorf("got %+v, %v, want 19 bytes that are encrypted", a, err)
	}
}

func TestRecordsTellWhatChanged(t *testing.T) {
	names := []string{"stays", "content", "mode", "name", "link", "attribute", "long"}
	image := made(t, 64<<20, "", "", func(dir string) {
		for _, n := range names {
			must(t, os.WriteFile(filepath.Join(dir, n), make([]byte, 100<<10), 0o644))
		}
	})
	records := func() map[string]string {
		f, v := opened(t, image)
		found := map[string]string{}
		for _, n := range names {
			off, size, err := f.(fsys.Inodes).Inode(walkTo(t, f, n))
			must(t, err)
			b := make([]byte, size)
			must(t, v.ReadAt(b, off))
			found[n] = string(b)
		}
		return found
	}
	before := records()
	dir, unmount := fstest.Mount(t, image, "ntfs-3g", mounted)
	at := func(name string) string { return filepath.Join(dir, name) }
	f, err := os.OpenFile(at("content"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("other"), 50000)
	must(t, errors.Join(err, f.Close()))
	must(t, unix.Setxattr(at("mode"), "system.ntfs_attrib", []byte{1, 0, 0, 0}, 0))
	must(t, os.Rename(at("name"), at("other name")))
	must(t, os.Rename(at("other name"), at("name")))
	must(t, os.Link(at("link"), at("other link")))
	must(t, unix.Setxattr(at("attribute"), "user.x", []byte("y"), 0))
	must(t, os.Truncate(at("long"), 200<<10))
	unmount()
	for name, got := range records() {
		if same := got == before[name]; same != (name == "stays") {
			t.Errorf("record of %s: got the same: %v", name, same)
		}
	}
}
