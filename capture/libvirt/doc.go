// Package libvirt captures QEMU machines through libvirt's RPC protocol: it is a
// [capture.Source] for machines that run and for machines that do not.
//
// A running machine is read through a pull-mode backup job (libvirt's
// backup-begin): all of its disks are exported over NBD as they were at one
// moment, while the guest goes on writing; QEMU copies what the guest overwrites
// to scratch files first. The moment is also given a name, a libvirt checkpoint,
// which makes QEMU keep a dirty bitmap in each QCOW2 file. The next instant asks
// for what is dirty since. If the guest agent answers, the guest's file systems
// are frozen for the milliseconds that backup-begin takes. A guard process that
// outlives us sees to it that they are thawed ([RunGuard]).
//
// A machine that reboots stays the same instant. One that stops, is killed or
// migrates does not. Libvirt makes a migration wait for the end of a backup job
// and refuses it after half a minute; a machine that is migrating already is
// neither frozen nor captured. When it has arrived its bitmaps have, with its
// disks, and libvirt's records of the checkpoints have not: the next instant makes
// them anew from the bitmaps, so that changes are tracked across a migration.
//
// A machine that is shut down is read from its disk files, whole: libvirt has no
// backup job for it. The change tokens of its last running instant stay good: the
// bitmaps count from that older instant on, and name at least what changed since
// the newer one. One that is shut off here because it runs on another host is
// refused: libvirt knows that it migrated, or QEMU's lock on the disk tells.
//
// What is ours on a host is told by the prefix "sendense-": checkpoints and the
// folder of a job. Everything else is left alone. Two captures of one machine
// that belong to different appliances would delete each other's checkpoints: the
// result is a slower backup, never a wrong one.
//
// The package knows nothing of points, and does not read image formats.
package libvirt
