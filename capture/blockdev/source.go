// Package blockdev captures block devices, LVM volumes and image files as the
// disks of a machine that has no hypervisor to ask: a [capture.Source] without
// change tracking, so that every point after the first is found by comparison.
//
// It takes no snapshot. Whoever wants a consistent copy of something in use
// makes a snapshot first (lvcreate -s, …) and names that. The package sees to it
// that nothing changes unnoticed: a file that was modified while it was read
// fails the capture, a device that is mounted read-write is refused, and a device
// that nobody uses is held so that nobody mounts it meanwhile.
package blockdev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/uuid"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
)

// Kind is the kind of source, as in [capture.Config].
const Kind = "blockdev"

// definitionFormat is the format of [capture.Config].Definition: a JSON array of
// the disks with key, path, format and size.
const definitionFormat = "blockdev-json"

// untracked is why a disk is compared.
const untracked = "blockdev has no change tracking"

// Raw is the format of a disk whose bytes are the content.
const Raw = "raw"

// Disk names one disk of the machine.
type Disk struct {
	Path string `json:"path"`
	// Key identifies the disk from one point to the next, default the last element
	// of Path: letters, digits and "._-".
	Key string `json:"key"`
	// Format is Raw or what Options.Open opens. A guest can write anything to a
	// raw disk, the header of another format included, so that the format is
	// never guessed: the default is Raw, but for files that begin like a QCOW2
	// image, which are refused until their format is said.
	Format string `json:"format"`
}

// Options describe the machine.
type Options struct {
	Name  string // of the machine
	Disks []Disk // at least one
	// AllowMounted reads devices that are mounted read-write all the same. The
	// copy is then not consistent, and its Config says so.
	AllowMounted bool
	// Open opens a file whose format is not Raw. The closer may be nil. Default:
	// other formats are refused.
	Open func(path string) (block.Device, io.Closer, error)
	// MachineID identifies the host, default the content of /etc/machine-id. The
	// machine's UUID is derived from it and the name: the version 5 UUID (RFC
	// 9562) of "machine-id/name" in the name space
	// 0f1c9a52-3f0e-5c52-9a8e-6c2f1f3b7d10.
	MachineID string
}

// namespace is the name space of the UUIDs of machines.
var namespace = uuid.MustParse("0f1c9a52-3f0e-5c52-9a8e-6c2f1f3b7d10")

// Source is a machine made up of devices and files.
type Source struct {
	o  Options
	vm capture.VM
}

var keyPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// New checks the description of a machine. It does not look at the disks yet.
func New(o Options) (*Source, error) {
	if o.Name == "" {
		return nil, errors.New("machine needs a name")
	}
	if len(o.Disks) == 0 {
		return nil, errors.New("machine needs at least one disk")
	}
	o.Disks = append([]Disk(nil), o.Disks...)
	seen := map[string]bool{}
	for i := range o.Disks {
		d := &o.Disks[i]
		if d.Key == "" {
			d.Key = filepath.Base(d.Path)
		}
		if !keyPattern.MatchString(d.Key) {
			return nil, fmt.Errorf("disk %s: key %q has other characters than letters, digits and ._-", d.Path, d.Key)
		}
		if seen[d.Key] {
			return nil, fmt.Errorf("disk %s: key %s is taken", d.Path, d.Key)
		}
		seen[d.Key] = true
		if d.Format != "" && d.Format != Raw && o.Open == nil {
			return nil, fmt.Errorf("disk %s: format %s cannot be read", d.Path, d.Format)
		}
	}
	if o.MachineID == "" {
		b, err := os.ReadFile("/etc/machine-id")
		if err != nil {
			return nil, fmt.Errorf("identify the host: %w", err)
		}
		if o.MachineID = strings.TrimSpace(string(b)); o.MachineID == "" {
			return nil, errors.New("identify the host: /etc/machine-id is empty")
		}
	}
	id := uuid.NewSHA1(namespace, []byte(o.MachineID+"/"+o.Name))
	return &Source{o: o, vm: capture.VM{UUID: id.String(), Name: o.Name}}, nil
}

// Resolve implements [capture.Source]: the only machine is the one described.
func (s *Source) Resolve(_ context.Context, nameOrUUID string) (capture.VM, error) {
	if nameOrUUID != s.vm.Name && !strings.EqualFold(nameOrUUID, s.vm.UUID) {
		return capture.VM{}, capture.ErrNoVM
	}
	return s.vm, nil
}

// Begin implements [capture.Source]. It opens every disk and notes what each
// looks like, so that Err can tell whether it changed.
func (s *Source) Begin(ctx context.Context, vm capture.VM, _ capture.Request) (capture.Instant, error) {
	if vm.UUID != s.vm.UUID {
		return nil, fmt.Errorf("machine %s: %w", vm.UUID, capture.ErrNoVM)
	}
	in := &instant{config: capture.Config{Source: Kind, Format: definitionFormat, Consistency: "clean"}}
	var err error
	if in.config.Host, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("name the host: %w", err)
	}
	type definition struct {
		Disk
		Size int64 `json:"size"` // bytes
	}
	var def []definition
	for _, d := range s.o.Disks {
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(err, in.Close())
		}
		o, err := s.open(d)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("disk %s: %w", d.Key, err), in.Close())
		}
		in.open = append(in.open, o)
		in.disks = append(in.disks, capture.Disk{Key: d.Key, Device: o.device, Untracked: untracked})
		if o.note != "" {
			in.config.Consistency = "crash"
			in.config.Notes = append(in.config.Notes, fmt.Sprintf("Disk %s: %s.", d.Key, o.note))
		}
		if d.Format == "" {
			d.Format = Raw
		}
		def = append(def, definition{d, o.device.Size()})
	}
	b, err := json.Marshal(def)
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	in.config.Definition = string(b)
	return in, nil
}

// instant is the disks, held open.
type instant struct {
	config capture.Config
	disks  []capture.Disk
	open   []*opened
}

// Disks implements [capture.Instant].
func (i *instant) Disks() []capture.Disk { return i.disks }

// Config implements [capture.Instant].
func (i *instant) Config() capture.Config { return i.config }

// Commit implements [capture.Instant]; there is nothing to forget.
func (i *instant) Commit(context.Context) error { return nil }

// Close implements [capture.Instant].
func (i *instant) Close() error {
	var errs []error
	for _, o := range i.open {
		errs = append(errs, o.close())
	}
	i.open = nil
	return errors.Join(errs...)
}

// Err implements [capture.Instant]: a disk that changed since Begin.
func (i *instant) Err() error {
	for _, o := range i.open {
		if err := o.changed(); err != nil {
			return err
		}
	}
	return nil
}
