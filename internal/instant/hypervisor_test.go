package instant_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/requires"
)

// Variables of a firmware are told to be in a file that is the machine's own, and
// that libvirt makes.
func TestVariablesOfAFirmwareAreInAFileOfTheMachine(t *testing.T) {
	requires.File(t, "/usr/share/OVMF/OVMF_CODE_4M.fd")
	h := guesttest.Host(t)
	const described = "<domain type='kvm'><name>web1</name><uuid>d2b6a4f0-7d0c-4f52-8a4e-0d6f0c5b7a10</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>" +
		"<os FIRMWARE><type arch='x86_64' machine='q35'>hvm</type>LOADER</os><features><acpi/></features><devices/></domain>"
	for name, firmware := range map[string][2]string{
		"named":  {"", "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>"},
		"chosen": {"firmware='efi'", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := instant.Dial(t.Context(), h.URI())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			m := &instant.Machine{Name: "web1-" + name, UUID: uuid.NewString(), Network: instant.Isolated,
				Format: machine.LibvirtXML, Definition: strings.NewReplacer("FIRMWARE", firmware[0], "LOADER", firmware[1]).Replace(described)}
			d, err := m.Describe(false)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Start(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(h.Dir(), "lib", strings.TrimPrefix(d.Variables, "/var/lib/libvirt/"))
			if _, err := os.Stat(file); err != nil || d.Variables == "" {
				t.Errorf("variables: got %v, want them in %s", err, d.Variables)
			}
			if err := c.Destroy(t.Context(), m.UUID); err != nil {
				t.Error(err)
			}
			if err := c.Destroy(t.Context(), m.UUID); err != nil {
				t.Errorf("stop a machine that is gone: %v", err)
			}
		})
	}
}
