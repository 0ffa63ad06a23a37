package guestfs_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/requires"
)

// container makes a disk that is a container of LUKS with the passphrase "secret".
func container(t testing.TB, options ...string) string {
	t.Helper()
	requires.Tool(t, "cryptsetup")
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 24<<20)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cryptsetup", append(append([]string{"luksFormat", "--batch-mode", "--key-file=-"}, options...), path)...)
	cmd.Stdin = strings.NewReader("secret")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cryptsetup: %v\n%s", err, out)
	}
	return path
}

// rewrite replaces text in both headers of LUKS2 by as much, and puts their checksums
// right.
func rewrite(t testing.TB, path, from, to string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size := int(binary.BigEndian.Uint64(b[8:]))
	for _, at := range []int{0, size} {
		h := b[at : at+size]
		if n := bytes.Count(h, []byte(from)); n != 1 || len(from) != len(to) {
			t.Fatalf("header has %q %d times", from, n)
		}
		copy(h, bytes.Replace(h, []byte(from), []byte(to), 1))
		clear(h[448:512])
		sum := sha256.Sum256(h)
		copy(h[448:], sum[:])
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// openWith opens disks with passphrases.
func openWith(t testing.TB, paths []string, passphrases ...string) (*guestfs.Guest, error) {
	t.Helper()
	var disks []guestfs.Disk
	for i, p := range paths {
		disks = append(disks, guestfs.Disk{Index: i, Device: device{fstest.Open(t, p)}})
	}
	var list [][]byte
	for _, p := range passphrases {
		list = append(list, []byte(p))
	}
	g, err := guestfs.Open(t.Context(), disks, guestfs.Options{Keys: guestfs.NewKeys(list)})
	if err == nil {
		t.Cleanup(g.Close)
	}
	return g, err
}

// only returns the only volume.
func only(t testing.TB, g *guestfs.Guest) guestfs.Volume {
	t.Helper()
	list, err := g.Volumes(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("volumes: got %+v, %v, want one", list, err)
	}
	return list[0]
}

func TestKeysThatTakeMuchMemory(t *testing.T) {
	path := container(t, "--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", "1048576", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "4")
	g, err := openWith(t, []string{path}, "secret")
	if err != nil {
		t.Fatalf("a header that asks for 1 GiB: %v", err)
	}
	if v := only(t, g); v.Path != "disk-0/crypt" || v.Locked {
		t.Errorf("inside of a header that asks for 1 GiB: got %+v", v)
	}
	rewrite(t, path, `"memory":1048576`, `"memory":4194304`)
	_, err = openWith(t, []string{path}, "secret")
	if !errors.Is(err, guestfs.ErrLocked) || !strings.Contains(err.Error(), "keyslot 0: deriving its key takes 4096 MiB of memory, and 1024 MiB are the most") {
		t.Errorf("a header that asks for 4 GiB: got %v", err)
	}
}

func TestHeadersThatAskForTooMuch(t *testing.T) {
	sound := container(t, "--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", "1000", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1")
	for what, x := range map[string]struct{ from, to, says string }{
		"passes":          {`"time":4,"memory":1000,"cpus":1`, `"time":900,"memory":99,"cpus":1`, "takes 900 passes"},
		"threads":         {`"time":4,"memory":1000,"cpus":1`, `"time":4,"memory":100,"cpus":99`, "with 99 threads"},
		"memory":          {`"time":4,"memory":1000,"cpus":1`, `"time":4,"memory":9e99,"cpus":1`, "cannot be unlocked"},
		"negative memory": {`"time":4,"memory":1000,"cpus":1`, `"time":4,"memory":-999,"cpus":1`, "which is not valid"},
		"stripes":         {`"stripes":4000`, `"stripes":9999`, "is not valid"},
		"a cipher":        {`"encryption":"aes-xts-plain64","sector_size"`, `"encryption":"aes-xxx-plain64","sector_size"`, "cipher"},
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.img")
			fstest.Run(t, "cp", "--sparse=always", sound, path)
			rewrite(t, path, x.from, x.to)
			g, err := openWith(t, []string{path}, "secret")
			if err == nil { // whatever the passphrase
				err = errors.New(only(t, g).Refusal)
			} else if !errors.Is(err, guestfs.ErrLocked) {
				t.Errorf("got %v, want ErrLocked", err)
			}
			if !strings.Contains(err.Error(), x.says) {
				t.Errorf("got %v, want it to say %q", err, x.says)
			}
		})
	}
}

func TestWithoutTheRightPassphrase(t *testing.T) {
	plain := fstest.Make(t, 16<<20, "mkfs.ext4", "-q")
	for _, kind := range []string{"luks1", "luks2"} {
		t.Run(kind, func(t *testing.T) {
			options := []string{"--type", kind, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"}
			disks := []string{plain, container(t, options...)}
			g := open(t, disks)
			list, err := g.Volumes(t.Context())
			if err != nil || len(list) != 2 || !list[1].Locked || list[1].Path != "disk-1/fs" || list[1].Type != "crypto_LUKS" ||
				!strings.Contains(list[1].Refusal, "no passphrase was given") {
				t.Errorf("without a passphrase: got %+v, %v", list, err)
			}
			if _, err := g.Resolve(t.Context(), "disk-1/fs", true); !errors.Is(err, guestfs.ErrLocked) || !strings.Contains(err.Error(), "disk-1/fs is encrypted") {
				t.Errorf("path in a locked volume: got %v", err)
			}
			if _, err := g.Resolve(t.Context(), "/etc", true); !errors.Is(err, guestfs.ErrLocked) || g.HasRoot() {
				t.Errorf("path in the machine's own tree, which may be locked: got %v", err)
			}
			_, err = openWith(t, disks, "wrong", "Secret", "secret\n")
			if !errors.Is(err, guestfs.ErrLocked) || err.Error() != "disk-1/fs is encrypted with LUKS, and no passphrase given fits" {
				t.Errorf("with wrong passphrases: got %v", err)
			}
			if g, err := openWith(t, disks, "wrong", "secret"); err != nil {
				t.Errorf("with the right one behind a wrong one: got %v", err)
			} else if list, err := g.Volumes(t.Context()); err != nil || len(list) != 2 || list[1].Locked || list[1].Path != "disk-1/crypt" {
				t.Errorf("unlocked: got %+v, %v", list, err)
			}
		})
	}
}

func TestKeysAreDerivedOnce(t *testing.T) {
	path := container(t, "--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", "1000", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1")
	keys := guestfs.NewKeys([][]byte{[]byte("secret")})
	try := func() error {
		g, err := guestfs.Open(t.Context(), []guestfs.Disk{{Index: 0, Device: device{fstest.Open(t, path)}}}, guestfs.Options{Keys: keys})
		if err == nil {
			g.Close()
		}
		return err
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	// What this asks for cannot be derived.
	rewrite(t, path, `"time":4,"memory":1000,"cpus":1`, `"time":900,"memory":99,"cpus":1`)
	if err := try(); err != nil {
		t.Errorf("with a key that is known: %v", err)
	}
	keys.Clear()
	if err := try(); !errors.Is(err, guestfs.ErrLocked) {
		t.Errorf("with keys that were cleared: got %v", err)
	}
}
