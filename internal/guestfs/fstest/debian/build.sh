#!/bin/sh
# Makes initial RAM disks with Debian's own tools, from its packages as this
# machine's apt is configured to fetch them, in the directory $1: "most", with all
# drivers as Debian installs it, and "few", without any but those named. Beside them
# are the kernel and the lists of its modules.
set -eu
out=$1
root=$out/root
. /etc/os-release
[ "$ID" = debian ] || { echo "it is made from Debian's packages; this is $ID" >&2; exit 1; }

sources=
for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
	[ -s "$f" ] && sources="$sources $f"
done
# The packages are only unpacked, which is enough for mkinitramfs, and quick.
mmdebstrap --quiet --variant=extract \
	--include=base-files,bash,dash,coreutils,util-linux,mount,sed,grep,gzip,findutils,diffutils,libc-bin,debianutils \
	--include=linux-image-cloud-amd64,initramfs-tools,zstd,kmod,udev \
	"$VERSION_CODENAME" "$out/root.tar" $sources
mkdir "$root"
tar -C "$root" -xf "$out/root.tar" --exclude='./dev/*' --exclude='./usr/share/doc' --exclude='./usr/share/locale'
rm "$out/root.tar"
version=$(ls "$root/lib/modules")
echo "$version" >"$out/version"
run() { chroot "$root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
run depmod "$version"
run mkinitramfs -o /most "$version"
sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
run mkinitramfs -o /few "$version"
modules=$root/lib/modules/$version
mv "$root/most" "$root/few" "$modules/modules.dep" "$modules/modules.builtin" "$root/usr/lib/os-release" "$out/"
mv "$root/boot/vmlinuz-$version" "$out/vmlinuz"
rm -r "$root"
