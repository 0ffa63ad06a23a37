package libvirt_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/capture/capturetest"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/requires"
)

func TestRunningMachineKeepsTheContract(t *testing.T) {
	img, host := guesttest.Image(t), guesttest.Host(t)
	capturetest.Run(t, func(t *testing.T) capturetest.Machine {
		m := newModel(t, host, img, "qcow2")
		m.start(t)
		s := m.machine()
		s.Write, s.Resize, s.Add = m.writeRunning, m.resizeRunning, m.addRunning
		s.NoShrink, s.Frozen = true, true
		s.Remove = func(t testing.TB, key string) { m.restart(t, func() { m.removeConfig(t, key) }) }
		s.LoseTokens = m.loseTokens
		s.Disturb = func(t testing.TB) { m.check(t, m.vm.Destroy(t.Context())) }
		s.Restore = func(t testing.TB) { m.start(t) }
		return s
	})
}

func TestStoppedMachineKeepsTheContract(t *testing.T) {
	img, host := guesttest.Image(t), guesttest.Host(t)
	capturetest.Run(t, func(t *testing.T) capturetest.Machine {
		m := newModel(t, host, img, "qcow2")
		s := m.machine()
		s.Write = func(t testing.TB, key string, p []byte, off int64) {
			m.remember(key, p, off)
			requires.Run(t, "qemu-io", "-f", m.format, "-c", fmt.Sprintf("write -s %s %d %d", m.pattern(t, p), off, len(p)), m.disk(key))
		}
		s.Resize = func(t testing.TB, key string, size int64) {
			m.resized(key, size)
			requires.Run(t, "qemu-img", "resize", "-q", "--shrink", "-f", m.format, m.disk(key), fmt.Sprint(size))
		}
		s.Add = func(t testing.TB, key string, size int64) {
			m.check(t, m.vm.Conn.DomainAttachDeviceFlags(m.vm.Domain, m.newDisk(t, key, size), uint32(golibvirt.DomainAffectConfig)))
		}
		s.Remove = m.removeConfig
		s.Disturb = func(t testing.TB) { m.start(t) }
		s.Restore = func(t testing.TB) { m.check(t, m.vm.Destroy(t.Context())) }
		return s
	})
}

// model is a machine without a guest, with a copy of what its disks ought to hold.
type model struct {
	*rig
	format  string
	content map[string][]byte
}

func newModel(t *testing.T, host *guest.Host, img guest.Image, format string) *model {
	t.Helper()
	m := &model{format: format, content: map[string][]byte{"vda": make([]byte, 8<<20), "vdb": make([]byte, 1<<20)}}
	m.rig = newRig(t, host, img,
		guest.Disk{Target: "vda", Source: "8M", Format: format}, guest.Disk{Target: "vdb", Source: "1M", Format: format})
	return m
}

func (m *model) machine() capturetest.Machine {
	return capturetest.Machine{
		Source: func() capture.Source { return m.source },
		Name:   m.vm.Name,
		Content: func(testing.TB) map[string][]byte {
			all := map[string][]byte{}
			for key, b := range m.content {
				all[key] = bytes.Clone(b)
			}
			return all
		},
		Clean: m.clean,
	}
}

func (m *model) check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *model) remember(key string, p []byte, off int64) { copy(m.content[key][off:], p) }

func (m *model) resized(key string, size int64) {
	b := make([]byte, size)
	copy(b, m.content[key])
	m.content[key] = b
}

// pattern puts p into a file.
func (m *model) pattern(t testing.TB, p []byte) string {
	t.Helper()
	file := filepath.Join(m.dir, "pattern")
	m.check(t, os.WriteFile(file, p, 0o600))
	return file
}

func (m *model) writeRunning(t testing.TB, key string, p []byte, off int64) {
	t.Helper()
	m.remember(key, p, off)
	m.qemuIO(t, fmt.Sprintf("virtio-disk%d", key[2]-'a'), fmt.Sprintf("write -s %s %d %d", m.pattern(t, p), off, len(p)))
}

func (m *model) resizeRunning(t testing.TB, key string, size int64) {
	t.Helper()
	m.resized(key, size)
	m.check(t, m.vm.Conn.DomainBlockResize(m.vm.Domain, key, uint64(size), golibvirt.DomainBlockResizeBytes))
}

func (m *model) newDisk(t testing.TB, key string, size int64) string {
	t.Helper()
	m.content[key] = make([]byte, size)
	d := guest.Disk{Target: key, Source: m.disk(key), Format: m.format}
	requires.Run(t, "qemu-img", "create", "-q", "-f", m.format, d.Source, fmt.Sprint(size))
	x, err := d.XML()
	m.check(t, err)
	return x
}

func (m *model) addRunning(t testing.TB, key string, size int64) {
	t.Helper()
	m.check(t, m.vm.Conn.DomainAttachDeviceFlags(m.vm.Domain, m.newDisk(t, key, size),
		uint32(golibvirt.DomainAffectLive|golibvirt.DomainAffectConfig)))
}

func (m *model) removeConfig(t testing.TB, key string) {
	t.Helper()
	delete(m.content, key)
	x, err := guest.Disk{Target: key, Source: m.disk(key), Format: m.format}.XML()
	m.check(t, err)
	m.check(t, m.vm.Conn.DomainDetachDeviceFlags(m.vm.Domain, x, uint32(golibvirt.DomainAffectConfig)))
}

func (m *model) loseTokens(t testing.TB) {
	t.Helper()
	for name := range maps.Keys(m.ours(t)) {
		m.deleteCheckpoint(t, name, 0)
	}
}

func (m *model) ours(t testing.TB) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, name := range strings.Fields(m.checkpoints(t)) {
		names[name] = strings.HasPrefix(name, "sendense-")
	}
	return names
}

func (m *model) clean(t testing.TB) error {
	t.Helper()
	m.leftovers(t)
	if n := len(m.ours(t)); n > 1 {
		return fmt.Errorf("%d checkpoints are left", n)
	}
	return nil
}
