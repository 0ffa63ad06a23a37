package guestfs_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/hive/hivetest"
)

const currentVersion = `Microsoft\Windows NT\CurrentVersion`

type values = map[string]hivetest.Value

// software are the values of Windows 11, which calls itself 10.
func software() map[string]values {
	return map[string]values{currentVersion: {
		"ProductName": hivetest.String("Windows 10 Pro"), "CurrentVersion": hivetest.String("6.3"), "CurrentBuildNumber": hivetest.String("22631"),
		"CurrentMajorVersionNumber": hivetest.Number(10), "CurrentMinorVersionNumber": hivetest.Number(0), "UBR": hivetest.Number(3007),
		"DisplayVersion": hivetest.String("23H2"), "ReleaseId": hivetest.String("2009"), "EditionID": hivetest.String("Professional"),
		"InstallationType": hivetest.String("Client"),
	}}
}

const (
	signature = 0xa1b2c3d4
	dataGUID  = "6F1D2C3B-4A59-4876-8192-A3B4C5D6E7F8"
)

// system are values of a machine with the drives C: on the first disk and D: and E: on
// others, the last of which has no disk here.
func system(startC uint64) map[string]values {
	byStart := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, signature), startC)
	guid := []byte("DMIO:ID:\x3b\x2c\x1d\x6f\x59\x4a\x76\x48\x81\x92\xa3\xb4\xc5\xd6\xe7\xf8")
	return map[string]values{
		"Select": {"Current": hivetest.Number(2)},
		`ControlSet001\Control\ComputerName\ComputerName`: {"ComputerName": hivetest.String("OLD")},
		`ControlSet002\Control\ComputerName\ComputerName`: {"ComputerName": hivetest.String("WIN-SRV1")},
		`ControlSet002\Services\viostor`:                  {"Start": hivetest.Number(0), "ImagePath": hivetest.String(`\SystemRoot\System32\drivers\viostor.sys`)},
		`ControlSet002\Services\Größe`:                    {},
		"MountedDevices": {
			`\DosDevices\C:`: {Type: 3, Data: byStart}, `\DosDevices\D:`: {Type: 3, Data: guid},
			`\DosDevices\E:`: {Type: 3, Data: binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, 7), 1<<20)},
			`\DosDevices\F:`: {Type: 3, Data: hivetest.Text(`\??\SCSI#CdRom`)}, `\DosDevices\9:`: {Type: 3, Data: guid},
			`\??\Volume{0}`: {Type: 3, Data: guid},
		},
	}
}

// ntfs makes a volume that fill filled, through ntfs-3g.
func ntfs(t *testing.T, size int64, fill func(dir string)) string {
	t.Helper()
	image := fstest.Make(t, size, "mkntfs", "-F", "-Q", "-q")
	dir, unmount := fstest.Mount(t, image, "ntfs-3g", "")
	fill(dir)
	unmount()
	return image
}

// windows makes the disks of a machine: the second partition of the first has C:, a
// partition of the second, which has a GUID partition table, has D:. fill may change C:.
func windows(t *testing.T, fill func(config string)) []string {
	t.Helper()
	boot := ntfs(t, 16<<20, func(dir string) { write(t, "boot", dir, "bootmgr") })
	c := ntfs(t, 64<<20, func(dir string) {
		config := filepath.Join(dir, "Windows", "System32", "config")
		write(t, "kernel", dir, "Windows", "System32", "ntoskrnl.exe")
		write(t, "on C", dir, "Users", "alice", "file.txt")
		if err := os.MkdirAll(config, 0o755); err != nil {
			t.Fatal(err)
		}
		hivetest.Write(t, filepath.Join(config, "SOFTWARE"), software())
		hivetest.Write(t, filepath.Join(config, "SYSTEM"), system(17<<20))
		if fill != nil {
			fill(config)
		}
	})
	data := ntfs(t, 32<<20, func(dir string) { write(t, "on D", dir, "Share", "file.txt") })
	first := disk(t, boot, c)
	f, err := os.OpenFile(first, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(binary.LittleEndian.AppendUint32(nil, signature), 440); err != nil {
		t.Fatal(err)
	}
	second := fstest.Make(t, 40<<20, "sgdisk", "-n", "1:2048:+32M", "-u", "1:"+dataGUID)
	fstest.Run(t, "dd", "if="+data, "of="+second, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
	return []string{first, second}
}

func TestWindowsAsItsRegistryTells(t *testing.T) {
	g := open(t, windows(t, nil))
	want := guestfs.OS{Family: "windows", ID: "windows", Name: "Windows 11 Pro 23H2", Version: "10.0.22631.3007", Hostname: "WIN-SRV1",
		Edition: "Professional", Installation: "Client"}
	if got := g.OS(); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("os: got %+v, want %+v", got, want)
	}
	for path, want := range map[string]string{
		"/Users/alice/file.txt": "on C", "/users/ALICE/File.TXT": "on C", "/D:/Share/file.txt": "on D", "/d:/share/file.txt": "on D",
		"/C:/Users/alice/file.txt": "on C", "disk-1/p1/Share/file.txt": "on D", "disk-0/p1/bootmgr": "boot", "disk-0/p2/Users/alice/file.txt": "on C",
		"/D:/../Users/alice/file.txt": "on C",
	} {
		if got := read(t, g, path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	for _, path := range []string{"/E:", "/F:", "/9:", "/D:/D:", "/Users/D:"} {
		if _, err := g.Resolve(t.Context(), path, true); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v, want fs.ErrNotExist", path, err)
		}
	}
	volumes, err := g.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var mounted []string
	for _, v := range volumes {
		mounted = append(mounted, v.Path+" "+v.Mounted)
	}
	if want := []string{"disk-0/p1 ", "disk-0/p2 /", "disk-1/p1 /D:"}; !slices.Equal(mounted, want) {
		t.Errorf("mounted: got %q, want %q", mounted, want)
	}
	root, err := g.Resolve(t.Context(), "/", true)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	err = g.Walk(t.Context(), root.Node, guestfs.Match{Name: "file.txt"}, func(e guestfs.Entry) error {
		files++
		return e.Err
	})
	if err != nil || files != 2 {
		t.Errorf("walk: got %d files, %v, want that of C and that of D", files, err)
	}
}

func TestWindowsWhoseRegistryIsDamaged(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(config string) error
		want guestfs.OS
		says []string
	}{
		"nothing but zeroes": {func(config string) error {
			return errors.Join(os.WriteFile(filepath.Join(config, "SOFTWARE"), make([]byte, 8192), 0o644), os.Remove(filepath.Join(config, "SYSTEM")))
		}, guestfs.OS{Name: "Windows"}, []string{"registry cannot be read", "does not tell its name"}},
		"being written, without a log": {func(config string) error { return patch(filepath.Join(config, "SOFTWARE"), 1) },
			guestfs.OS{Name: "Windows 11 Pro 23H2", Version: "10.0.22631.3007", Hostname: "WIN-SRV1"}, []string{"being written"}},
		"being written, with a log": {func(config string) error {
			path := filepath.Join(config, "SOFTWARE")
			old, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			keys := software()
			keys[currentVersion]["DisplayVersion"] = hivetest.String("24H2")
			hivetest.Write(t, path, keys)
			b, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path+".LOG1", nil, 0o644), os.WriteFile(path+".LOG2", hivetest.OldLog(old, b), 0o644),
				os.WriteFile(path, old, 0o644), patch(path, 1))
		}, guestfs.OS{Name: "Windows 11 Pro 24H2", Version: "10.0.22631.3007", Hostname: "WIN-SRV1"}, nil},
		"a folder": {func(config string) error {
			return errors.Join(os.Remove(filepath.Join(config, "SOFTWARE")), os.Mkdir(filepath.Join(config, "SOFTWARE"), 0o755))
		}, guestfs.OS{Name: "Windows", Hostname: "WIN-SRV1"}, []string{"no regular file"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := open(t, windows(t, func(config string) {
				if err := test.do(config); err != nil {
					t.Fatal(err)
				}
			}))
			got := g.OS()
			if got.Family != "windows" || got.Name != test.want.Name || got.Version != test.want.Version || got.Hostname != test.want.Hostname {
				t.Errorf("os: got %+v, want %+v", got, test.want)
			}
			if len(got.Notes) != len(test.says) || !slices.EqualFunc(got.Notes, test.says, strings.Contains) {
				t.Errorf("notes: got %q, want %q", got.Notes, test.says)
			}
			if got := read(t, g, "/Users/alice/file.txt"); got != "on C" {
				t.Errorf("content: got %q", got)
			}
		})
	}
}

// patch raises the first sequence number of a hive.
func patch(path string, by uint32) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(b[4:], binary.LittleEndian.Uint32(b[4:])+by)
	hivetest.Seal(b)
	return os.WriteFile(path, b, 0o644)
}

func TestADriveThatCannotBeReadIsTold(t *testing.T) {
	disks := windows(t, nil)
	fstest.Run(t, "dd", "if=/dev/zero", "of="+disks[1], "bs=1M", "seek=1", "count=32", "conv=notrunc", "status=none")
	g := open(t, disks)
	if notes := g.OS().Notes; len(notes) != 1 || !strings.Contains(notes[0], "D:") || !strings.Contains(notes[0], "disk-1/p1") {
		t.Errorf("notes: got %q, want one about D:", notes)
	}
	if _, err := g.Resolve(t.Context(), "/D:", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("/D: got %v, want fs.ErrNotExist", err)
	}
	if got := read(t, g, "/Users/alice/file.txt"); got != "on C" {
		t.Errorf("content: got %q", got)
	}
}
