package guest

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"net/url"
	"strings"
	"text/template"
)

// Spec describes a machine. The zero value of a field is its default.
type Spec struct {
	Name      string // default "guest" and a number, unique on the host
	UUID      string // default: libvirt makes one
	MemoryMiB int    // default 256
	Image     Image  // kernel to boot; default: none, the machine boots from its disks
	Cmdline   string // appended to the kernel's command line
	Disks     []Disk
	NoAgent   bool // without the guest agent's channel
}

// Disk is a disk of a [Spec].
type Disk struct {
	Target string // "vda", "sda": the prefix says which bus, unless Bus does
	Bus    string
	Device string // default "disk"; "cdrom", "floppy", "lun"
	// Source is the path of a file, an NBD URI (nbd://host:port/export,
	// nbd+unix:///export?socket=path), or "" for a drive without a medium.
	Source    string
	Format    string // default "qcow2" for files, "raw" for NBD
	ReadOnly  bool
	Shareable bool
	Transient bool
}

var domainTemplate = template.Must(template.New("domain").Funcs(template.FuncMap{"x": escapeXML}).Parse(`
<domain type='{{.Type}}'>
  <name>{{x .Name}}</name>
  {{with .UUID}}<uuid>{{x .}}</uuid>{{end}}
  <memory unit='MiB'>{{.MemoryMiB}}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    {{with .Image.Kernel}}<kernel>{{x .}}</kernel>
    <initrd>{{x $.Image.Initrd}}</initrd>
    <cmdline>{{x $.Cmdline}}</cmdline>{{end}}
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='minimum' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <on_reboot>restart</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {{range .Disks}}{{.}}{{end}}
    <controller type='scsi' model='virtio-scsi'/>
    <controller type='usb' model='none'/>
    <serial type='pty'><log file='{{x .Console}}' append='on'/></serial>
    {{if not .NoAgent}}<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>{{end}}
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
    <video><model type='none'/></video>
  </devices>
</domain>`))

// xml returns the machine's description for libvirt.
func (s Spec) xml(accel, console string) (string, error) {
	data := struct {
		Spec
		Type, Console string
		Disks         []string
	}{Spec: s, Type: "qemu", Console: console}
	if accel == KVM {
		data.Type = "kvm"
	}
	if data.MemoryMiB == 0 {
		data.MemoryMiB = 256
	}
	data.Cmdline = strings.TrimSpace("console=ttyS0 quiet " + s.Cmdline)
	for _, d := range s.Disks {
		x, err := d.XML()
		if err != nil {
			return "", err
		}
		data.Disks = append(data.Disks, x)
	}
	var b strings.Builder
	err := domainTemplate.Execute(&b, data)
	return b.String(), err
}

// XML returns the disk's element of a libvirt domain, as AttachDevice takes it.
func (d Disk) XML() (string, error) {
	kind, source, format := "file", "", d.Format
	switch {
	case strings.HasPrefix(d.Source, "nbd"):
		var err error
		if source, err = nbdSource(d.Source); err != nil {
			return "", err
		}
		kind = "network"
		if format == "" {
			format = "raw"
		}
	case d.Source != "":
		source = fmt.Sprintf("<source file='%s'/>", escapeXML(d.Source))
	}
	if format == "" {
		format = "qcow2"
	}
	device := d.Device
	if device == "" {
		device = "disk"
	}
	bus := "scsi"
	switch {
	case strings.HasPrefix(d.Target, "vd"):
		bus = "virtio"
	case strings.HasPrefix(d.Target, "fd"):
		bus = "fdc"
	}
	if d.Bus != "" {
		bus = d.Bus
	}
	flags := ""
	for _, f := range []struct {
		set  bool
		name string
	}{{d.ReadOnly, "readonly"}, {d.Shareable, "shareable"}, {d.Transient, "transient"}} {
		if f.set {
			flags += "<" + f.name + "/>"
		}
	}
	return fmt.Sprintf("<disk type='%s' device='%s'><driver name='qemu' type='%s' discard='unmap'/>%s<target dev='%s' bus='%s'/>%s</disk>",
		kind, device, format, source, d.Target, bus, flags), nil
}

func nbdSource(uri string) (string, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", err
	}
	name := escapeXML(strings.TrimPrefix(u.Path, "/"))
	switch u.Scheme {
	case "nbd":
		port := u.Port()
		if port == "" {
			port = "10809"
		}
		return fmt.Sprintf("<source protocol='nbd' name='%s'><host name='%s' port='%s'/></source>",
			name, escapeXML(u.Hostname()), port), nil
	case "nbd+unix":
		return fmt.Sprintf("<source protocol='nbd' name='%s'><host transport='unix' socket='%s'/></source>",
			name, escapeXML(u.Query().Get("socket"))), nil
	}
	return "", fmt.Errorf("disk source %q: scheme is neither nbd nor nbd+unix", uri)
}

func escapeXML(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
	return b.String()
}
