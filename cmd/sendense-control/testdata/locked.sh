# Run in the machine of fstest: makes a Linux of encrypted volumes on the disk vdc,
# whose partitions are there, or changes it if it is there. Prints the MD5 of
# /srv/large.
set -eu
exec 3>&1 1>&2
modprobe -a dm-crypt xts
key() { printf %s "$1"; }

open() {
	key 'first secret 4711' | cryptsetup --key-file=- open /dev/vdc2 inside
	key 'second secret 4712' | cryptsetup --key-file=- open /dev/vdc3 data
	vgchange -qq -ay sys >&2 || :
}

if ! cryptsetup isLuks /dev/vdc2; then
	mkfs.ext4 -q -L boot /dev/vdc1
	mkdir -p /run/boot
	mount /dev/vdc1 /run/boot
	echo kernel >/run/boot/vmlinuz
	umount /run/boot
	key 'first secret 4711' | cryptsetup --batch-mode --key-file=- luksFormat --type luks2 --label vault --pbkdf argon2id \
		--pbkdf-memory 8192 --pbkdf-force-iterations 4 --pbkdf-parallel 1 /dev/vdc2
	key 'second secret 4712' | cryptsetup --batch-mode --key-file=- luksFormat --type luks1 --pbkdf-force-iterations 1000 /dev/vdc3
	key 'first secret 4711' | cryptsetup --key-file=- open /dev/vdc2 inside
	vgcreate -qq -s 1m sys /dev/mapper/inside
	lvcreate -qq -y -l 40 -n root sys
	lvcreate -qq -y -l 8 -n home sys
	mkfs.ext4 -q -L root /dev/sys/root
	mkfs.ext4 -q /dev/sys/home
	vgchange -qq -an sys
	cryptsetup close inside
	key 'second secret 4712' | cryptsetup --key-file=- open /dev/vdc3 data
	mkfs.ext4 -q -L data /dev/mapper/data
	cryptsetup close data
	fresh=1
fi
open
mkdir -p /run/r
mount /dev/sys/root /run/r
mkdir -p /run/r/etc /run/r/boot /run/r/srv /run/r/home
mount /dev/mapper/data /run/r/srv
mount /dev/sys/home /run/r/home
if [ "${fresh:-}" ]; then
	printf 'ID=demo\nNAME=Demo\nPRETTY_NAME="Demo Linux 7"\n' >/run/r/etc/os-release
	echo vaulted >/run/r/etc/hostname
	cat >/run/r/etc/fstab <<-end
		/dev/mapper/sys-root / ext4 defaults 0 1
		LABEL=boot /boot ext4 defaults 0 2
		/dev/mapper/data /srv ext4 defaults 0 2
		/dev/sys/home /home ext4 defaults 0 2
	end
	echo "data UUID=$(cryptsetup luksUUID /dev/vdc3) none luks" >/run/r/etc/crypttab
	echo one >/run/r/etc/motd
	echo gone >/run/r/srv/old
	dd if=/dev/urandom of=/run/r/srv/large bs=1M count=9 status=none
	echo alice >/run/r/home/name
else
	echo 'two, and longer' >/run/r/etc/motd
	rm /run/r/srv/old
	echo new >/run/r/srv/new
fi
md5sum </run/r/srv/large | cut -d' ' -f1 >&3
umount /run/r/home /run/r/srv /run/r
vgchange -qq -an sys
cryptsetup close inside
cryptsetup close data
