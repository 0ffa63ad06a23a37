package main_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/api/client"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

// TestContentLiesWhereItIsSaidTo reads files from where the control plane says that
// they lie, also while the point is removed on which theirs builds.
func TestContentLiesWhereItIsSaidTo(t *testing.T) {
	s, states := filesSite(t)
	s.Daemon()
	c, err := client.New(s.Via()[1])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i, path := range []string{"/sizes/5242883", "/sparse/far", "/etc/motd"} {
		want, err := os.ReadFile(filepath.Join(states[1], path))
		if err != nil {
			t.Fatal(err)
		}
		got, at := make([]byte, len(want)), int64(0)
		err = c.Places(t.Context(), appliance.FilesRequest{VM: "web1", Point: "latest", Path: path}, func(p api.FilePlace) error {
			if i == 0 && at == 0 {
				if r := s.Control(s.Via(), "delete web1 latest~1"); r.Code != 0 {
					t.Errorf("delete: %+v", r)
				}
			}
			if p.Offset != at || p.Length <= 0 {
				t.Errorf("%s: place %+v, where %d was next", path, p, at)
			}
			at += p.Length
			if p.Path == "" {
				return nil
			}
			f, err := os.Open(p.Path)
			if err != nil {
				return err
			}
			defer f.Close()
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err != nil || api.FileID(&st) != p.ID {
				t.Errorf("%s: file %s is %s (%v), not %s", path, p.Path, api.FileID(&st), err, p.ID)
			}
			_, err = io.ReadFull(io.NewSectionReader(f, p.At, p.Length), got[p.Offset:][:p.Length])
			return err
		})
		if err != nil || at != int64(len(want)) || !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes (%v), want the %d that it has", path, at, err, len(want))
		}
	}
	refused := &appliance.Error{}
	err = c.Places(t.Context(), appliance.FilesRequest{VM: "web1", Point: "latest", Path: "/etc/motd", Verified: true},
		func(api.FilePlace) error { return nil })
	if !errors.As(err, &refused) || refused.Code != appliance.CodeInvalid {
		t.Errorf("places of what is to be verified: got %v, want it to be refused", err)
	}
}

// TestCopiesOfWhatHasToBeSent copies files that are not stored as they are, beside
// one that is.
func TestCopiesOfWhatHasToBeSent(t *testing.T) {
	s := clitest.NewSite(t, filepath.Dir(program))
	noise := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	files := map[string]string{"text": strings.Repeat("the same again\n", 300_000), "noise": string(noise),
		"both": strings.Repeat("the same again\n", 100_000) + string(noise)}
	disk := fstest.Make(t, 256<<20, "mkfs.btrfs", "-q")
	dir, unmount := fstest.Mount(t, disk, "btrfs", "compress=zstd")
	for name, content := range files {
		put(t, content, dir, name)
	}
	unmount()
	if r := s.Backup(s.Alone(), disk); r.Code != 0 {
		t.Fatalf("backup: %+v", r)
	}
	for _, how := range []string{"", " --verified"} {
		out := t.TempDir()
		if r := s.Control(s.Alone(), "cp"+how+" web1 latest / "+out+"/copy"); r.Code != 0 {
			t.Fatalf("cp%s: %+v", how, r)
		}
		for name, want := range files {
			got, err := os.ReadFile(filepath.Join(out, "copy", name))
			if err != nil || string(got) != want {
				t.Errorf("cp%s: %s has %d bytes (%v), or others than the %d that it should", how, name, len(got), err, len(want))
			}
		}
	}
}

func TestCopiesThatHaveNoRoomSaySo(t *testing.T) {
	s, _ := filesSite(t)
	small := t.TempDir()
	clitest.Tool(t, "mount", "-t", "tmpfs", "-o", "size=2m", "sendense-test", small)
	t.Cleanup(func() { clitest.Tool(t, "umount", "-l", small) })
	for _, how := range []string{"", " --verified"} {
		r := s.Control(s.Alone(), "cp"+how+" web1 latest /sizes/5242883 "+small)
		if r.Code != 8 || !strings.Contains(r.Stderr, "not enough room for a copy of /sizes/5242883") || !strings.Contains(r.Stderr, "hint: Free space where it goes to") {
			t.Errorf("cp%s: got %+v, want it to say that there is no room", how, r)
		}
		if parts := namesIn(t, small); len(parts) > 0 {
			t.Errorf("cp%s leaves %q", how, parts)
		}
	}
}
