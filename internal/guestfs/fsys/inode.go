package fsys

// Inodes is implemented by file systems whose inodes lie in places of their own.
// Where the bytes that it tells are the same in two states of a volume, the inode
// and the content that it names are the same, as far as times tell: a comparison
// need not read it.
type Inodes interface {
	// Inode returns where on the volume the record of an inode lies: n bytes from
	// off, of which something changes whenever anything about the inode does,
	// content included.
	Inode(id ID) (off, n int64, err error)
}

// Late is implemented by file systems whose records may come after the content that
// they tell of: Windows writes times of a file, and on FAT sizes too, when the last
// program that has it open lets go of it, which may be months later.
type Late interface {
	Inodes
	// RecordsComeLate does nothing.
	RecordsComeLate()
}
