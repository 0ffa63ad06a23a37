package child

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/btrfs"
	"github.com/sendense/sendense/internal/guestfs/exfat"
	"github.com/sendense/sendense/internal/guestfs/ext4"
	"github.com/sendense/sendense/internal/guestfs/fat"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/iso9660"
	"github.com/sendense/sendense/internal/guestfs/ntfs"
	"github.com/sendense/sendense/internal/guestfs/xfs"
)

// readers are those of the file systems that can be read and lie on one volume, by
// type. Of a disc that has UDF, what it has of ISO 9660 beside that is read.
var readers = map[string]func(fsys.Volume) (fsys.FileSystem, error){
	"ext2": ext4.Open, "ext3": ext4.Open, "ext4": ext4.Open, "xfs": xfs.Open, "ntfs": ntfs.Open,
	"vfat": fat.Open, "exfat": exfat.Open, "iso9660": iso9660.Open, "udf": iso9660.Open,
}

// openFS opens a file system, or a subvolume of one that has such.
func openFS(v fsys.Volume, others []fsys.Volume, fsType, subvolume string) (fsys.FileSystem, []fsys.Volume, error) {
	if fsType == "btrfs" {
		return openBtrfs(v, others, subvolume)
	}
	open, ok := readers[fsType]
	if !ok {
		return nil, nil, fmt.Errorf("%s: %w", fsType, fsys.ErrUnsupported)
	}
	if subvolume != "" {
		return nil, nil, fmt.Errorf("subvolumes of %s: %w", fsType, fsys.ErrUnsupported)
	}
	f, err := open(v)
	return f, []fsys.Volume{v}, err
}

// openBtrfs opens a btrfs with the devices that it says it has, as far as they are
// among others.
func openBtrfs(v fsys.Volume, others []fsys.Volume, subvolume string) (fsys.FileSystem, []fsys.Volume, error) {
	on := []fsys.Volume{v}
	f, err := btrfs.OpenDevices(on)
	var missing *btrfs.MissingError
	for errors.As(err, &missing) {
		more := append(on[:len(on):len(on)], devices(missing.Devices, others)...)
		if len(more) == len(on) {
			break
		}
		with, e := btrfs.OpenDevices(more)
		if e != nil && !errors.As(e, &missing) {
			break // what seemed to be one of them is not
		}
		on, f, err = more, with, e
	}
	if errors.As(err, &missing) { // what has copies can be read all the same
		if degraded, e := btrfs.OpenWith(on, btrfs.Options{Degraded: true}); e == nil {
			f, err = degraded, nil
		}
	}
	if err == nil && subvolume != "" {
		if f, err = openSubvolume(f, subvolume); errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("its subvolume %s: %v: %w", subvolume, err, fsys.ErrUnsupported) // a path may be there all the same
		}
	}
	if err != nil {
		return nil, nil, err
	}
	return f, on, nil
}

// openSubvolume opens a subvolume by path or number.
func openSubvolume(f *btrfs.FS, subvolume string) (*btrfs.FS, error) {
	if strings.HasPrefix(subvolume, "/") {
		return f.OpenSubvolume(subvolume)
	}
	id, err := strconv.ParseUint(subvolume, 10, 64)
	if err != nil {
		return nil, err
	}
	return f.OpenSubvolumeID(id)
}

// devices returns the volumes that are some of the devices of a file system.
func devices(wanted []btrfs.Device, volumes []fsys.Volume) []fsys.Volume {
	var found []fsys.Volume
	for _, d := range wanted {
		for _, v := range volumes {
			if have, err := btrfs.Probe(v); err == nil && have.UUID == d.UUID {
				found = append(found, v)
				break
			}
		}
	}
	return found
}
