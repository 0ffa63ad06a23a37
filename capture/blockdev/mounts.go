package blockdev

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountedReadWrite returns where the device, a partition of it, or what is
// stacked on it (LVM, RAID, encryption) is mounted read-write.
func mountedReadWrite(f *os.File) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	family := map[string]bool{}
	addFamily(family, number(st.Rdev))
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return readWriteMounts(b, func(dev, source string) bool {
		return family[dev] || family[numberOf(source)]
	}), nil
}

// numberOf returns the major:minor of a device's path, "" for anything else. Btrfs
// needs it, whose mounts have a number of their own.
func numberOf(path string) string {
	var st unix.Stat_t
	if !filepath.IsAbs(path) || unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ""
	}
	return number(st.Rdev)
}

func number(rdev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)) }

// addFamily adds a device, by major:minor, and every device that lies on it.
func addFamily(family map[string]bool, dev string) {
	if family[dev] {
		return
	}
	family[dev] = true
	for _, pattern := range []string{"*/dev", "holders/*/dev"} {
		found, _ := filepath.Glob(filepath.Join("/sys/dev/block", dev, pattern)) // the pattern is good
		for _, name := range found {
			if b, err := os.ReadFile(name); err == nil {
				addFamily(family, strings.TrimSpace(string(b)))
			}
		}
	}
}

// readWriteMounts finds in mountinfo (proc(5)) the mount points of file systems
// that can change: those not read-only themselves, since one mounted read-only
// here may be writable through another mount.
func readWriteMounts(mountinfo []byte, wanted func(dev, source string) bool) (at []string) {
	lines := bufio.NewScanner(bytes.NewReader(mountinfo))
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		mount, system := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 6 || len(system) < 3 || !wanted(mount[2], unescape(system[1])) {
			continue
		}
		if has(system[2], "rw") {
			at = append(at, unescape(mount[4]))
		}
	}
	return at
}

func has(options, option string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == option {
			return true
		}
	}
	return false
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
