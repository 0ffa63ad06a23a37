package xfs_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/xfs"
	"github.com/sendense/sendense/internal/requires"
)

// crashed makes an image with a log.
func crashed(t testing.TB, steps int, mkfs ...string) string {
	t.Helper()
	image := fstest.Make(t, 310<<20, append([]string{"mkfs.xfs", "-q", "-f"}, mkfs...)...)
	dir, unmount := fstest.Mount(t, image, "xfs", "noatime")
	h := &history{t: t, dir: dir, rng: rand.New(rand.NewPCG(11, 12))}
	h.run(steps)
	shut(t, dir, shutLogged)
	h.close()
	unmount()
	return image
}

// logOf returns where the log of an image lies, in bytes, and the sector behind its
// last record.
func logOf(t testing.TB, image string) (at, size, head int64) {
	t.Helper()
	f, err := xfs.OpenWith(fstest.Open(t, image), xfs.Options{IgnoreLog: true})
	if err != nil {
		t.Fatal(err)
	}
	return f.Log()
}

// mounts has the kernel mount an image, and reports whether it did.
func mounts(t testing.TB, image string) bool {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "xfs", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		if !strings.Contains(string(out), "mount") {
			t.Fatalf("mount: %v\n%s", err, out)
		}
		return false
	}
	fstest.Unmounting(t, dir)()
	return true
}

// TestLogsThatWereNotWrittenToTheirEnd has sectors of the last records as they were
// before, and bytes anywhere in the log changed. What the kernel mounts reads the
// same; what it refuses to mount is not said to be replayed.
func TestLogsThatWereNotWrittenToTheirEnd(t *testing.T) {
	sound := crashed(t, 500)
	at, _, head := logOf(t, sound)
	rng := rand.New(rand.NewPCG(21, 22))
	refused := 0
	for round := range 24 {
		image := filepath.Join(t.TempDir(), "torn.img")
		fstest.Run(t, "cp", "--sparse=always", sound, image)
		f, err := os.OpenFile(image, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if round%3 == 2 { // damage
			for range 1 + rng.IntN(3) {
				b := []byte{byte(rng.Uint32())}
				if _, err := f.WriteAt(b, at+rng.Int64N(head*512)); err != nil {
					t.Fatal(err)
				}
			}
		} else { // what was in flight when power was lost
			first := head - 1 - rng.Int64N(min(head-8, 400))
			for sector := first; sector < head; sector++ {
				if sector == first || rng.IntN(2) == 0 {
					if _, err := f.WriteAt(make([]byte, 512), at+sector*512); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if !unfinished(t, image) {
			refused++
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d of 24 were refused by the kernel", refused)
	if refused == 0 || refused > 14 {
		t.Errorf("%d of 24 were refused by the kernel", refused)
	}
}

// unfinished compares an image whose log may be damaged with what the kernel makes
// of it, and reports whether that mounts it.
func unfinished(t *testing.T, image string) bool {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy.img")
	fstest.Run(t, "cp", "--sparse=always", image, copied)
	if mounts(t, copied) {
		same(t, image)
		if t.Failed() {
			keep(t, image)
		}
		return true
	}
	f, err := xfs.Open(fstest.Open(t, image))
	if err != nil {
		return false
	}
	if text := strings.Join(f.Info().Notes, " "); !strings.Contains(text, "its journal was not replayed") {
		t.Errorf("the kernel does not mount it: got notes %q", text)
		keep(t, image)
	}
	return false
}

// TestLogsThatGoAroundAndWereNotWrittenToTheirEnd has sectors of the last records as
// they were the last time around.
func TestLogsThatGoAroundAndWereNotWrittenToTheirEnd(t *testing.T) {
	for seed, options := range []string{"-l size=1400b", "-l size=10m,su=64k -b size=1024"} {
		t.Run(options, func(t *testing.T) {
			image := fstest.Make(t, 310<<20, append([]string{"mkfs.xfs", "-q", "-f", "--unsupported"}, strings.Fields(options)...)...)
			rng := rand.New(rand.NewPCG(31, uint64(seed)))
			refused, tried := 0, 0
			for round := range 60 {
				before := logBytes(t, image)
				dir, unmount := fstest.Mount(t, image, "xfs", "noatime")
				h := &history{t: t, dir: dir, rng: rand.New(rand.NewPCG(uint64(seed), uint64(round)))}
				h.run(300 + rng.IntN(500))
				shut(t, dir, []uint32{shutLogged, shutCut}[round%2])
				h.close()
				unmount()
				if around(t, image) || round > 12 && round%5 == 0 {
					for range 4 {
						tried++
						if !unfinished(t, torn(t, image, before, rng)) {
							refused++
						}
					}
				}
				if t.Failed() || tried >= 8 {
					break
				}
				_, unmount = fstest.Mount(t, image, "xfs", "")
				unmount()
			}
			t.Logf("%d of %d were refused by the kernel", refused, tried)
			if tried < 8 || refused > tried/2 {
				t.Error("want more that were tried, and fewer that were refused")
			}
		})
	}
}

// logBytes reads the log of an image.
func logBytes(t *testing.T, image string) []byte {
	t.Helper()
	at, size, _ := logOf(t, image)
	b := make([]byte, size)
	if err := fstest.Open(t, image).ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b
}

// torn makes a copy of an image in which some of the last sectors of the log are what
// they were before.
func torn(t *testing.T, image string, before []byte, rng *rand.Rand) string {
	t.Helper()
	at, size, head := logOf(t, image)
	to := filepath.Join(t.TempDir(), "torn.img")
	fstest.Run(t, "cp", "--sparse=always", image, to)
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 1 + rng.Int64N(400)
	for i := int64(1); i <= n; i++ {
		sector := (head - i + size/512) % (size / 512)
		if i == n || rng.IntN(2) == 0 {
			if _, err := f.WriteAt(before[sector*512:][:512], at+sector*512); err != nil {
				t.Fatal(err)
			}
		}
	}
	return to
}

func TestALogOnAnotherDeviceIsTold(t *testing.T) {
	external := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(external, make([]byte, 80<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	image := fstest.Make(t, 310<<20, "mkfs.xfs", "-q", "-f", "-l", "logdev="+external)
	f, err := xfs.Open(fstest.Open(t, image))
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(f.Info().Notes, " "); !strings.Contains(text, "not replayed, for the log is on another device") {
		t.Errorf("notes: got %q", text)
	}
}

func TestAFreshFileSystemHasNothingToReplay(t *testing.T) {
	for _, options := range []string{"", "-l su=256k", "-b size=1024"} {
		f, err := xfs.Open(fstest.Open(t, fstest.Make(t, 310<<20, append([]string{"mkfs.xfs", "-q", "-f"}, strings.Fields(options)...)...)))
		if err != nil || len(f.Info().Notes) > 0 {
			t.Errorf("mkfs.xfs %s: got %v, %v", options, err, f.Info().Notes)
		}
	}
}

func TestDamageOfALog(t *testing.T) {
	fstest.Damage(t, fstest.Open(t, crashed(t, 300, "--unsupported", "-l", "size=1400b")), xfs.Open, 100)
}

// over is a volume with some bytes replaced.
type over struct {
	fsys.Volume
	at int64
	b  []byte
}

func (o over) ReadAt(p []byte, off int64) error {
	if err := o.Volume.ReadAt(p, off); err != nil {
		return err
	}
	if from := max(o.at, off); from < min(o.at+int64(len(o.b)), off+int64(len(p))) {
		copy(p[from-off:], o.b[from-o.at:])
	}
	return nil
}

// newLog is a log whose only record has data, of n operations.
func newLog(uuid, data []byte, n uint32) []byte {
	const headers = 1
	sectors := (len(data) + 511) / 512
	b := make([]byte, (headers+sectors+1)*512)
	h := b[:512]
	be := binary.BigEndian
	be.PutUint32(h, 0xfeedbabe)
	be.PutUint32(h[4:], 1)
	be.PutUint32(h[8:], 2)
	be.PutUint32(h[12:], uint32(len(data)))
	be.PutUint64(h[16:], 1<<32)
	be.PutUint64(h[24:], 1<<32)
	be.PutUint32(h[40:], n)
	be.PutUint32(h[300:], 1)
	copy(h[304:], uuid)
	be.PutUint32(h[320:], 32<<10)
	copy(b[512:], data)
	for i := range sectors {
		copy(h[44+4*i:], b[512+512*i:][:4])
		be.PutUint32(b[512+512*i:], 1)
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(0, table, h[:32])
	crc = crc32.Update(crc, table, make([]byte, 4))
	crc = crc32.Update(crc, table, h[36:328])
	binary.LittleEndian.PutUint32(h[32:], crc32.Update(crc, table, b[512:512+len(data)]))
	return b
}

// FuzzLog has anything in a record of the log of a sound file system.
func FuzzLog(f *testing.F) {
	requires.Root(f)
	image := crashed(f, 60, "--unsupported", "-l", "size=1400b")
	at, _, head := logOf(f, image)
	vol := fstest.Open(f, image)
	all := make([]byte, head*512)
	super := make([]byte, 512)
	if err := vol.ReadAt(all, at); err != nil {
		f.Fatal(err)
	}
	if err := vol.ReadAt(super, 0); err != nil {
		f.Fatal(err)
	}
	for sector := int64(0); sector < head; {
		h := all[sector*512:]
		n := int64(binary.BigEndian.Uint32(h[12:]))
		if !bytes.HasPrefix(h, []byte{0xfe, 0xed, 0xba, 0xbe}) || n > 32<<10 {
			f.Fatalf("no record at sector %d", sector)
		}
		data := bytes.Clone(h[512 : 512+n])
		for i := int64(0); i*512 < n; i++ {
			copy(data[i*512:min(i*512+4, n)], h[44+4*i:])
		}
		f.Add(data, binary.BigEndian.Uint32(h[40:]))
		sector += 1 + (n+511)/512
	}
	f.Fuzz(func(t *testing.T, data []byte, n uint32) {
		if len(data) > 32<<10 || len(data) == 0 || n > 4096 {
			return
		}
		fstest.Survives(t, over{vol, at, newLog(super[32:48], data, n)}, xfs.Open)
	})
}
