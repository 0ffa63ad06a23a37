package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

//go:embed recipe
var recipe embed.FS

// Tools are the programs that [Build] and [StartHost] run.
var Tools = []string{
	"mmdebstrap", "mkfs.ext4", "qemu-img", "qemu-system-x86_64", "libvirtd", "mount", "chroot", "gzip",
}

// Image is a bootable Debian guest: a disk of 2 GiB with one partition that holds
// an ext4 file system, and the kernel that goes with it. The guest logs in root
// on its serial console and runs the QEMU guest agent. The files are shared by
// everybody who called Build: copy the disk before use.
type Image struct {
	Disk   string // path, QCOW2
	Kernel string // path
	Initrd string // path
}

// Build returns the guest in the folder cache, and makes it first if there is
// none of this recipe: that takes some ten seconds, root, and Debian's packages
// from where the machine's apt is told to get them. Builds of several processes
// at once wait for one.
func Build(ctx context.Context, cache string) (Image, error) {
	dir, err := Made(ctx, cache, "debian", recipe, "recipe/build.sh")
	if err != nil {
		return Image{}, fmt.Errorf("build guest: %w", err)
	}
	return Image{
		Disk:   filepath.Join(dir, "disk.qcow2"),
		Kernel: filepath.Join(dir, "vmlinuz"),
		Initrd: filepath.Join(dir, "initrd"),
	}, nil
}

// Made returns the folder of what a recipe makes, below the folder cache, and has
// it made first if there is none of this recipe. A recipe is a shell script among
// its files, which is told two folders: where to put what it makes, and where its
// files are. Builds of several processes at once wait for one.
func Made(ctx context.Context, cache, name string, recipe fs.FS, script string) (string, error) {
	sum, err := recipeSum(recipe)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name+"-"+sum)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFolder(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	return dir, build(ctx, cache, dir, recipe, script)
}

// build runs the recipe in a folder beside dir and renames that to dir.
func build(ctx context.Context, cache, dir string, recipe fs.FS, script string) error {
	tmp, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	files := filepath.Join(tmp, "files")
	if err := os.CopyFS(files, recipe); err != nil {
		return err
	}
	out := filepath.Join(tmp, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	program := filepath.Join(files, script)
	var log bytes.Buffer
	cmd := exec.CommandContext(ctx, "sh", program, out, filepath.Dir(program))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w\n%s", err, log.Bytes())
	}
	return os.Rename(out, dir)
}

// recipeSum returns a short name for the content of a recipe.
func recipeSum(recipe fs.FS) (string, error) {
	h := sha256.New()
	err := fs.WalkDir(recipe, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(recipe, path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
		return err
	})
	return fmt.Sprintf("%x", h.Sum(nil)[:6]), err
}

// lockFolder waits until this process is the only one that changes dir.
func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return func() { f.Close() }, nil
}

// CopyDisk writes a copy of the disk to path in a format that qemu-img knows by
// name: "qcow2", "raw".
func (i Image) CopyDisk(ctx context.Context, path, format string) error {
	return run(ctx, "qemu-img", "convert", "-O", format, i.Disk, path)
}

// CacheDir returns the folder build/guest of the module that the working
// directory is in.
func CacheDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "build", "guest"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("working directory is in no Go module")
		}
		dir = parent
	}
}

// run runs a command and returns what it wrote to stderr with its error.
func run(ctx context.Context, name string, args ...string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}
