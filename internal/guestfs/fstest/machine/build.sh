#!/bin/sh
# Builds the machine of fstest: root.img, vmlinuz and initrd in the directory $1,
# from Debian's packages as this machine's apt is configured to fetch them. $2 is
# the directory of the files that go into it.
set -eu
out=$1 recipe=$2
root=$out/root
. /etc/os-release
[ "$ID" = debian ] || { echo "the machine is built from Debian's packages; this is $ID" >&2; exit 1; }

sources=
for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
	[ -s "$f" ] && sources="$sources $f"
done

# The packages are only unpacked: the machine has an init of its own.
mmdebstrap --quiet --variant=extract \
	--include=base-files,base-passwd,bash,coreutils,util-linux,mount,e2fsprogs,busybox-static,kmod \
	--include=lvm2,mdadm,cryptsetup-bin,thin-provisioning-tools,linux-image-cloud-amd64 \
	"$VERSION_CODENAME" "$out/root.tar" $sources
mkdir "$root"
tar -C "$root" -xf "$out/root.tar" --exclude='./dev/*' --exclude='./usr/share' --exclude='./lib/udev' --exclude='*perl*' \
	--exclude='*/kernel/drivers/net' --exclude='*/kernel/net' --exclude='*/kernel/drivers/infiniband'
rm "$out/root.tar"
version=$(ls "$root/lib/modules")
cp "$root/boot/vmlinuz-$version" "$out/vmlinuz"
rm -r "$root/boot"
chroot "$root" depmod "$version"

# The initial RAM disk: busybox, the modules in the order in which they load, and
# the script that mounts the root file system.
ramfs=$out/ramfs
mkdir -p "$ramfs/bin" "$ramfs/dev" "$ramfs/proc" "$ramfs/root" "$ramfs/modules"
cp "$root/bin/busybox" "$ramfs/bin/busybox"
cp "$recipe/init" "$ramfs/init"
chmod 755 "$ramfs/init"
for module in virtio_pci virtio_blk virtio_console; do
	chroot "$root" modprobe --set-version "$version" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r ko; do
	cp "$root$ko" "$ramfs/modules/"
	basename "$ko" >>"$ramfs/modules/order"
done
(cd "$ramfs" && find . | bin/busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$out/initrd"
rm -r "$ramfs"

# The root file system: the packages' files, and busybox for every command that
# they lack.
mkdir -p "$root/mnt"
for applet in $("$root/bin/busybox" --list); do
	for dir in bin sbin usr/bin usr/sbin; do
		[ -e "$root/$dir/$applet" ] || [ -L "$root/$dir/$applet" ] && continue 2
	done
	ln -s /bin/busybox "$root/bin/$applet"
done
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd" 2>/dev/null || echo 'root::0:0:root:/root:/bin/bash' >"$root/etc/passwd"
cp "$recipe/lvmlocal.conf" "$root/etc/lvm/lvmlocal.conf"
cp "$recipe/rc" "$root/sbin/rc"
chmod 755 "$root/sbin/rc"
truncate -s 400M "$out/root.img"
mkfs.ext4 -q -F -O ^has_journal -d "$root" "$out/root.img"
rm -r "$root"
