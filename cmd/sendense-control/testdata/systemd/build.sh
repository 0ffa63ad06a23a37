#!/bin/sh
# Makes disk.qcow2 in the directory $1: a Debian with systemd, the guest agent and a
# unit that fails, from Debian's packages as this machine's apt is configured to fetch
# them. The kernel and the initial RAM disk of the tests' other guest boot it.
set -eu
out=$1
root=$out/root
. /etc/os-release
[ "$ID" = debian ] || { echo "it is made from Debian's packages; this is $ID" >&2; exit 1; }

sources=
for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
	[ -s "$f" ] && sources="$sources $f"
done
# The packages are only unpacked: systemd does without what their scripts would set up.
mmdebstrap --quiet --variant=extract \
	--include=base-files,base-passwd,bash,dash,coreutils,util-linux,mount,login,systemd-sysv,udev,qemu-guest-agent \
	"$VERSION_CODENAME" "$out/root.tar" $sources
mkdir "$root"
tar -C "$root" -xf "$out/root.tar" \
	--exclude='./dev/*' --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale'
rm "$out/root.tar"
[ -e "$root/bin/sh" ] || ln -s dash "$root/bin/sh"
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
echo sendense-systemd >"$root/etc/hostname"
: >"$root/etc/machine-id"
echo 'LABEL=sendense-root / ext4 rw 0 1' >"$root/etc/fstab"
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
cat >"$root/etc/systemd/system/broken.service" <<'UNIT'
[Service]
Type=oneshot
ExecStart=/bin/false
UNIT
ln -s ../broken.service "$root/etc/systemd/system/multi-user.target.wants/broken.service"
mkfs.ext4 -q -F -L sendense-root -d "$root" -J size=16 "$out/disk.raw" 1G
qemu-img convert -f raw -O qcow2 "$out/disk.raw" "$out/disk.qcow2"
rm -r "$out/disk.raw" "$root"
