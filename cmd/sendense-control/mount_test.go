package main_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/requires"
)

// mounted mounts what a site has, until the test ends.
func mounted(t *testing.T, s *clitest.Site, flags []string, more string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	s.Good(s.Control(flags, "mount "+dir+more))
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// imagesOf returns the files of the disks in a repository.
func imagesOf(t *testing.T, s *clitest.Site) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(s.Repo, "*", "disk-*", "*.qcow2"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("images: got %q, %v", paths, err)
	}
	return paths
}

func TestWhatTheRepositoryLostIsAnErrorInAMount(t *testing.T) {
	s := siteOf(t, 64<<20, func(dir string) { put(t, "hello", dir, "etc/motd") })
	dir := mounted(t, s, s.Alone(), "")
	points, err := os.ReadDir(filepath.Join(dir, "web1"))
	if err != nil || len(points) != 1 {
		t.Fatalf("points: got %v, %v", points, err)
	}
	point := filepath.Join(dir, "web1", points[0].Name())
	path := imagesOf(t, s)[0]
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	for name, look := range map[string]func(path string) error{
		"files":          func(p string) error { _, err := os.ReadDir(p); return err },
		"disk-0":         func(p string) error { _, err := os.ReadDir(p); return err },
		"files/etc/motd": func(p string) error { _, err := os.Lstat(p); return err },
		"disk-0/fs":      func(p string) error { _, err := os.Lstat(p); return err },
		"disk-0.raw": func(p string) error {
			f, err := os.Open(p)
			f.Close()
			return err
		},
	} {
		if err := look(filepath.Join(point, name)); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: got %v, want EIO", name, err)
		}
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"files/etc/motd", "disk-0/fs/etc/motd"} {
		if b, err := os.ReadFile(filepath.Join(point, name)); err != nil || string(b) != "hello" {
			t.Errorf("%s once the image is back: got %q, %v", name, b, err)
		}
	}
	record, err := filepath.Glob(filepath.Join(s.Repo, "*", "metadata.json"))
	if err != nil || len(record) != 1 {
		t.Fatalf("records: got %q, %v", record, err)
	}
	if err := os.WriteFile(record[0], []byte("no record"), 0o600); err != nil {
		t.Fatal(err)
	}
	clitest.Until(t, "the kernel forgets the name", func() bool {
		_, err = os.Lstat(filepath.Join(dir, "web1"))
		return err != nil
	})
	if !errors.Is(err, syscall.EIO) {
		t.Errorf("a machine whose record is damaged: got %v, want EIO", err)
	}
}

// asNobody runs a program as a user who may do nothing in particular.
func asNobody(argv ...string) ([]byte, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd.Output()
}

func TestAMountOfRootIsNotForEverybody(t *testing.T) {
	requires.Root(t)
	s := siteOf(t, 64<<20, func(dir string) {
		put(t, "hello", dir, "etc/motd")
		put(t, "secret", dir, "etc/shadow")
		for path, mode := range map[string]os.FileMode{"": 0o755, "etc": 0o755, "etc/motd": 0o644, "etc/shadow": 0o640} {
			if err := os.Chmod(filepath.Join(dir, path), mode); err != nil {
				t.Fatal(err)
			}
		}
	})
	dir, err := os.MkdirTemp("/var/tmp", "sendense-test-") // others get as far as there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Unmount(dir, syscall.MNT_DETACH)
		os.Remove(dir)
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		s.Good(s.Control(flags, "mount "+dir))
		if list, err := asNobody("ls", dir); err == nil {
			t.Errorf("a mount, as another user: got %q, want no answer", list)
		}
		s.Good(s.Control(flags, "unmount "+dir))

		s.Good(s.Control(flags, "mount --writable --allow-other "+dir))
		points, err := os.ReadDir(filepath.Join(dir, "web1"))
		if err != nil || len(points) != 1 {
			t.Fatalf("points: got %v, %v", points, err)
		}
		point := filepath.Join(dir, "web1", points[0].Name())
		if b, err := asNobody("cat", point+"/files/etc/motd"); err != nil || string(b) != "hello" {
			t.Errorf("what all may read, as another user: got %q, %v", b, err)
		}
		for _, name := range []string{"disk-0.raw", "files/etc/shadow"} {
			if _, err := asNobody("head", "-c", "1", filepath.Join(point, name)); err == nil {
				t.Errorf("%s: another user may read it", name)
			}
		}
		s.Good(s.Control(flags, "unmount "+dir))
	})
}

func TestUnmountNeedsNoRepository(t *testing.T) {
	s := siteOf(t, 64<<20, func(dir string) { put(t, "hello", dir, "etc/motd") })
	none := []string{"--repository", s.Path("none")}
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		dir := mounted(t, s, flags, "")
		s.Good(s.Control(none, "unmount "+dir))
		if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
			t.Errorf("after unmount: got %v, %v", list, err)
		}
		clitest.Refused(t, s.Control(none, "unmount "+dir), 3, "mounted")

		dir = mounted(t, s, flags, "")
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
		s.Good(s.Control(flags, "unmount "+link))
		if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
			t.Errorf("after unmount by a link: got %v, %v", list, err)
		}

		dir = mounted(t, s, flags, "")
		used, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		clitest.Refused(t, s.Control(none, "unmount "+dir), 4, "in use")
		used.Close()
		s.Good(s.Control(none, "unmount "+dir))
	})
	dir := t.TempDir()
	p := clitest.Start(t, s.Bin+"/sendense-control", append(s.Alone(), "mount", "--foreground", dir)...)
	clitest.Until(t, "it is mounted", func() bool { return p.Stdout() != "" })
	p.Kill()
	s.Good(s.Control(s.Alone(), "unmount "+dir))
}

func TestAMountInTheForegroundEndsWithItsCommand(t *testing.T) {
	s := siteOf(t, 64<<20, func(dir string) { put(t, "hello", dir, "etc/motd") })
	bothHosts(t, s, func(t *testing.T, s *clitest.Site, flags []string) {
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
			dir := t.TempDir()
			p := clitest.Start(t, s.Bin+"/sendense-control", append(flags, "mount", "--foreground", dir)...)
			clitest.Until(t, "it is mounted", func() bool { return p.Stdout() != "" })
			if r := p.Signal(sig); r.Code != 0 {
				t.Errorf("%v: got %+v", sig, r)
			}
			if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
				t.Errorf("after %v: got %v, %v", sig, list, err)
			}
		}
	})
}

func TestAMountThatLingersElsewhereHidesNoNewerOne(t *testing.T) {
	requires.Root(t)
	requires.Tool(t, "unshare")
	s := siteOf(t, 64<<20, func(dir string) { put(t, "hello", dir, "etc/motd") })
	s.Daemon()
	dir := mounted(t, s, s.Via(), "")
	elsewhere := clitest.Start(t, "unshare", "--mount", "--propagation", "private", "sh", "-c", "echo there; exec sleep 60")
	clitest.Until(t, "the mount is in another namespace", func() bool { return elsewhere.Stdout() != "" })
	before := clitest.Start(t, s.Bin+"/sendense-control", append(s.Via(), "unmount", dir)...)
	clitest.Until(t, "it is gone here", func() bool {
		table, err := os.ReadFile("/proc/self/mountinfo")
		return err == nil && !strings.Contains(string(table), " "+dir+" ")
	})
	s.Good(s.Control(s.Via(), "mount "+dir))
	s.Good(before.Wait())
	resp := request(t, s, "/v1/mounts")
	defer resp.Body.Close()
	if list, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(list), dir) {
		t.Errorf("mounts: got %s, %v, want the newer one", list, err)
	}
	s.Good(s.Control(s.Via(), "unmount "+dir))
}
