# Run in the machine of fstest: makes volumes of every kind on the disks that it
# has, fills them, and prints what the kernel sees of each:
#   path size MD5
# Disks: c, d and e for LVM, c with partitions; f and g for md, with partitions;
# h for LUKS, with partitions.
set -eu
exec 3>&1 1>&2
modprobe -a dm-thin-pool dm-snapshot dm-raid dm-mirror dm-crypt dm-cache dm-cache-smq raid0 raid1 raid456 raid10 linear essiv cbc

report() { echo "$1 $(blockdev --getsize64 "$2") $(md5sum <"$2" | cut -d' ' -f1)" >&3; }

# fill device [dd's count, seek, bs]
fill() { dd if=/dev/urandom of="$1" bs=256k conv=notrunc,fsync oflag=direct status=none "${@:2}" 2>/dev/null || [ $# = 1 ]; }

# lvm runs the commands of its input in one process.
lvm() {
	{ echo '#!/sbin/lvm'; cat; } >/run/lvm
	/sbin/lvm /run/lvm 2>&1 | { grep -v -e leaked -e WARNING -e successfully -e created || :; }
}

group() {
	lvm <<-end
		vgcreate -qq -s 1m data /dev/vdc2 /dev/vdd /dev/vde
		lvcreate -qq -y -l 8 -n lin data /dev/vdc2
		lvcreate -qq -y -l 3 -n gap data /dev/vdc2
		lvextend -qq -l +5 data/lin /dev/vdd
		lvcreate -qq -y -l 12 -i 3 -I 64k -n str data
		lvcreate -qq -y -l 4 --type mirror -m 1 --mirrorlog core --nosync -n mir data
		lvcreate -qq -y -l 6 --type raid1 -m 1 -n r1 data
		lvcreate -qq -y -l 6 --type raid0 -i 2 -I 16k -n r0 data
		lvcreate -qq -y -l 6 --type raid0_meta -i 3 -I 4k -n r0m data
		lvcreate -qq -y -l 4 --type raid5 -i 2 -n r5 data
		lvcreate -qq -y -l 4 -n fast data /dev/vdd
		lvcreate -qq -y -l 8 -n slow data /dev/vdc2
		lvconvert -qq -y --type cache --cachevol fast data/slow
	end
	for lv in lin gap str mir r1 r0 r0m; do
		fill /dev/data/$lv
		report data/$lv /dev/data/$lv
	done
}

thin() {
	lvm <<-end
		lvcreate -qq -y -l 40 -c 64k --type thin-pool -n pool data
		lvcreate -qq -y -V 30m --thinpool data/pool -n thin1
		lvcreate -qq -y -V 300g --thinpool data/pool -n thin2
		lvcreate -qq -y -l 7 -n origin data
	end
	fill /dev/data/origin
	report data/origin /dev/data/origin
	fill /dev/data/thin1 count=20
	fill /dev/data/thin1 seek=60 count=10
	lvm <<-end
		lvcreate -qq -y -kn -s data/thin1 -n snap1
		lvchange -qq -pr data/origin
		lvchange -qq -an data/origin
		lvcreate -qq -y -kn -s --thinpool data/pool -n ext data/origin
		lvextend -qq -L +4m data/ext
	end
	fill /dev/data/thin1 seek=5 count=3
	fill /dev/data/snap1 seek=62 count=2
	blkdiscard -o $((10 << 18)) -l $((3 << 18)) /dev/data/thin1
	fill /dev/data/ext seek=3 count=2
	for lv in thin1 snap1 ext; do report data/$lv /dev/data/$lv; done
	fill /dev/data/thin2 count=1
	fill /dev/data/thin2 seek=1000000 count=2
	fill /dev/data/thin2 bs=4k seek=77777 count=1
	# As much of the large one as is worth reading.
	for at in 0 303 249999 250000; do
		echo "part data/thin2 $((at << 20)) $(dd if=/dev/data/thin2 bs=1M skip=$at count=2 status=none | md5sum | cut -d' ' -f1)" >&3
	done
}

snapshots() {
	lvm <<-end
		lvcreate -qq -y -l 10 -n old data
	end
	fill /dev/data/old
	lvm <<-end
		lvcreate -qq -y -s -l 6 -c 4k -n oldsnap data/old
		lvcreate -qq -y -s -l 6 -c 16k -n oldsnap2 data/old
		lvcreate -qq -y -s -l 1 -c 4k -n full data/old
	end
	for at in 1 3 4 5 9 33; do fill /dev/data/old bs=20k seek=$at count=2; done
	for at in 700 2 55; do fill /dev/data/oldsnap bs=12k seek=$at count=1; done
	fill /dev/data/old bs=64k seek=100 count=30
	for lv in old oldsnap oldsnap2; do report data/$lv /dev/data/$lv; done
}

# md name number options: an array of two partitions of that number
md() {
	mdadm --quiet --create /dev/md/$1 --run --raid-devices=2 /dev/vdf$2 /dev/vdg$2 $3 </dev/null
}

arrays() {
	mkdir -p /dev/md
	md one0 1 "--level=1 --metadata=1.0 --name=one0 --homehost=any"
	md one1 2 "--level=1 --metadata=1.1 --name=one1 --homehost=any"
	md one2 3 "--level=1 --metadata=1.2 --name=one2 --homehost=any"
	md zero 4 "--level=0 --metadata=1.2 --name=zero --homehost=any --chunk=16"
	md orig 5 "--level=0 --metadata=1.2 --name=orig --homehost=any --chunk=32 --layout=original"
	md alt 6 "--level=0 --metadata=1.0 --name=alt --homehost=any --chunk=8 --layout=alternate"
	md lin 7 "--level=linear --metadata=1.2 --name=lin --homehost=any"
	md r10 8 "--level=10 --metadata=1.2 --name=r10 --homehost=any"
	md 5 9 "--level=1 --metadata=0.90"
	md 6 10 "--level=linear --metadata=0.90 --rounding=64"
	for a in one0 one1 one2 zero orig alt lin 5 6; do
		fill /dev/md/$a
		case $a in
		[0-9]) report md$a /dev/md/$a ;;
		*) report md-$a /dev/md/$a ;;
		esac
	done
	# The first member fails, and misses what is written after.
	md stale 11 "--level=1 --metadata=1.2 --name=stale --homehost=any --assume-clean"
	mdadm --quiet /dev/md/stale --fail /dev/vdf11
	fill /dev/md/stale
	report md-stale /dev/md/stale
	# LVM and LUKS within one another on an array.
	md 7 12 "--level=1 --metadata=1.0 --name=7 --homehost=any"
	lvm <<-end
		vgcreate -qq -s 1m onmd /dev/md/7
		lvcreate -qq -y -l 24 -n box onmd
	end
	crypt onmd/box /dev/onmd/box "--type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000"
	report onmd/box /dev/onmd/box
}

crypt() { # path device options
	echo -n secret | cryptsetup --batch-mode --key-file=- luksFormat $3 $2
	echo -n secret | cryptsetup --key-file=- open $2 inside
	fill /dev/mapper/inside
	report $1/crypt /dev/mapper/inside
	cryptsetup close inside
}

containers() {
	crypt vdh/p1 /dev/vdh1 "--type luks1 --pbkdf-force-iterations 1000"
	crypt vdh/p2 /dev/vdh2 "--type luks1 --pbkdf-force-iterations 1000 --cipher aes-cbc-essiv:sha256 --key-size 256 --hash sha512"
	crypt vdh/p3 /dev/vdh3 "--type luks2 --pbkdf argon2id --pbkdf-memory 8192 --pbkdf-force-iterations 4 --pbkdf-parallel 2"
	crypt vdh/p4 /dev/vdh4 "--type luks2 --pbkdf argon2i --pbkdf-memory 4096 --pbkdf-force-iterations 4 --sector-size 4096"
}

for part in group thin snapshots arrays containers; do
	start=$SECONDS
	$part
	echo "$part took $((SECONDS - start)) s"
done
lvm <<-end
	vgchange -qq -an data
	vgchange -qq -an onmd
end
mdadm --quiet --stop --scan || :
