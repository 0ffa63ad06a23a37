package restore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/digitalocean/go-libvirt"

	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/restore"
)

// What a process that is killed in the middle of a restore is told.
const (
	helperStage = "SENDENSE_TEST_STAGE" // where a process is to stop
	helperURI   = "SENDENSE_TEST_URI"
	helperDir   = "SENDENSE_TEST_DIR"
	// helperDefinition is of the machine; default the one described.
	helperDefinition = "SENDENSE_TEST_DEFINITION"
)

func TestMain(m *testing.M) {
	if stage, ok := os.LookupEnv(helperStage); ok {
		restoreUntil(stage, os.Getenv(helperURI), os.Getenv(helperDir))
	}
	os.Exit(m.Run())
}

// halted says that it has come so far, and comes no farther.
func halted() {
	fmt.Println("halted")
	select {}
}

// restoreUntil restores as far as a stage, and waits there to be killed.
func restoreUntil(stage, uri, dir string) {
	m := three(definition("", ""))
	l := &restore.Libvirt{Hypervisor: instant.Definer{URI: uri}, MachineOptions: restore.MachineOptions{Name: "killed", Storage: dir, Network: machine.Isolated}}
	if x := os.Getenv(helperDefinition); x != "" {
		m.Captured.Definition, l.Start = x, true
	}
	switch stage {
	case "copy":
		m.Disks[2].Device = stopping{m.Disks[2].Device.(*blocktest.Memory)}
	case "before the machine is made":
		l.Hypervisor = meanwhile{l.Hypervisor, halted}
	case "after the machine is made":
		l.Hypervisor = afterwards{l.Hypervisor}
	}
	_, err := restore.Run(context.Background(), l, m, restore.Options{})
	fmt.Println(err)
	os.Exit(1)
}

type stopping struct{ *blocktest.Memory }

func (stopping) ReadAt(context.Context, []byte, int64) error { halted(); return nil }

type afterwards struct{ restore.Hypervisor }

func (a afterwards) Define(ctx context.Context, d machine.Definition) ([]string, error) {
	if _, err := a.Hypervisor.Define(ctx, d); err != nil {
		return nil, err
	}
	halted()
	return nil, nil
}

// kill runs a restore in another process and kills it at a stage.
func kill(t *testing.T, h *guest.Host, dir, stage string) {
	t.Helper()
	kept := start(t, h, dir, stage)
	if err := kept.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = kept.Wait()
}

// helper returns a command in which this program restores until a stage.
func helper(stage string, h *guest.Host, dir string, argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), helperStage+"="+stage, helperURI+"="+h.URI(), helperDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func start(t *testing.T, h *guest.Host, dir, stage string) *exec.Cmd {
	t.Helper()
	cmd := helper(stage, h, dir, os.Args[0])
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 200)
	n, _ := out.Read(said)
	if got := strings.TrimSpace(string(said[:n])); got != "halted" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("restore until %s: got %q", stage, got)
	}
	return cmd
}

func TestKilledRestoreLeavesNoMachineAndPartialFiles(t *testing.T) {
	h := guesttest.Host(t)
	again := func(dir string) (restore.Result, error) {
		l := into(h, dir)
		l.Name = "killed"
		m := three(definition("", ""))
		return restore.Run(t.Context(), l, m, restore.Options{})
	}
	t.Run("while it copies", func(t *testing.T) {
		dir := t.TempDir()
		kill(t, h, dir, "copy")
		left := names(t, dir)
		if len(left) != 3 || slices.ContainsFunc(left, func(n string) bool { return !strings.HasSuffix(n, ".partial") }) || len(domains(t, h)) > 0 {
			t.Errorf("left: got %q and machines %q, want partial files", left, domains(t, h))
		}
		l := into(h, dir)
		p, err := l.Plan(t.Context(), three(definition("", "")))
		if err != nil || !slices.ContainsFunc(p.Notes, func(n string) bool { return strings.Contains(n, "it is removed") }) {
			t.Errorf("plan: got notes %q, %v, want what will be removed", p.Notes, err)
		}
		if got := names(t, dir); !slices.Equal(got, left) {
			t.Errorf("after a plan: got %q, want %q", got, left)
		}
		if r, err := again(dir); err != nil || !slices.Equal(domains(t, h), []string{"killed"}) || len(names(t, dir)) != 3 {
			t.Errorf("the next restore: got %+v, %v, files %q", r, err, names(t, dir))
		}
		undefine(t, h, "killed")
	})
	t.Run("before the machine is made", func(t *testing.T) {
		dir := t.TempDir()
		kill(t, h, dir, "before the machine is made")
		partial := 0
		for _, n := range names(t, dir) {
			if strings.HasSuffix(n, ".partial") {
				partial++
			}
		}
		if partial != 3 || len(domains(t, h)) > 0 {
			t.Errorf("left: got %q and machines %q, want each file known as partial", names(t, dir), domains(t, h))
		}
		before := names(t, dir)
		_, err := again(dir)
		var refusal *restore.Refusal
		if !errors.As(err, &refusal) || !strings.Contains(refusal.Msg, "interrupted") || !strings.Contains(refusal.Hint, "rm ") {
			t.Errorf("the next restore: got %v, want to be told", err)
		}
		if got := names(t, dir); !slices.Equal(got, before) {
			t.Errorf("after the refusal: got %q, want %q", got, before)
		}
	})
	t.Run("after the machine is made", func(t *testing.T) {
		dir := t.TempDir()
		kill(t, h, dir, "after the machine is made")
		x := xmlOf(t, h, "killed")
		for i := range 3 {
			path := filepath.Join(dir, fmt.Sprintf("web1-disk-%d.qcow2", i))
			if !strings.Contains(x, path) || !bytes.Equal(content(t, path, "qcow2"), held) {
				t.Errorf("disk %d of the machine is not complete", i)
			}
		}
		if _, err := again(dir); !errors.Is(err, restore.ErrRefused) {
			t.Errorf("the next restore: got %v, want ErrRefused", err)
		}
		undefine(t, h, "killed")
	})
	t.Run("one that runs is left alone", func(t *testing.T) {
		dir := t.TempDir()
		other := start(t, h, dir, "copy")
		defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
		_, err := again(dir)
		var refusal *restore.Refusal
		if !errors.As(err, &refusal) || !strings.Contains(refusal.Msg, "another restore") {
			t.Errorf("got %v, want to be told of the other", err)
		}
		if got := names(t, dir); len(got) != 3 {
			t.Errorf("files of the other: got %q", got)
		}
	})
}

func undefine(t *testing.T, h *guest.Host, name string) {
	t.Helper()
	conn, err := h.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Disconnect()
	d, err := conn.DomainLookupByName(name)
	if err == nil {
		err = conn.DomainUndefineFlags(d, libvirt.DomainUndefineNvram)
	}
	if err != nil {
		t.Fatal(err)
	}
}
