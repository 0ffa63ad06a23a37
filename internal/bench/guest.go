package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// The disk of the guest whose files are read.
const (
	guestSize    = 20 << 30
	guestFiles   = 200_000 // in directories of a hundred, but for a tenth that is in one
	guestChanged = 1000    // one file of so many is
	guestStart   = 1 << 20 // of its partition
	guestTables  = 128 << 10
	bigFile      = 1 << 30 // bytes of /srv/big
	guestVM      = "guest"
)

// guest is a machine with one disk and two points, of which the second has some
// files changed.
type guest struct {
	fsType     string
	files      int
	image      string // raw
	offset     int64  // of the file system in it
	repository string
	name       string // of the machine
	old, new   string // points
	top        string // QCOW2 file of the second
	place      string // how paths of the file system begin
}

// mkfs makes the file systems. %s is the UUID, which is what directories are hashed
// with, too.
var mkfs = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-F", "-U", guestUUID, "-E", "hash_seed=" + guestUUID + ",lazy_itable_init=0,lazy_journal_init=0"},
	"xfs":   {"mkfs.xfs", "-q", "-f", "-m", "uuid=" + guestUUID},
	"btrfs": {"mkfs.btrfs", "-q", "-f", "-U", guestUUID},
	"ntfs":  {"mkfs.ntfs", "-q", "-F", "-Q"},
}

const guestUUID = "5e0d0000-0000-4000-8000-0000000f5000"

// buildGuest makes a machine and its points with the program's own capture. The
// whole one is of ext4, has a partition table, an operating system and the big
// file; of other types there is a file system with many files.
func (b *bench) buildGuest(ctx context.Context, fsType string, files int) (g *guest, err error) {
	g = &guest{fsType: fsType, files: files, name: guestVM + "-" + fsType, image: filepath.Join(b.dir, "guest-"+fsType+".raw"),
		repository: filepath.Join(b.dir, "guests-"+fsType), place: "disk-0/fs"}
	b.logf("build a guest with %d files on %s", files, fsType)
	if err := os.WriteFile(g.image, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(g.image, guestSize); err != nil {
		return nil, err
	}
	if fsType == "ext4" {
		g.offset, g.place = guestStart, ""
	}
	if err := g.format(ctx); err != nil {
		return nil, err
	}
	if err := g.mounted(ctx, b.dir, "rw", g.populate); err != nil {
		return nil, err
	}
	if g.old, err = b.backup(ctx, g); err != nil {
		return nil, err
	}
	if err := g.mounted(ctx, b.dir, "rw", g.change); err != nil {
		return nil, err
	}
	if g.new, err = b.backup(ctx, g); err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(g.repository, "*", "disk-0", "*"+g.new+".qcow2"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("%d files of a point: %w", len(images), err)
	}
	g.top = images[0]
	settle()
	return g, nil
}

// remove gives up the room that it takes.
func (g *guest) remove() { os.Remove(g.image); os.RemoveAll(g.repository) }

// format makes the file system, in a partition if there is to be one.
func (g *guest) format(ctx context.Context) error {
	argv := append([]string{}, mkfs[g.fsType]...)
	if g.offset == 0 {
		_, err := tool(ctx, append(argv, g.image)...)
		return err
	}
	// mkfs clears the first sectors of the disk wherever the file system begins.
	argv[len(argv)-1] += fmt.Sprintf(",offset=%d", g.offset)
	if _, err := tool(ctx, append(argv, g.image, fmt.Sprint((guestSize-g.offset-guestTables)>>10)+"k")...); err != nil {
		return err
	}
	_, err := tool(ctx, "sgdisk", "-U", guestUUID, "-n", "1:2048:0", g.image)
	return err
}

// mounted has the kernel mount the file system while fn runs.
func (g *guest) mounted(ctx context.Context, scratch, options string, fn func(dir string) error) error {
	dir := filepath.Join(scratch, "mounted")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	argv := []string{"mount", "-o", fmt.Sprintf("%s,loop,offset=%d", options, g.offset), g.image, dir}
	if g.fsType == "ntfs" {
		argv = []string{"ntfs-3g", "-o", options + ",big_writes", g.image, dir}
	}
	if _, err := tool(ctx, argv...); err != nil {
		return err
	}
	err := fn(dir)
	_, gone := tool(context.WithoutCancel(ctx), "umount", dir)
	return errors.Join(err, gone)
}

// backup makes a point, as a user would, and returns its name.
func (b *bench) backup(ctx context.Context, g *guest) (string, error) {
	capture := filepath.Join(filepath.Dir(b.program), "sendense-capture")
	_, err := tool(ctx, capture, "backup", "--source", "blockdev", "--disk", g.image+"=vda", "--vm", g.name, "--repository", g.repository)
	if err != nil {
		return "", err
	}
	out, err := tool(ctx, b.program, "points", g.name, "--repository", g.repository)
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	if len(fields) == 0 {
		return "", fmt.Errorf("no points are listed: %q", out)
	}
	return fields[0], nil
}

// made is when all files of the guest were written.
var made = time.Date(2025, 10, 2, 12, 0, 0, 0, time.UTC)

// populate writes the guest's files.
func (g *guest) populate(dir string) error {
	if g.fsType == "ext4" {
		if err := operatingSystem(dir); err != nil {
			return err
		}
		if err := writeBig(filepath.Join(dir, "srv/big")); err != nil {
			return err
		}
	}
	var w errgroup.Group
	w.SetLimit(2)
	for first := 0; first < g.files; first += 100 {
		w.Go(func() error {
			r := newRandom(uint64(1000 + first))
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, g.fileName(first))), 0o755); err != nil {
				return err
			}
			for i := range 100 {
				if err := writeFile(filepath.Join(dir, g.fileName(first+i)), r, g.fsType == "ext4"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return w.Wait()
}

// operatingSystem writes what a machine is known by.
func operatingSystem(dir string) error {
	for _, d := range []string{"bin", "boot", "dev", "etc", "home", "lib", "mnt", "opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"etc/os-release": "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n", "etc/hostname": "guest\n",
		"etc/fstab": "UUID=" + guestUUID + " / ext4 defaults 0 1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// fileName returns where file i of the guest is.
func (g *guest) fileName(i int) string {
	if i < g.files/10 {
		return fmt.Sprintf("srv/many/message-%08d.eml", i)
	}
	return fmt.Sprintf("srv/tree/%02d/%04d/document-%06d.txt", i/10_000, i/100, i)
}

// writeFile writes a file of some hundred bytes or, with content, some thousand.
func writeFile(name string, r random, content bool) error {
	n := 1 + r.IntN(500)
	if content {
		n = 1 + r.IntN(8<<10)
	}
	p := make([]byte, n)
	r.fill(p)
	if err := os.WriteFile(name, p, 0o644); err != nil {
		return err
	}
	return os.Chtimes(name, made, made)
}

func writeBig(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	r, p := newRandom(9), make([]byte, 1<<20)
	for range bigFile / len(p) {
		r.fill(p)
		if _, err = f.Write(p); err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}

// changed returns how many files differ between the points.
func (g *guest) changed() int { return g.files / guestChanged }

// change changes some files: of ten one is added, one removed, one has its mode
// changed, and the others have other content.
func (g *guest) change(dir string) error {
	r := newRandom(10)
	for i := range g.changed() {
		name := filepath.Join(dir, g.fileName(guestChanged*i+i))
		var err error
		switch {
		case i%10 == 0:
			err = writeFile(name+".new", r, true)
		case i%10 == 1:
			err = os.Remove(name)
		case i%10 == 2 && g.fsType != "ntfs": // it has no modes of ours
			err = os.Chmod(name, 0o600)
		default:
			err = os.WriteFile(name, []byte("changed\n"), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
