// Package image reads and writes QCOW2 files and chains of them, as
// docs/interop/qcow2.txt of QEMU defines the format.
//
// [OpenChain] opens a file with everything that backs it as one
// [github.com/sendense/sendense/block.Device]. A read costs the same at any
// depth: for each region of the disk the layers' tables are merged, on first
// use, into one sorted list of runs (which layer, which host offset), and the
// lists are kept in bounded memory. [OpenFile] opens one file alone and tells
// what that file itself holds. [ReadInfo] describes a file.
//
// Both versions of the format are read, with all cluster sizes, subclusters,
// compressed clusters and external data files. Encrypted files and files with
// unknown incompatible features are refused by name. Internal snapshots and
// bitmaps are tolerated and left alone.
//
// The content of open files must not change. Two things may happen to a file
// while it is open: it may grow, and a cluster that it did not hold may appear
// in it with the content its backing file has there. That is what merging a
// parent into its child does, and a chain that was opened before reads on
// through its own descriptors.
//
// Files are foreign bytes here: no table is trusted, and damage is confined to
// the guest clusters it concerns. The package knows nothing of virtual machines,
// points or repositories.
package image
