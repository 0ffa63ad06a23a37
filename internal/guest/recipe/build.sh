#!/bin/sh
# Builds the guest: disk.qcow2, vmlinuz and initrd in the directory $1, from
# Debian's packages as this machine's apt is configured to fetch them. $2 is the
# directory of the files that go into the guest. Everything temporary is in $1.
set -eu
out=$1 recipe=$2
root=$out/root
. /etc/os-release
[ "$ID" = debian ] || { echo "the guest is built from Debian's packages; this is $ID" >&2; exit 1; }

sources=
for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
	[ -s "$f" ] && sources="$sources $f"
done

# The packages are only unpacked: the guest has its own init, so that no
# maintainer script has anything to say, and this takes seconds.
mmdebstrap --quiet --variant=extract \
	--include=base-files,base-passwd,bash,coreutils,util-linux,mount,e2fsprogs,busybox-static,kmod \
	--include=qemu-guest-agent,linux-image-cloud-amd64,sqlite3 \
	"$VERSION_CODENAME" "$out/root.tar" $sources
mkdir "$root"
tar -C "$root" -xf "$out/root.tar" \
	--exclude='./dev/*' --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' \
	--exclude='./lib/udev' --exclude='./usr/share/perl' --exclude='./usr/lib/x86_64-linux-gnu/perl*' --exclude='*/libperl.so*'
rm "$out/root.tar"

version=$(ls "$root/lib/modules")
cp "$root/boot/vmlinuz-$version" "$out/vmlinuz"

# The initial RAM disk: busybox, the modules in the order in which they load,
# and the script that mounts the root file system.
ramfs=$out/ramfs
mkdir -p "$ramfs/bin" "$ramfs/dev" "$ramfs/proc" "$ramfs/root" "$ramfs/modules"
cp "$root/bin/busybox" "$ramfs/bin/busybox"
cp "$recipe/initrd-init" "$ramfs/init"
chmod 755 "$ramfs/init"
chroot "$root" depmod "$version"
for module in virtio_pci virtio_blk virtio_scsi sd_mod virtio_console button evdev; do
	chroot "$root" modprobe --set-version "$version" --show-depends "$module" >>"$out/modules"
done
awk '$1 == "insmod" && !seen[$2]++ {print $2}' "$out/modules" | while read -r ko; do
	cp "$root$ko" "$ramfs/modules/"
	basename "$ko" >>"$ramfs/modules/order"
done
rm "$out/modules"
(cd "$ramfs" && find . | bin/busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$out/initrd"
rm -r "$ramfs" "$root/boot" "$root/lib/modules"

# The root file system: the package files, busybox for every command that they
# lack, and an init of its own.
mkdir -p "$root/boot" "$root/etc/acpi/PWRF" "$root/mnt" "$root/srv"
for applet in $("$root/bin/busybox" --list); do
	for dir in bin sbin usr/bin usr/sbin; do
		[ -e "$root/$dir/$applet" ] || [ -L "$root/$dir/$applet" ] && continue 2
	done
	ln -s /bin/busybox "$root/bin/$applet"
done
ln -sf /bin/busybox "$root/sbin/init"
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
echo sendense-guest >"$root/etc/hostname"
echo 'LABEL=sendense-root / ext4 rw 0 1' >"$root/etc/fstab"
cp "$recipe/inittab" "$root/etc/inittab"
cp "$recipe/rc" "$root/etc/rc"
cp "$recipe/shutdown" "$root/sbin/shutdown"
cp "$recipe/powerbutton" "$root/etc/acpi/PWRF/00000080"
chmod 755 "$root/etc/rc" "$root/sbin/shutdown" "$root/etc/acpi/PWRF/00000080"

# The disk: a partition table with one partition at 1 MiB that holds ext4.
raw=$out/disk.raw
truncate -s 2G "$raw"
mkfs.ext4 -q -F -L sendense-root -d "$root" -E offset=1048576,lazy_itable_init=1,lazy_journal_init=1 -J size=16 "$raw" 2047M
# One entry of a master boot record: type 0x83, first sector 2048, 0x3ff800 sectors.
printf '\0\376\377\377\203\376\377\377\0\010\0\0\0\370\077\0' | dd of="$raw" bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of="$raw" bs=1 seek=510 conv=notrunc status=none
qemu-img convert -f raw -O qcow2 "$raw" "$out/disk.qcow2"
rm -r "$raw" "$root"
