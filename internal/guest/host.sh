#!/bin/sh
# Runs libvirtd in the mount and PID namespaces that this shell is the first
# process of. $1 is the folder that stands in for libvirt's own folders, $2 the
# accelerator, $3 a folder for what libvirt found out about QEMU; what follows are
# further drivers of libvirt. Ends when stdin does; the kernel then kills whatever
# is left in the PID namespace, machines included.
set -eu
dir=$1 accel=$2 cache=$3
shift 3
mount --make-rprivate /
mount -t proc proc /proc
# Mounts of points that others show stay only as long as they have them, and not as
# long as this namespace does.
grep -E ' - fuse\.sendense ' /proc/self/mountinfo | cut -d ' ' -f 5 | while read -r at; do
	umount -l "$(printf %b "$at")"
done
for name in /etc /var/lib /var/log; do
	mkdir -p "$dir/${name##*/}" "$name/libvirt"
	mount --bind "$dir/${name##*/}" "$name/libvirt"
done
mkdir -p "$cache" /var/cache/libvirt
mount --bind "$cache" /var/cache/libvirt
# The folder itself may lie under /run, so that one is hidden last and the
# folder's own is held open across that.
mkdir -p "$dir/run"
cd "$dir/run"
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/libvirt /run/lock # where terminals are locked while somebody listens
mount --bind . /run/libvirt
cd /
# Without KVM there is no device for it either: libvirt looks on every call, and
# does not trust what it found out about QEMU where that contradicts the device.
if [ "$accel" != kvm ] && [ -e /dev/kvm ]; then
	mkdir "$dir/dev"
	mount -t tmpfs -o mode=755 dev "$dir/dev"
	cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty "$dir/dev"
	mkdir "$dir/dev/pts" "$dir/dev/shm"
	mount --rbind /dev/pts "$dir/dev/pts"
	mount --rbind /dev/shm "$dir/dev/shm"
	ln -s pts/ptmx "$dir/dev/ptmx"
	ln -s /proc/self/fd "$dir/dev/fd"
	mount --move "$dir/dev" /dev
fi

cat >/etc/libvirt/qemu.conf <<'CONF'
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
CONF
cat >/etc/libvirt/libvirtd.conf <<'CONF'
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_group = "root"
unix_sock_rw_perms = "0600"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
CONF
# Machines migrate between hosts with different UUIDs only.
echo "host_uuid = \"$(cat /proc/sys/kernel/random/uuid)\"" >>/etc/libvirt/libvirtd.conf
# The driver looks up its default user and group even where it is told others.
for file in passwd group; do
	grep -v '^libvirt-qemu:' "/etc/$file" >"$dir/etc/$file"
done
echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >>"$dir/etc/passwd"
echo 'libvirt-qemu:x:64055:' >>"$dir/etc/group"
mount --bind "$dir/etc/passwd" /etc/passwd
mount --bind "$dir/etc/group" /etc/group
# No other drivers than are asked for: some would act on the machine.
mkdir "$dir/drivers"
for driver in qemu "$@"; do
	ln -s /usr/lib/*/libvirt/connection-driver/"libvirt_driver_$driver.so" "$dir/drivers/"
done
export LIBVIRT_DRIVER_DIR="$dir/drivers"

exec 3<&0
libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirt/libvirtd.pid &
daemon=$!
{ cat <&3 >/dev/null; kill "$daemon"; } &
wait "$daemon"
