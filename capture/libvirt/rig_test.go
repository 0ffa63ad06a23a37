package libvirt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/libvirt"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/nbdclient"
	"github.com/sendense/sendense/internal/requires"
)

// The test binary is its own guard, and the process that is killed.
const (
	roleEnv   = "SENDENSE_TEST_ROLE"
	roleGuard = "guard"
	// These begin what their arguments say, report it and wait to be killed.
	roleFreeze  = "freeze"
	roleCapture = "capture"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case roleGuard:
		exit(libvirt.RunGuard(context.Background(), os.Stdin, os.Stdout))
	case roleFreeze:
		exit(freezeAndWait(os.Args[1], os.Args[2]))
	case roleCapture:
		exit(captureAndWait(os.Args[1], os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// exit ends a process that has a role.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func guardArgv(t testing.TB) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"env", roleEnv + "=" + roleGuard, self}
}

// rig is a machine on a host of its own and a source for it.
type rig struct {
	host    *guest.Host
	vm      *guest.VM
	source  *libvirt.Source
	target  capture.VM
	dir     string
	scratch string
	options libvirt.Options
}

// newRig defines a machine. Its disks are made in the rig's folder from their
// sources: "SIZE" for an empty one, "guest" for a bootable one.
func newRig(t *testing.T, host *guest.Host, img guest.Image, disks ...guest.Disk) *rig {
	t.Helper()
	requires.Tool(t, "qemu-img", "qemu-io", "qemu-nbd", "nbdcopy", "e2fsck")
	r := &rig{host: host, dir: t.TempDir()}
	var err error
	if r.scratch, err = os.MkdirTemp("", "sc-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(r.scratch) })
	spec := guest.Spec{Disks: make([]guest.Disk, len(disks))}
	for i, d := range disks {
		d.Source = r.makeDisk(t, img, d)
		if strings.Contains(d.Source, "boot") {
			spec.Image = img
		}
		spec.Disks[i] = d
	}
	r.vm = guesttest.Define(t, host, spec)
	r.options = libvirt.Options{URI: host.URI(), ScratchDir: r.scratch, Guard: guardArgv(t), OpenImage: openImage(t)}
	if r.source, err = libvirt.New(r.options); err != nil {
		t.Fatal(err)
	}
	if r.target, err = r.source.Resolve(t.Context(), r.vm.Name); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) makeDisk(t *testing.T, img guest.Image, d guest.Disk) string {
	t.Helper()
	format := d.Format
	if format == "" {
		format = "qcow2"
	}
	if d.Source == "guest" {
		path := filepath.Join(r.dir, "boot-"+d.Target)
		if err := img.CopyDisk(t.Context(), path, format); err != nil {
			t.Fatal(err)
		}
		return path
	}
	path := filepath.Join(r.dir, d.Target)
	requires.Run(t, "qemu-img", "create", "-q", "-f", format, path, d.Source)
	return path
}

// disk returns the path of a disk of the rig.
func (r *rig) disk(key string) string {
	boot := filepath.Join(r.dir, "boot-"+key)
	if _, err := os.Stat(boot); err == nil {
		return boot
	}
	return filepath.Join(r.dir, key)
}

func (r *rig) begin(t *testing.T, token string, since map[string]string) capture.Instant {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	inst, err := r.source.Begin(ctx, r.target, capture.Request{Token: token, Since: since})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inst.Close() }) // for tests that fail before they do
	return inst
}

// point is what a test keeps of an instant: raw copies of the disks and tokens.
type point struct {
	files  map[string]string
	tokens map[string]string
}

// since returns the tokens for the next request.
func (p point) since() map[string]string {
	s := map[string]string{}
	for key, token := range p.tokens {
		if token != "" {
			s[key] = token
		}
	}
	return s
}

// read brings the instant's disks into raw files: tracked ones by applying what
// changed to a copy of the older point's.
func (r *rig) read(t *testing.T, inst capture.Instant, older point) point {
	t.Helper()
	p := point{files: map[string]string{}, tokens: map[string]string{}}
	for _, d := range inst.Disks() {
		f, err := os.CreateTemp(r.dir, "point-"+d.Key+"-")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		p.files[d.Key], p.tokens[d.Key] = f.Name(), d.Token
		if !d.Tracked {
			if err := f.Truncate(d.Device.Size()); err != nil {
				t.Fatal(err)
			}
			copyRange(t, f, d.Device, 0, d.Device.Size(), true)
			continue
		}
		requires.Run(t, "cp", "--sparse=always", older.files[d.Key], f.Name())
		if err := f.Truncate(d.Device.Size()); err != nil {
			t.Fatal(err)
		}
		ranges, err := block.Changed(t.Context(), d.Device, older.tokens[d.Key], 0, d.Device.Size())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range ranges {
			copyRange(t, f, d.Device, c.Off, c.Len, false)
		}
	}
	return p
}

// copyRange copies a range of a device to a file that holds something else there,
// or nothing at all.
func copyRange(t *testing.T, f *os.File, d block.Device, off, n int64, blank bool) {
	t.Helper()
	err := block.MapAll(t.Context(), d, off, n, func(e block.Extent) error {
		buf := make([]byte, min(e.Len, 1<<20))
		for o := e.Off; o < e.End(); {
			b := buf[:min(e.End()-o, int64(len(buf)))]
			if e.Kind == block.Data {
				if err := d.ReadAt(t.Context(), b, o); err != nil {
					return err
				}
			} else {
				clear(b)
			}
			if e.Kind == block.Data || !blank && isData(t, f, o, b) {
				if _, err := f.WriteAt(b, o); err != nil {
					return err
				}
			}
			o += int64(len(b))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// isData reports whether the file holds anything but zeroes where b would go.
func isData(t *testing.T, f *os.File, off int64, b []byte) bool {
	t.Helper()
	have := make([]byte, len(b))
	if _, err := f.ReadAt(have, off); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return !bytes.Equal(have, b)
}

// compare compares what was read of a running instant with what nbdcopy reads of
// the same export.
func (r *rig) compare(t *testing.T, p point) {
	t.Helper()
	for key, file := range p.files {
		other := filepath.Join(r.dir, "other-"+key)
		requires.Run(t, "nbdcopy", fmt.Sprintf("nbd+unix:///%s?socket=%s", key, r.jobSocket(t)), other)
		same(t, key, file, other)
		os.Remove(other)
	}
}

func same(t *testing.T, key, a, b string) {
	t.Helper()
	out, err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", "raw", a, b).CombinedOutput()
	if err != nil {
		t.Errorf("content of %s: got another than the independent reader: %s", key, out)
	}
}

func (r *rig) jobSocket(t *testing.T) string {
	t.Helper()
	description, err := r.vm.Conn.DomainBackupGetXMLDesc(r.vm.Domain, 0)
	if err != nil {
		t.Fatal(err)
	}
	var job struct {
		Server struct {
			Socket string `xml:"socket,attr"`
		} `xml:"server"`
	}
	if err := xml.Unmarshal([]byte(description), &job); err != nil {
		t.Fatal(err)
	}
	return job.Server.Socket
}

// closeInstant closes an instant without a commit.
func closeInstant(t testing.TB, inst capture.Instant) {
	t.Helper()
	if err := inst.Close(); err != nil {
		t.Errorf("close instant: %v", err)
	}
}

// finish commits and closes an instant.
func finish(t *testing.T, inst capture.Instant) {
	t.Helper()
	if err := inst.Err(); err != nil {
		t.Fatalf("error of the instant: got %v, want nil", err)
	}
	if err := inst.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := inst.Close(); err != nil {
		t.Fatal(err)
	}
}

// checkpoints returns the names of the machine's checkpoints, sorted.
func (r *rig) checkpoints(t testing.TB) string {
	t.Helper()
	all, _, err := r.vm.Conn.DomainListAllCheckpoints(r.vm.Domain, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range all {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// leftovers fails the test if a job or a file of one is left.
func (r *rig) leftovers(t testing.TB) {
	t.Helper()
	if _, err := r.vm.Conn.DomainBackupGetXMLDesc(r.vm.Domain, 0); err == nil {
		t.Error("a backup job is left")
	}
	files, err := os.ReadDir(r.scratch)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Errorf("%s is left in the scratch folder", f.Name())
	}
}

// onlyOne expects a checkpoint to be the only one of ours that libvirt and QEMU
// have, and no job and no file of one to be left.
func (r *rig) onlyOne(t testing.TB, token string) {
	t.Helper()
	r.leftovers(t)
	if got := r.checkpoints(t); got != token {
		t.Errorf("checkpoints: got %s, want %s", got, token)
	}
	if got := r.bitmaps(t); got != token {
		t.Errorf("bitmaps: got %s, want %s", got, token)
	}
}

// bitmaps returns the names of the bitmaps that QEMU keeps, each once.
func (r *rig) bitmaps(t testing.TB) string {
	t.Helper()
	out, err := r.vm.Conn.QEMUDomainMonitorCommand(r.vm.Domain, `{"execute":"query-named-block-nodes","arguments":{"flat":true}}`, 0)
	if err != nil {
		t.Fatal(err)
	}
	var nodes struct {
		Return []struct {
			Bitmaps []struct{ Name string } `json:"dirty-bitmaps"`
		}
	}
	if err := json.Unmarshal([]byte(out), &nodes); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range nodes.Return {
		for _, b := range n.Bitmaps {
			names = append(names, b.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " ")
}

func disksOf(inst capture.Instant) map[string]capture.Disk {
	m := map[string]capture.Disk{}
	for _, d := range inst.Disks() {
		m[d.Key] = d
	}
	return m
}

// write changes a disk of a running machine without a guest's help.
func (r *rig) write(t testing.TB, device string, pattern byte, off, n int64) {
	t.Helper()
	r.qemuIO(t, device, fmt.Sprintf("write -P %d %d %d", pattern, off, n))
}

// qemuIO runs a command of qemu-io on a disk of a running machine. QEMU does not
// tell whether it worked: what the disk holds afterwards does.
func (r *rig) qemuIO(t testing.TB, device, command string) {
	t.Helper()
	cmd := fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":"qemu-io -d /machine/peripheral/%s/virtio-backend \"%s\""}}`,
		device, command)
	if out, err := r.vm.Conn.QEMUDomainMonitorCommand(r.vm.Domain, cmd, 0); err != nil {
		t.Fatalf("%s on %s: %v: %s", command, device, err, out)
	}
}

// openImage serves a disk file with qemu-nbd, without locking it: so does a
// reader that just opens it.
func openImage(t testing.TB) func(path, format string) (block.Device, io.Closer, error) {
	return func(path, format string) (block.Device, io.Closer, error) {
		dir, err := os.MkdirTemp("", "qn-")
		if err != nil {
			return nil, nil, err
		}
		sock := filepath.Join(dir, "s")
		cmd := exec.Command("qemu-nbd", "-r", "-t", "-k", sock, "--image-opts",
			"driver="+format+",force-share=on,file.driver=file,file.filename="+path)
		if err := cmd.Start(); err != nil {
			return nil, nil, err
		}
		stop := func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); os.RemoveAll(dir) }
		t.Cleanup(stop)
		for range 500 {
			dev, err := nbdclient.Open(context.Background(), "nbd+unix:///?socket="+sock, nbdclient.Options{})
			if err == nil {
				return dev, closer(func() error { defer stop(); return dev.Close() }), nil
			}
			time.Sleep(10 * time.Millisecond)
		}
		return nil, nil, fmt.Errorf("qemu-nbd does not serve %s", path)
	}
}

type closer func() error

func (c closer) Close() error { return c() }

// createCheckpoint makes a checkpoint as another program would.
func (r *rig) createCheckpoint(t testing.TB, name, disk string) {
	t.Helper()
	_, err := r.vm.Conn.DomainCheckpointCreateXML(r.vm.Domain, fmt.Sprintf(
		"<domaincheckpoint><name>%s</name><disks><disk name='%s' checkpoint='bitmap'/></disks></domaincheckpoint>", name, disk), 0)
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) deleteCheckpoint(t testing.TB, name string, flags golibvirt.DomainCheckpointDeleteFlags) {
	t.Helper()
	c, err := r.vm.Conn.DomainCheckpointLookupByName(r.vm.Domain, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.vm.Conn.DomainCheckpointDelete(c, flags); err != nil {
		t.Fatal(err)
	}
}
