package xfs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// oldLogs are the ways in which file systems are made that not every kernel mounts
// any more, and one for another kernel than this one.
var oldLogs = []string{
	"-m crc=0",
	"-m crc=0 -i size=256 -l version=1 -n ftype=0",
	"-m crc=0 -i attr=1 -l lazy-count=0 -b size=1024 --unsupported -l size=6m",
	"-m crc=1,reflink=1,rmapbt=1 -i nrext64=1",
}

// oldLogsDir is set where TestOldLogs is to run: it holds empty file systems.
const oldLogsDir = "XFS_OLD_LOGS"

// TestReplaysOldLogsAsTheKernelDoes has the kernel of a virtual machine make
// histories, and replay the logs that they leave.
func TestReplaysOldLogsAsTheKernelDoes(t *testing.T) {
	requires.Root(t)
	requires.Tool(t, "mkfs.xfs", "mkfs.ext4")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fstest.Run(t, "cp", self, filepath.Join(dir, "test"))
	for i, options := range oldLogs {
		image := fstest.Make(t, 310<<20, append([]string{"mkfs.xfs", "-q", "-f"}, strings.Fields(options)...)...)
		fstest.Run(t, "cp", "--sparse=always", image, filepath.Join(dir, fmt.Sprint("empty-", i)))
	}
	data := fstest.Make(t, 3<<30, "mkfs.ext4", "-q", "-d", dir)
	out := fstest.InMachine(t, `set -e
		mount /dev/vdc /mnt
		modprobe -a loop xfs
		mkdir /mnt/tmp
		TMPDIR=/mnt/tmp `+oldLogsDir+`=/mnt timeout 200 /mnt/test -test.run '^TestOldLogs$' -test.v 2>&1 || echo failed with $?`, data)
	t.Log(out)
	if strings.Contains(out, "failed with") || strings.Count(out, "logs were replayed") != len(oldLogs) {
		t.Fatal("the test in the machine failed")
	}
}

func TestOldLogs(t *testing.T) {
	dir := os.Getenv(oldLogsDir)
	if dir == "" {
		t.Skip("runs in the machine of TestReplaysOldLogsAsTheKernelDoes")
	}
	for i, options := range oldLogs {
		t.Run(options, func(t *testing.T) { crashes(t, filepath.Join(dir, fmt.Sprint("empty-", i)), uint64(100+i), 200, 2) })
	}
}
