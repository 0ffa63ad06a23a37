package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// files measures work with the files of a guest.
func (b *bench) files(ctx context.Context) error {
	if !b.mayMount() {
		return nil
	}
	g, err := b.buildGuest(ctx, "ext4", guestFiles)
	if err != nil {
		return err
	}
	defer g.remove()
	for _, measure := range []func(context.Context, *guest) error{b.list, b.diff, b.copyAndWalk} {
		if err := measure(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// control runs the program on the guest's repository.
func (b *bench) control(ctx context.Context, g *guest, args ...string) ([]byte, error) {
	return tool(ctx, append(append([]string{b.program}, args...), "--repository", g.repository)...)
}

// list measures the first listing of the guest's root by programs and with files
// that nobody has used.
func (b *bench) list(ctx context.Context, g *guest) error {
	subjects := []subject{{name: "sendense", run: func(ctx context.Context) (float64, error) {
		if err := dropCaches(); err != nil {
			return 0, err
		}
		seconds, err := timed(func() error { return b.listOnce(ctx, g) })
		return seconds * 1000, err
	}}, {name: "sendense/cached", run: func(ctx context.Context) (float64, error) {
		if err := b.listOnce(ctx, g); err != nil {
			return 0, err
		}
		seconds, err := timed(func() error { return b.listOnce(ctx, g) })
		return seconds * 1000, err
	}}}
	if fish := b.guestfish(ctx); fish != nil {
		subjects = append(subjects, subject{name: "guestfish", rounds: 2, run: func(ctx context.Context) (float64, error) {
			if err := dropCaches(); err != nil {
				return 0, err
			}
			seconds, err := timed(func() error {
				_, err := fish(ctx, "--format=qcow2", "-a", g.top, "-m", "/dev/sda1", "ls", "/")
				return err
			})
			return seconds * 1000, err
		}})
	}
	s, err := b.interleave(ctx, subjects...)
	if err != nil {
		return err
	}
	b.medians("first-listing/", s, "ms")
	b.add(row{figure: fmt.Sprintf("first listing of / of a guest with %d files, cold", guestFiles), unit: "ms",
		own: s.median("sendense"), guestfish: s.median("guestfish"), checks: []check{limit(s.median("sendense"), 300, "ms")}})
	return nil
}

func (b *bench) listOnce(ctx context.Context, g *guest) error {
	out, err := b.control(ctx, g, "ls", g.name, "latest", "/")
	if err == nil && !bytes.Contains(out, []byte("\nsrv\n")) {
		err = fmt.Errorf("listing has no srv: %q", out)
	}
	return err
}

// guestfish returns what runs the peer, nil if it does not work here. Its appliance
// is made first, which does not count.
func (b *bench) guestfish(ctx context.Context) func(ctx context.Context, args ...string) ([]byte, error) {
	if _, err := exec.LookPath("guestfish"); err != nil {
		b.logf("left out: guestfish, which is not installed")
		return nil
	}
	cache := filepath.Join(b.dir, "libguestfs")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		b.logf("left out: guestfish: %v", err)
		return nil
	}
	var errs error
	for _, settings := range []string{"", "force_tcg"} { // KVM where it works
		fish := func(ctx context.Context, args ...string) ([]byte, error) {
			return tool(ctx, append([]string{"env", "LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=" + settings, "LIBGUESTFS_CACHEDIR=" + cache,
				"guestfish", "--ro"}, args...)...)
		}
		_, err := fish(ctx, "-a", "/dev/null", "run")
		if err == nil {
			return fish
		}
		errs = errors.Join(errs, err)
	}
	first, _, _ := strings.Cut(errs.Error(), "\n")
	b.logf("left out: guestfish: %s", first)
	return nil
}

// diff measures the comparison of the guest's points.
func (b *bench) diff(ctx context.Context, g *guest) error {
	s, err := b.interleave(ctx, subject{name: "sendense", run: func(ctx context.Context) (float64, error) {
		return timed(func() error {
			args := []string{"diff", g.name, g.old, g.new}
			if g.place != "" {
				args = append(args, g.place)
			}
			out, err := b.control(ctx, g, args...)
			if n := bytes.Count(out, []byte("\n")); err == nil && n != g.changed() {
				err = fmt.Errorf("%d files differ, %d were changed", n, g.changed())
			}
			return err
		})
	}})
	if err != nil {
		return err
	}
	b.metric("diff/"+g.fsType, s.median("sendense"), "s")
	r := row{figure: fmt.Sprintf("diff of two points, %d of %d files changed, %s", g.changed(), g.files, g.fsType), unit: "s", own: s.median("sendense")}
	if g.fsType == "ext4" {
		r.checks = []check{limit(s.median("sendense"), 1, "s")}
	}
	b.add(r)
	return nil
}

// copyAndWalk measures copying the big file out of the guest, and looking at all of
// its files, beside doing so where the kernel has mounted it.
func (b *bench) copyAndWalk(ctx context.Context, g *guest) error {
	m, dir := b.mountServer("guest", g.repository)
	if err := makePlace(dir, ""); err != nil {
		return err
	}
	stop, err := startAll(ctx, m)
	if err != nil {
		return err
	}
	defer stop()
	files := filepath.Join(dir, g.name, g.new, "files")
	return g.mounted(ctx, b.dir, "ro", func(kernel string) error {
		return errors.Join(b.copyOut(ctx, g, files, kernel), b.walk(ctx, g, files, kernel))
	})
}

func (b *bench) copyOut(ctx context.Context, g *guest, files, kernel string) error {
	target := filepath.Join(b.dir, "copied")
	copying := func(name string, argv ...string) subject {
		return subject{name: name, run: func(ctx context.Context) (float64, error) {
			os.Remove(target)
			settle()
			seconds, err := timed(func() error { _, err := tool(ctx, argv...); return err })
			if st, statErr := os.Stat(target); err == nil && (statErr != nil || st.Size() != bigFile) {
				err = fmt.Errorf("copy is not there, or not whole: %v", statErr)
			}
			os.Remove(target)
			return bigFile / (1 << 20) / seconds, err
		}}
	}
	through := filepath.Join(files, "srv/big")
	mount := copying("sendense/mount", "cp", through, target)
	copyThrough := mount.run
	mount.run = func(ctx context.Context) (float64, error) {
		if err := forget(through); err != nil {
			return 0, err
		}
		return copyThrough(ctx)
	}
	s, err := b.interleave(ctx, copying("sendense", b.program, "cp", g.name, "latest", "/srv/big", target, "--repository", g.repository), mount,
		copying("kernel", "cp", filepath.Join(kernel, "srv/big"), target))
	if err != nil {
		return err
	}
	b.medians("cp-1g/", s, "MiB/s")
	b.add(row{figure: "cp of a file of 1 GiB out of a point", unit: "MiB/s", own: s.median("sendense"), plain: s.median("kernel"),
		checks: []check{atLeast("cp from the kernel's mount", s.ratio("sendense", "kernel"), 0.8)}})
	b.add(row{figure: "the same with cp through FUSE, first time", unit: "MiB/s", own: s.median("sendense/mount"), plain: s.median("kernel")})
	return nil
}

// walk measures looking at every file. Through FUSE each round has a mount of its
// own.
func (b *bench) walk(ctx context.Context, g *guest, files, kernel string) error {
	counted := func(argv ...string) (float64, error) {
		return timed(func() error {
			out, err := tool(ctx, argv...)
			if n := bytes.Count(out, []byte("\n")); err == nil && n < guestFiles {
				err = fmt.Errorf("%d files were found of %d", n, guestFiles)
			}
			return err
		})
	}
	s, err := b.interleave(ctx, subject{name: "sendense", run: func(ctx context.Context) (float64, error) {
		return counted(b.program, "find", g.name, "latest", "/", "--repository", g.repository)
	}}, subject{name: "sendense/mount", run: func(ctx context.Context) (float64, error) {
		m, dir := b.mountServer("walk", g.repository)
		if err := makePlace(dir, ""); err != nil {
			return 0, err
		}
		if err := m.start(ctx); err != nil {
			return 0, err
		}
		defer m.stop()
		return counted("find", filepath.Join(dir, g.name, g.new, "files"), "-printf", "%s %p\n")
	}}, subject{name: "kernel", run: func(ctx context.Context) (float64, error) { return counted("find", kernel, "-printf", "%s %p\n") }})
	if err != nil {
		return err
	}
	b.medians("walk-200k/", s, "s")
	b.add(row{figure: fmt.Sprintf("find of all %d files in a point", guestFiles), unit: "s", own: s.median("sendense"), plain: s.median("kernel")})
	b.add(row{figure: "the same with find and stat through a new mount", unit: "s", own: s.median("sendense/mount"), plain: s.median("kernel")})
	return nil
}

// others measures comparisons of points of other file systems.
func (b *bench) others(ctx context.Context) error {
	if !b.mayMount() {
		return nil
	}
	for _, fsType := range []string{"xfs", "btrfs", "ntfs"} {
		files := guestFiles
		if fsType == "ntfs" {
			files /= 4 // ntfs-3g takes long to write them
		}
		g, err := b.buildGuest(ctx, fsType, files)
		if err == nil {
			err = b.diff(ctx, g)
			g.remove()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", fsType, err)
		}
	}
	return nil
}
