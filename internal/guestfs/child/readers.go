package child

import (
	"fmt"

	"github.com/sendense/sendense/internal/guestfs/btrfs"
	"github.com/sendense/sendense/internal/guestfs/exfat"
	"github.com/sendense/sendense/internal/guestfs/ext4"
	"github.com/sendense/sendense/internal/guestfs/fat"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/iso9660"
	"github.com/sendense/sendense/internal/guestfs/ntfs"
	"github.com/sendense/sendense/internal/guestfs/xfs"
)

// readers are those of the file systems that can be read, by type. Of a disc that has
// UDF, what it has of ISO 9660 beside that is read.
var readers = map[string]func(fsys.Volume) (fsys.FileSystem, error){
	"ext2": ext4.Open, "ext3": ext4.Open, "ext4": ext4.Open, "xfs": xfs.Open, "btrfs": btrfs.Open, "ntfs": ntfs.Open,
	"vfat": fat.Open, "exfat": exfat.Open, "iso9660": iso9660.Open, "udf": iso9660.Open,
}

// openFS opens a file system, or a subvolume of one that has such.
func openFS(v fsys.Volume, fsType, subvolume string) (fsys.FileSystem, error) {
	open, ok := readers[fsType]
	if !ok {
		return nil, fmt.Errorf("%s: %w", fsType, fsys.ErrUnsupported)
	}
	f, err := open(v)
	if err != nil || subvolume == "" {
		return f, err
	}
	b, ok := f.(*btrfs.FS)
	if !ok {
		return nil, fmt.Errorf("subvolumes of %s: %w", fsType, fsys.ErrUnsupported)
	}
	return b.OpenSubvolume(subvolume)
}
