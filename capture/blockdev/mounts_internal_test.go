package blockdev

import (
	"slices"
	"testing"
)

func TestReadWriteMounts(t *testing.T) {
	const mountinfo = `22 1 253:0 / / rw,relatime - ext4 /dev/vda rw
42 22 7:0 / /mnt/with\040space rw,relatime shared:1 - ext4 /dev/loop0 rw,errors=continue
43 22 7:0 /sub /mnt/bind ro,relatime shared:1 - ext4 /dev/loop0 rw
44 22 7:1 / /mnt/ro rw - xfs /dev/loop1 ro
45 22 0:51 / /mnt/btrfs rw - btrfs /dev/loop2 rw
a line that makes no sense
46 22 7:0 - ext4
`
	for _, c := range []struct {
		name, dev, source string
		want              []string
	}{
		{"a mount, and another that is read-only only there", "7:0", "", []string{"/mnt/with space", "/mnt/bind"}},
		{"a read-only file system", "7:1", "", nil},
		{"a file system with a number of its own", "", "/dev/loop2", []string{"/mnt/btrfs"}},
		{"a device that is not mounted", "7:9", "/dev/loop9", nil},
	} {
		got := readWriteMounts([]byte(mountinfo), func(dev, source string) bool { return dev == c.dev || source == c.source })
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}
