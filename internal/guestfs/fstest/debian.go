package fstest

import (
	"embed"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/requires"
)

//go:embed debian
var debian embed.FS

// Debian is what a Debian has of a kernel.
type Debian struct {
	Version string // of the kernel
	// Most and Few are initial RAM disks as Debian's own tools make them: with most
	// drivers, and with none that is not named.
	Most, Few string // paths
	dir       string
}

// NewDebian returns it, made at the first call.
func NewDebian(t testing.TB) Debian {
	t.Helper()
	requires.Root(t)
	requires.Tool(t, "mmdebstrap", "chroot")
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := guest.Made(t.Context(), cache, "initramfs", debian, "debian/build.sh")
	if err != nil {
		t.Fatal(err)
	}
	version, err := os.ReadFile(filepath.Join(dir, "version"))
	if err != nil {
		t.Fatal(err)
	}
	return Debian{Version: strings.TrimSpace(string(version)), Most: filepath.Join(dir, "most"), Few: filepath.Join(dir, "few"), dir: dir}
}

// Fill puts a root file system into a folder, as far as it says what there is of a
// kernel, with an initial RAM disk of it.
func (d Debian) Fill(t testing.TB, root, initramfs string) {
	t.Helper()
	for from, to := range map[string]string{
		initramfs:                               "boot/initrd.img-" + d.Version,
		filepath.Join(d.dir, "vmlinuz"):         "boot/vmlinuz-" + d.Version,
		filepath.Join(d.dir, "modules.dep"):     "lib/modules/" + d.Version + "/modules.dep",
		filepath.Join(d.dir, "modules.builtin"): "lib/modules/" + d.Version + "/modules.builtin",
		filepath.Join(d.dir, "os-release"):      "etc/os-release",
	} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		Write(t, root, to, string(b))
	}
	Write(t, root, "etc/initramfs-tools/initramfs.conf", "MODULES=most\n")
}

// Write puts a file into a folder.
func Write(t testing.TB, root, name, content string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
