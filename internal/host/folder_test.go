package host_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/host"
	"github.com/sendense/sendense/internal/requires"
)

// envEmbed makes a test run an appliance in its process, say so, and wait until it
// is killed.
const envEmbed = "SENDENSE_TEST_EMBED"

// temporary makes a folder with a short path the one for temporary files.
func temporary(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("TMPDIR", dir)
	return dir
}

// folders lists what is in a folder.
func folders(t *testing.T, dir string) map[string]bool {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	return names
}

func TestAKilledCommandLeavesNoFolderForLong(t *testing.T) {
	if repository := os.Getenv(envEmbed); repository != "" {
		_, err := host.Connect(t.Context(), "", host.Options{Repository: repository, Create: true})
		fmt.Println("connected:", err)
		select {} // until killed
	}
	repository, temp := filepath.Join(t.TempDir(), "repo"), temporary(t)
	live, end := embedded(t, repository)
	before := folders(t, temp)
	if len(before) != 1 {
		t.Fatalf("folders of a command: got %v, want one", before)
	}

	cmd := exec.Command(os.Args[0], "-test.run=^TestAKilledCommandLeavesNoFolderForLong$")
	cmd.Env = append(os.Environ(), envEmbed+"="+repository)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	both := folders(t, temp)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil || line != "connected: <nil>\n" || len(both) != 2 {
		t.Fatalf("other process: got %q (%v) and folders %v, want two", line, err, both)
	}

	next, _ := embedded(t, repository)
	after := folders(t, temp)
	for name := range both {
		if after[name] != before[name] {
			t.Errorf("folder %s: got there %v, want %v", name, after[name], before[name])
		}
	}
	if len(after) != 2 {
		t.Errorf("folders: got %v, want those of the two that live", after)
	}
	for _, c := range []interface{ Close() }{live, next} {
		c.Close() // of idle connections
	}
	if _, err := live.Health(t.Context()); err != nil {
		t.Errorf("the command that lives: %v", err)
	}
	end()
	if left := folders(t, temp); len(left) != 1 {
		t.Errorf("folders after an end in good order: got %v, want that of the other", left)
	}
}

func TestOnlyFoldersThatAreProvedAbandonedAreRemoved(t *testing.T) {
	requires.Root(t) // for a folder of somebody else
	temp := temporary(t)
	first, err := host.NewFolder(temp, "run")
	if err != nil {
		t.Fatal(err)
	}
	prefix, lock := "sendense-run-", ""
	for name := range folders(t, first.Path()) {
		lock = name
	}
	make := func(name string, files ...string) string {
		path := filepath.Join(temp, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(path, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	outside := make("outside", lock, "file")
	if err := os.Symlink(outside, filepath.Join(temp, prefix+"link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(make(prefix+"theirs", lock), 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(make(prefix+"open", lock), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, lock), filepath.Join(make(prefix+"trick", "file"), lock)); err != nil {
		t.Fatal(err)
	}
	make(prefix+"other", "file")
	make("sendense-nbd-1", lock)
	for _, name := range []string{"dead", "deader"} {
		make(prefix+name, lock, "control.sock")
	}
	make(prefix + "empty")

	second, err := host.NewFolder(temp, "run")
	if err != nil {
		t.Fatal(err)
	}
	left := folders(t, temp)
	for name, want := range map[string]bool{"outside": true, prefix + "link": true, prefix + "theirs": true, prefix + "open": true,
		prefix + "trick": true, prefix + "other": true, "sendense-nbd-1": true, filepath.Base(first.Path()): true, filepath.Base(second.Path()): true,
		prefix + "dead": false, prefix + "deader": false, prefix + "empty": false} {
		if left[name] != want {
			t.Errorf("%s: got there %v, want %v", name, left[name], want)
		}
	}
	if n := len(folders(t, outside)); n != 2 {
		t.Errorf("files outside: got %d, want 2", n)
	}
	for _, f := range []*host.Folder{first, second} {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(f.Path()); !os.IsNotExist(err) {
			t.Errorf("closed folder: got %v, want it gone", err)
		}
	}
}

func TestFoldersAreMadeWhileOthersAreSwept(t *testing.T) {
	temp := temporary(t)
	const workers, each = 4, 50
	errs := make(chan error, workers)
	for range workers {
		go func() {
			for range each {
				f, err := host.NewFolder(temp, "run")
				if err == nil {
					err = os.WriteFile(filepath.Join(f.Path(), "control.sock"), nil, 0o600)
				}
				if err == nil {
					err = f.Close()
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for name := range folders(t, temp) {
		if strings.HasPrefix(name, "sendense-") {
			t.Errorf("left behind: %s", name)
		}
	}
}
