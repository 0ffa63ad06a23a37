// Package guestfs opens what a machine keeps on its disks: partitions, volumes,
// file systems, and the one tree that the machine made of them. It works on
// block.Devices, read-only, and neither mounts anything nor needs to be root.
//
// Whatever a guest wrote is parsed in a confined process (package sandbox), which
// may be taken over or die of it. Here its answers are taken for what they are:
// names are checked, extents are checked against the disks, and the content of
// files is read from the disks directly.
//
// Programs that use the package call [Main] first thing in main.
package guestfs
