// Package ext4 reads ext2, ext3 and ext4 as the Linux kernel does. It writes
// nothing, and knows nothing of how the volume came to be.
//
// # What is read
//
//   - Blocks of 1 to 64 KiB, clusters (bigalloc), 32 and 64 bit, flex_bg, meta_bg,
//     sparse_super2, uninit_bg; inodes of 128 bytes and more.
//   - Files mapped by extents or by indirect blocks, or kept in their inode
//     (inline_data). What was reserved and never written is a hole.
//   - Directories: linear, kept in their inode, or indexed by hash (half_md4, tea
//     and legacy, signed and unsigned, large_dir). Names are looked up by the
//     index, and by a scan where it cannot be trusted. In directories that fold
//     case (casefold) every name is compared.
//   - Times with nanoseconds until 2446, owners of 32 bits, devices, extended
//     attributes in inodes, blocks and inodes of their own (ea_inode), with POSIX
//     ACLs in the form that Linux shows.
//   - All checksums of metadata_csum and gdt_csum but those of bitmaps, which
//     reading does not need. What does not match is fsys.ErrCorrupt.
//   - The journal, if it holds anything: all its formats are replayed in memory,
//     and a note says so. Fast commits and journals on other devices are not; a
//     note says that too.
//
// # What is not
//
//   - Encrypted directories, files and links: fsys.ErrUnsupported, while their
//     attributes are read and carry the flag "encrypted".
//   - The Merkle trees of fs-verity are not checked.
//   - Quota files, the journal and other inodes that the kernel hides.
//   - Features that the kernel does not know either (compression, dirdata):
//     fsys.ErrUnsupported names them.
package ext4
