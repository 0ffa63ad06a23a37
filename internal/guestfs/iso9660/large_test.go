package iso9660_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/iso9660"
	"github.com/sendense/sendense/internal/requires"
)

// The largest extent that xorriso writes, and the size of a file that takes two.
const (
	extentBytes = 4<<30 - 2048
	largeBytes  = 4<<30 + 100_003
)

// TestAFileOfMoreThan4GiB compares what the kernel reads around the end of the file's
// first extent, and of the file. All else of it are zeroes, for speed.
func TestAFileOfMoreThan4GiB(t *testing.T) {
	requires.Tool(t, "xorriso", "dd", "sh")
	dir := t.TempDir()
	tree, path := filepath.Join(dir, "tree"), filepath.Join(dir, "disc.iso")
	must(t, os.Mkdir(tree, 0o755))
	file, err := os.Create(filepath.Join(tree, "large"))
	must(t, err)
	defer file.Close()
	must(t, file.Truncate(largeBytes))
	pattern := make([]byte, 200<<10)
	for i := range pattern {
		pattern[i] = byte(i * i >> 7)
	}
	_, err = file.WriteAt(pattern, largeBytes-int64(len(pattern)))
	must(t, errors.Join(err, os.WriteFile(filepath.Join(tree, "next"), []byte("next"), 0o644)))
	fstest.Run(t, "sh", "-c", "xorriso -as mkisofs -quiet -iso-level 3 -R "+tree+" 2>/dev/null | dd of="+path+" bs=1M iflag=fullblock conv=sparse status=none")

	offsets := []int64{0, extentBytes - 4096, extentBytes - 2048, extentBytes - 1000, extentBytes, 4 << 30, largeBytes - 3000}
	script := "set -e\nmodprobe isofs\nmkdir /run/iso\nmount -t iso9660 -o ro /dev/vdc /run/iso\nstat -c %s /run/iso/large\ncat /run/iso/next; echo\n"
	for _, off := range offsets {
		script += fmt.Sprintf("dd if=/run/iso/large bs=3000 count=1 iflag=skip_bytes skip=%d status=none | sha256sum | cut -d' ' -f1\n", off)
	}
	out := strings.Fields(fstest.InMachine(t, script, path))

	vol := fstest.Open(t, path)
	f, err := iso9660.Open(vol)
	must(t, err)
	id := fstest.Lookup(t, f, "large")
	a, err := f.Stat(id)
	must(t, err)
	got := []string{fmt.Sprint(a.Size), "next"}
	p := make([]byte, 3000)
	for _, off := range offsets {
		n, err := f.ReadAt(id, p, off)
		must(t, err)
		got = append(got, fmt.Sprintf("%x", sha256.Sum256(p[:n])))
	}
	if fmt.Sprint(got) != fmt.Sprint(out) {
		t.Errorf("size, next file, sums of parts: got %q, want %q", got, out)
	}
	exts, err := f.Extents(id, extentBytes-10, 20)
	if err != nil || len(exts) != 2 || exts[0].Len != 10 || exts[1].Len != 10 || exts[0].Kind != fsys.Data {
		t.Errorf("extents around the end of the first: got %+v, %v, want two", exts, err)
	}
	want := make([]byte, 3000)
	if _, err := f.ReadAt(id, p, largeBytes-3000); err != nil || copy(want, pattern[len(pattern)-3000:]) != 3000 || !bytes.Equal(p, want) {
		t.Errorf("end of the file: got %v, or other bytes than were written", err)
	}
}
