# Run in the machine of fstest: mirrors whose members are not the same. Disks c and d
# are their members, partition by partition; e and f have what c and d were at first;
# g and h are a mirror that is being rebuilt. Prints for each partition the MD5 of the
# array at first, as c had it alone and as d had it alone, then that of g and h.
set -eu
exec 3>&1 1>&2
modprobe -a raid1
mkdir -p /dev/md

digest() { md5sum <$1 | cut -d' ' -f1; }
fill() { dd if=/dev/urandom of=$1 bs=256k conv=notrunc,fsync oflag=direct status=none "${@:2}" 2>/dev/null || [ $# = 1 ]; }
assemble() { mdadm --quiet --assemble /dev/md/x --run "$@" </dev/null; }
stop() { mdadm --quiet --stop /dev/md/x; }

n=1
for version in 0.90 1.0 1.1 1.2; do
	name="--name=x$n --homehost=any"
	[ $version = 0.90 ] && name=
	mdadm --quiet --create /dev/md/x --run --level=1 --raid-devices=2 --metadata=$version --assume-clean $name /dev/vdc$n /dev/vdd$n </dev/null
	fill /dev/md/x
	both=$(digest /dev/md/x)
	stop
	cat /dev/vdc$n >/dev/vde$n
	cat /dev/vdd$n >/dev/vdf$n
	assemble /dev/vdc$n
	fill /dev/md/x seek=3 count=2
	c=$(digest /dev/md/x)
	stop
	# This one gets further than the other.
	for at in 7 9; do
		assemble /dev/vdd$n
		fill /dev/md/x seek=$at count=1
		d=$(digest /dev/md/x)
		stop
	done
	echo "$n $both $c $d" >&3
	n=$((n + 1))
done
mdadm --quiet --create /dev/md/x --run --level=1 --raid-devices=2 --metadata=1.2 --name=rebuilt --homehost=any /dev/vdg missing </dev/null
fill /dev/md/x
fill /dev/vdh
md=$(basename $(readlink -f /dev/md/x))
echo 1 >/sys/block/$md/md/sync_speed_min
echo 2000 >/sys/block/$md/md/sync_speed_max
mdadm --quiet /dev/md/x --add /dev/vdh
for i in $(seq 100); do
	read done rest </sys/block/$md/md/sync_completed
	[ "$done" != none ] && [ "$done" -gt 0 ] && break
	usleep 100000
done
[ "$done" != none ] && [ "$done" -gt 0 ]
echo "rebuilt $(digest /dev/md/x)" >&3
stop
