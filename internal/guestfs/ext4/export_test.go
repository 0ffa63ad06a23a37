package ext4

import "github.com/sendense/sendense/internal/guestfs/fsys"

// Journal returns where the blocks of the journal lie, in blocks of the volume.
func Journal(f fsys.FileSystem) (list []uint64, err error) {
	fs := f.(*fileSystem)
	in, err := fs.inode(fsys.ID(fs.super.journalInode))
	if err != nil {
		return nil, err
	}
	err = fs.eachRun(in, 0, fs.blocks(in), func(r run) bool {
		for i := range r.n {
			list = append(list, r.at+i)
		}
		return true
	})
	return list, err
}
