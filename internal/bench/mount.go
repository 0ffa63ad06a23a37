package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/repository"
)

// mountServer shows the points of a repository through FUSE, at its dir.
func (b *bench) mountServer(name, repository string, flags ...string) (s *server, dir string) {
	dir = filepath.Join(b.dir, "mount-"+name)
	s = &server{name: "sendense/" + name, up: func() error { return mountedAt(dir) }}
	s.cmd = exec.Command(b.program, append([]string{"mount", dir, "--foreground", "--repository", repository}, flags...)...)
	return s, dir
}

// qsdServer shows a QCOW2 file through FUSE, at its file.
func (b *bench) qsdServer(name, image string) (s *server, file string) {
	file = filepath.Join(b.dir, "qsd-"+name+".raw")
	s = &server{name: "qemu-storage-daemon/" + name, up: func() error { return mountedAt(file) }}
	s.cmd = exec.Command("qemu-storage-daemon", "--blockdev", "driver=file,node-name=file,read-only=on,filename="+image,
		"--blockdev", "driver=qcow2,node-name=disk,read-only=on,file=file", "--export", "type=fuse,id=disk,node-name=disk,mountpoint="+file)
	return s, file
}

// mountedAt returns an error for as long as nothing is mounted at a path.
func mountedAt(path string) error {
	var here, above unix.Stat_t
	if err := errors.Join(unix.Stat(path, &here), unix.Stat(filepath.Dir(path), &above)); err != nil {
		return err
	}
	if here.Dev == above.Dev {
		return fmt.Errorf("nothing is mounted at %s", path)
	}
	return nil
}

// makePlace makes what a server is mounted on.
func makePlace(dir, file string) error {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if file == "" {
		return nil
	}
	return os.WriteFile(file, nil, 0o600)
}

// mayMount tells whether this process may mount, and says in the log what is left
// out if not.
func (b *bench) mayMount() bool {
	if syscall.Geteuid() == 0 {
		return true
	}
	b.logf("left out: only root may mount and drop caches")
	return false
}

// forget makes the kernel drop what it keeps of the content of a file.
func forget(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// dropCaches makes the kernel drop what it keeps of all files.
func dropCaches() error {
	settle()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200)
}

// mountDepth is how many points the disk of the deep figure is scattered over.
const mountDepth = 32

// readable is a disk of random data as points: whole in one, and scattered.
type readable struct {
	repository string
	raw        string
	qcow2      string    // of the whole one
	one, deep  [2]string // machine and point
	size       int64
}

// buildReadable makes them, once.
func (b *bench) buildReadable(ctx context.Context) (*readable, error) {
	if b.readable != nil {
		return b.readable, nil
	}
	x := &readable{raw: filepath.Join(b.dir, "plain.raw"), size: min(b.size, 1<<30)}
	r, _, err := b.newRepository("readable")
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }() // it is read by others from now on
	x.repository = r.Root()
	b.logf("build the points of the mounted figures")
	one, err := pointOf(ctx, r, vm, "one", x.size, func(d block.Device) error { return writeRandom(ctx, newRandom(11), d, x.size/cluster) })
	if err != nil {
		return nil, err
	}
	x.one = [2]string{"one", string(one.ID)}
	for i := range mountDepth {
		p, err := pointOf(ctx, r, deepVM, "deep", x.size, func(d block.Device) error { return writeEvery(ctx, newRandom(12+uint64(i)), d, int64(i), mountDepth) })
		if err != nil {
			return nil, err
		}
		x.deep = [2]string{"deep", string(p.ID)}
	}
	files, err := filepath.Glob(filepath.Join(x.repository, string(vm), "disk-0", "*.qcow2"))
	if err != nil || len(files) != 1 {
		return nil, fmt.Errorf("%d files of one point: %w", len(files), err)
	}
	x.qcow2 = files[0]
	if _, err := tool(ctx, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", x.qcow2, x.raw); err != nil {
		return nil, err
	}
	settle()
	b.readable = x
	return x, nil
}

const deepVM = repository.VMID("5e0d0000-0000-4000-8000-00000000bed5")

// writeEvery writes each n-th cluster, from first on.
func writeEvery(ctx context.Context, r random, d block.Device, first, n int64) error {
	p := make([]byte, cluster)
	for off := first * cluster; off < d.Size(); off += n * cluster {
		r.fill(p)
		if err := block.Write(ctx, d, p, off); err != nil {
			return err
		}
	}
	return nil
}

// reading is having cat, or another program, read a file of size bytes, once it is
// prepared: a rate in MiB/s.
func reading(name, path string, size int64, prepare func(ctx context.Context, path string) error, program ...string) subject {
	if len(program) == 0 {
		program = []string{"cat", path}
	}
	return subject{name: name, run: func(ctx context.Context) (float64, error) {
		if err := prepare(ctx, path); err != nil {
			return 0, err
		}
		seconds, err := timed(func() error { return quiet(ctx, program...) })
		return float64(size) / (1 << 20) / seconds, err
	}}
}

// cold prepares a file to be read as if for the first time, warm as one that was.
func cold(_ context.Context, path string) error   { return forget(path) }
func warm(ctx context.Context, path string) error { return quiet(ctx, "cat", path) }

// quiet runs a program whose output goes nowhere.
func quiet(ctx context.Context, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(errs.String()))
	}
	return nil
}

// mounted measures reading disks through FUSE from end to end.
func (b *bench) mounted(ctx context.Context) error {
	if !b.mayMount() {
		return nil
	}
	x, err := b.buildReadable(ctx)
	if err != nil {
		return err
	}
	own, dir := b.mountServer("plain", x.repository)
	qsd, qsdFile := b.qsdServer("plain", x.qcow2)
	if err := makePlace(dir, qsdFile); err != nil {
		return err
	}
	stop, err := startAll(ctx, own, qsd)
	if err != nil {
		return err
	}
	defer stop()
	one, deep := filepath.Join(dir, x.one[0], x.one[1], "disk-0.raw"), filepath.Join(dir, x.deep[0], x.deep[1], "disk-0.raw")
	s, err := b.interleave(ctx, reading("sendense", one, x.size, cold), reading("cat", x.raw, x.size, warm), reading("sendense/again", one, x.size, warm),
		reading("qsd", qsdFile, x.size, cold), reading("sendense/depth=32", deep, x.size, cold),
		reading("sendense/direct", one, x.size, cold, "dd", "if="+one, "of=/dev/null", "bs=1M", "iflag=direct", "status=none"))
	if err != nil {
		return err
	}
	b.medians("mounted-read/", s, "MiB/s")
	b.add(row{figure: "sequential read of disk-0.raw through FUSE, first time", unit: "MiB/s", own: s.median("sendense"), qsd: s.median("qsd"), plain: s.median("cat"),
		checks: []check{atLeast("cat of a plain file", s.ratio("sendense", "cat"), 0.7), atLeast("qsd", s.ratio("sendense", "qsd"), 1.5)}})
	b.add(row{figure: "the same, once more", unit: "MiB/s", own: s.median("sendense/again"), plain: s.median("cat"),
		checks: []check{atLeast("cat of a plain file", s.ratio("sendense/again", "cat"), 0.7)}})
	b.add(row{figure: "the same, first time, with O_DIRECT by the MiB", unit: "MiB/s", own: s.median("sendense/direct"), plain: s.median("cat")})
	b.add(row{figure: "the same, first time, scattered over 32 points", unit: "MiB/s", own: s.median("sendense/depth=32"), plain: s.median("cat")})
	return nil
}

// verified measures what the comparison with digests costs whoever reads.
func (b *bench) verified(ctx context.Context) error {
	if !b.mayMount() {
		return nil
	}
	x, err := b.buildReadable(ctx)
	if err != nil {
		return err
	}
	var subjects []subject
	var servers []*server
	for _, name := range []string{"plain", "verified"} {
		var flags []string
		if name == "verified" {
			flags = []string{"--verified"}
		}
		m, dir := b.mountServer(name, x.repository, flags...)
		if err := makePlace(dir, ""); err != nil {
			return err
		}
		path := filepath.Join(dir, x.one[0], x.one[1], "disk-0.raw")
		e := b.newServer("export/" + name)
		e.cmd = exec.Command(b.program, append([]string{"export", x.one[0], x.one[1], "--disk", "0", "--socket", e.socket, "--foreground",
			"--repository", x.repository}, flags...)...)
		servers = append(servers, m, e)
		subjects = append(subjects, reading("mount/"+name, path, x.size, cold), subject{name: "export/" + name, run: func(ctx context.Context) (float64, error) {
			seconds, err := timed(func() error { return quiet(ctx, "nbdcopy", e.uri, "null:") })
			return float64(x.size) / (1 << 20) / seconds, err
		}})
	}
	stop, err := startAll(ctx, servers...)
	if err != nil {
		return err
	}
	defer stop()
	s, err := b.interleave(ctx, subjects...)
	if err != nil {
		return err
	}
	b.medians("verified-read/", s, "MiB/s")
	for _, way := range []string{"mount", "export"} {
		plain, verified := way+"/plain", way+"/verified"
		b.metric("verified-read-ratio/"+way, s.ratio(verified, plain), "x")
		b.add(row{figure: fmt.Sprintf("verified sequential read through %s; plain: not verified", map[string]string{"mount": "FUSE", "export": "NBD"}[way]),
			unit: "MiB/s", own: s.median(verified), plain: s.median(plain)})
	}
	return nil
}
