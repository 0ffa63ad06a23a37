package fusemount_test

import (
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/sendense/sendense/fusemount"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// Most of go-fuse's tests make files, which a mount of points does not let anybody
// do. Somebody who repairs a disk in a writable mount does: all that the kernel has
// on it is content of one of our files.
func TestAFileSystemOnAScratchDiskIsPOSIX(t *testing.T) {
	requiresFUSE(t)
	requires.Tool(t, "mkfs.ext4", "e2fsck", "mount")
	dir := t.TempDir()
	server := role(t, "serve", dir, "writable")
	begin(t, server)
	disk := dir + "/disk"
	fstest.Run(t, "mkfs.ext4", "-q", disk)
	mounted, unmount := fstest.Mount(t, disk, "ext4", "")
	for name, test := range posixtest.All {
		if name == "FcntlFlockLocksFile" {
			continue // wants that a process locks itself out, which Linux does nowhere
		}
		t.Run(name, func(t *testing.T) {
			sub, err := os.MkdirTemp(mounted, "")
			if err != nil {
				t.Fatal(err)
			}
			test(t, sub)
		})
	}
	unmount()
	fstest.Run(t, "e2fsck", "-f", "-n", disk)
}

func TestDirectoriesReadTheSameTwice(t *testing.T) {
	root := newFolder()
	for _, name := range []string{"b", "a", "c"} {
		root.add(name, newLink("nowhere"))
	}
	posixtest.ReadDirConsistency(t, show(t, root, fusemount.Options{}).dir)
}
