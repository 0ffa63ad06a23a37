package drivers_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/drivers"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// cpio makes an archive of empty files but for one.
func cpio(t testing.TB, files ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		fstest.Write(t, dir, f, strings.Repeat("x", len(f)*100))
	}
	return through(t, []byte(strings.Join(files, "\n")+"\n"), "cpio", "--create", "--format=newc", "--quiet", "--directory="+dir)
}

// through returns what a program makes of its input.
func through(t testing.TB, in []byte, name string, args ...string) []byte {
	t.Helper()
	requires.Tool(t, name)
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

func listed(b []byte) (names []string, err error) {
	err = drivers.ReadInitramfs(bytes.NewReader(b), func(name string) { names = append(names, name) })
	return names, err
}

// compressors are those that kernels read, with their usual flags.
var compressors = map[string][]string{
	"gzip": {"gzip", "-9"}, "bzip2": {"bzip2"}, "xz": {"xz", "--check=crc32", "--lzma2=dict=1MiB"}, "lzma": {"xz", "--format=lzma"},
	"lz4": {"lz4", "-l", "-9", "-q"}, "lz4 frames": {"lz4", "-q"}, "zstd": {"zstd", "-q", "-19"}, "as it is": {"cat"},
}

func TestEveryFormOfInitialRAMDisk(t *testing.T) {
	early := cpio(t, "kernel/x86/microcode/AuthenticAMD.bin")
	main := cpio(t, "init", "lib/modules/6.1/virtio_blk.ko", "lib/modules/6.1/kernel/ahci.ko.xz")
	want := []string{"init", "lib/modules/6.1/virtio_blk.ko", "lib/modules/6.1/kernel/ahci.ko.xz"}
	for name, argv := range compressors {
		packed := through(t, main, argv[0], argv[1:]...)
		for how, b := range map[string][]byte{
			"alone":                 packed,
			"behind microcode":      slices.Concat(early, packed),
			"behind filled up room": slices.Concat(early, make([]byte, 4096), packed),
			"with zeroes behind":    slices.Concat(packed, make([]byte, 1024)),
		} {
			names, err := listed(b)
			names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, "kernel/") })
			if err != nil || !slices.Equal(names, want) {
				t.Errorf("%s, %s: got %q, %v, want %q", name, how, names, err, want)
			}
		}
		for n := range len(packed) {
			if n%97 != 0 || n >= len(packed)-12 { // the last bytes may be a checksum that nobody waits for
				continue
			}
			if names, err := listed(packed[:n]); err == nil && len(names) < len(want) {
				t.Errorf("%s, cut at %d of %d: got %q and no error", name, n, len(packed), names)
			}
		}
	}
	two, err := listed(slices.Concat(through(t, early, "gzip"), through(t, main, "zstd", "-q")))
	if err != nil || len(two) != 4 {
		t.Errorf("two that are compressed: got %q, %v", two, err)
	}
	for says, b := range map[string][]byte{
		"lzo":                   through(t, main, "lzop"),
		"no archive":            []byte("MZ this is a program"),
		"ends in the middle":    nil,
		"no archive of cpio":    through(t, []byte("something else"), "gzip"),
		"entry of its archive":  append(bytes.Clone(early[:len(early)/2]), bytes.Repeat([]byte{7}, len(early))...),
		"which cannot be read":  append([]byte("\xfd7zXZ\x00"), make([]byte, 100)...),
		"which cannot be read:": append([]byte("\x28\xb5\x2f\xfd"), bytes.Repeat([]byte{0xff}, 100)...),
	} {
		if _, err := listed(b); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error with %q, got %v", says, err)
		}
	}
}

func TestInitialRAMDiskThatIsTooLarge(t *testing.T) {
	// An entry that says it has 4 GiB, over and over, of zeroes that compress well.
	head := []byte("070701" + strings.Repeat("00000000", 6) + "fffffff0" + strings.Repeat("00000000", 4) + "00000002" + "00000000" + "a\x00")
	if _, err := listed(append(head, make([]byte, 100)...)); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("got %v, want that it is too large", err)
	}
	zeroes := through(t, make([]byte, 64<<20), "zstd", "-q")
	bomb := bytes.Repeat(zeroes, 20)
	if _, err := listed(bomb); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("zeroes: got %v, want that it is too large", err)
	}
}

func TestVersionsAreOrderedAsPeopleDo(t *testing.T) {
	want := []string{"5.10.0-9-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.9.1", "6.10.0"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, drivers.CompareVersions)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDebianInitialRAMDisks(t *testing.T) {
	d := fstest.NewDebian(t)
	for path, want := range map[string]bool{d.Most: true, d.Few: false} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		names, err := listed(b)
		if err != nil || !slices.Contains(names, "init") {
			t.Errorf("%s: got %d names, %v, want init among them", filepath.Base(path), len(names), err)
		}
		if got := slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, "/virtio_blk.ko") }); got != want {
			t.Errorf("%s has virtio_blk: got %v, want %v", filepath.Base(path), got, want)
		}
		// What other tools see of it.
		dir := t.TempDir()
		through(t, b, "sh", "-c", "zstd -dc | cpio --list --quiet >"+filepath.Join(dir, "list"))
		list, err := os.ReadFile(filepath.Join(dir, "list"))
		if err != nil {
			t.Fatal(err)
		}
		if other := strings.Fields(string(list)); !slices.Equal(names, other) {
			t.Errorf("%s: got %d names, cpio lists %d", filepath.Base(path), len(names), len(other))
		}
	}
}

func FuzzInitramfs(f *testing.F) {
	main := cpio(f, "init", "lib/modules/6.1/virtio_blk.ko")
	for _, argv := range compressors {
		f.Add(through(f, main, argv[0], argv[1:]...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		_ = drivers.ReadInitramfs(io.LimitReader(bytes.NewReader(b), 1<<20), func(name string) {
			if n++; len(name) > 4096 {
				t.Errorf("name of %d bytes", len(name))
			}
		})
	})
}
