package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/machine"
)

// Hypervisor is where machines are made.
type Hypervisor interface {
	// Survey tells what it has, as far as a machine wants to know.
	Survey(ctx context.Context, w machine.Wants) (machine.Site, error)
	// Try returns machine.ErrUnfit for a machine that could not run. It changes
	// nothing.
	Try(ctx context.Context, description string) error
	// Define makes a machine, and starts it if so wanted. With an error there is
	// none, unless it is machine.ErrRemains.
	Define(ctx context.Context, d machine.Definition) (consoles []string, err error)
	// Refresh has a storage pool take notice of new files.
	Refresh(ctx context.Context, pool string) error
}

// MachineOptions say what a restored machine is like.
type MachineOptions struct {
	Name string
	// Storage is a folder, or pool:NAME; default the storage pool "default", or
	// else /var/lib/libvirt/images.
	Storage string
	Format  string // of its files: QCOW2 or Raw; default QCOW2
	// Network is that of all its interfaces, or machine.Isolated; default what each
	// had, if it is there.
	Network string
	// KeepIdentity gives it the UUID and the addresses of the captured one, which
	// must be gone. Default: it has its own.
	KeepIdentity bool
	Start        bool
}

// Libvirt makes a machine of libvirt on this host, whose disks are image files.
// It never touches a machine that is there. With an error nothing is left, neither
// files nor a machine.
type Libvirt struct {
	Hypervisor Hypervisor
	MachineOptions

	files      Files
	owner      *owner
	pool       string // that the files are in; empty: none
	definition machine.Definition
}

var _ Target = (*Libvirt)(nil)

// Where libvirt keeps images, unless it is told otherwise.
const (
	defaultPool   = "default"
	defaultFolder = "/var/lib/libvirt/images"
)

// Plan implements Target.
func (t *Libvirt) Plan(ctx context.Context, m Machine) (Plan, error) {
	if err := checkName(t.Name); err != nil {
		return Plan{}, err
	}
	wants, err := m.Captured.Wants()
	if err != nil {
		return Plan{}, err
	}
	wants.Name, wants.UUID, wants.Pool = t.Name, m.Captured.UUID(), t.askedPool()
	site, err := t.Hypervisor.Survey(ctx, wants)
	if err != nil {
		return Plan{}, refusal(err)
	}
	id, err := t.identity(wants, site)
	if err != nil {
		return Plan{}, err
	}
	p, err := t.planFiles(ctx, m, site)
	if err != nil {
		return Plan{}, err
	}
	if err := t.describe(ctx, m, site, id, &p); err != nil {
		return Plan{}, err
	}
	return p, nil
}

// checkName refuses what libvirt or a terminal does not take.
func checkName(name string) error {
	if name == "" || len(name) > 200 || name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == '/' || r == 0x7f }) {
		return &Refusal{fmt.Sprintf("%q is no name of a machine", name), "Give it one with --name NAME: up to 200 bytes without slashes and line breaks."}
	}
	return nil
}

// identity returns the machine's UUID, if its name is free.
func (t *Libvirt) identity(w machine.Wants, s machine.Site) (string, error) {
	switch {
	case s.Taken.Name:
		return "", &Refusal{fmt.Sprintf("There is a machine %s on %s already, which is not touched", t.Name, s.Name), "Choose another name with: --name NAME"}
	case !t.KeepIdentity:
		return uuid.NewString(), nil
	case w.UUID == "":
		return "", &Refusal{"The point does not tell what UUID and addresses the machine had", "Leave --keep-identity out: it gets its own."}
	case s.Taken.UUID != "":
		return "", &Refusal{fmt.Sprintf("The machine that was captured is still on %s, as %s", s.Name, s.Taken.UUID),
			"Leave --keep-identity out, or remove that machine first: virsh undefine " + s.Taken.UUID}
	}
	if _, err := uuid.Parse(w.UUID); err != nil {
		return "", &Refusal{fmt.Sprintf("The UUID that the machine had, %q, is none", w.UUID), "Leave --keep-identity out: it gets its own."}
	}
	return w.UUID, nil
}

// askedPool returns the storage pool to ask for.
func (t *Libvirt) askedPool() string {
	if t.Storage == "" {
		return defaultPool
	}
	name, _ := strings.CutPrefix(t.Storage, "pool:")
	if name == t.Storage {
		return ""
	}
	return name
}

// folder returns where the files go.
func (t *Libvirt) folder(s machine.Site) (string, error) {
	switch name := t.askedPool(); {
	case name == "" && !strings.HasPrefix(t.Storage, "pool:"):
		return t.Storage, nil
	case s.Pool.Name == "" && t.Storage == "":
		return defaultFolder, nil
	default:
		return PoolFolder(name, s.Pool)
	}
}

// PoolFolder returns the folder of the storage pool of a name, as libvirt tells of
// it. The error is a [Refusal] if image files cannot be put there.
func PoolFolder(name string, p machine.Pool) (string, error) {
	other := "Give a folder or another pool; list them with: virsh pool-list --all"
	switch {
	case name == "":
		return "", &Refusal{"The storage pool has no name", other}
	case p.Name == "":
		return "", &Refusal{fmt.Sprintf("There is no storage pool %s", name), other}
	case p.Type != "dir" && p.Type != "fs" && p.Type != "netfs" || !filepath.IsAbs(p.Path):
		return "", &Refusal{fmt.Sprintf("The storage pool %s is of type %s, which takes no image files", name, p.Type), other}
	case !p.Active:
		return "", &Refusal{fmt.Sprintf("The storage pool %s is not active", name), "Start it with: virsh pool-start " + name}
	}
	return p.Path, nil
}

// planFiles plans the disks.
func (t *Libvirt) planFiles(ctx context.Context, m Machine, s machine.Site) (Plan, error) {
	dir, err := t.folder(s)
	if err != nil {
		return Plan{}, err
	}
	t.files = Files{Dir: dir, Format: t.Format}
	p, err := t.files.Plan(ctx, m)
	if err != nil {
		return p, err
	}
	t.owner = nil
	switch me := os.Geteuid(); {
	case !s.OwnerKnown || s.UID == me:
	case me != 0:
		p.Notes = append(p.Notes, fmt.Sprintf("The files belong to user %d, and not to user %d, whom QEMU runs as; libvirt gives them to it when the machine starts, unless it is told not to.", me, s.UID))
	default:
		t.owner = &owner{s.UID, s.GID}
	}
	if at := unreachable(dir, s); at != "" {
		p.Notes = append(p.Notes, fmt.Sprintf("The user that QEMU runs as, %d, seems not to be let into %s; the machine cannot start unless it is.", s.UID, at))
	}
	return p, nil
}

// unreachable returns the first folder on a path that QEMU's user may not enter;
// empty if it may, or if nobody knows.
func unreachable(path string, s machine.Site) string {
	if !s.OwnerKnown || s.UID == 0 {
		return ""
	}
	for at := path; ; at = filepath.Dir(at) {
		var st unix.Stat_t
		if unix.Stat(at, &st) != nil {
			return ""
		}
		bit := uint32(0o001)
		switch {
		case int(st.Uid) == s.UID:
			bit = 0o100
		case int(st.Gid) == s.GID:
			bit = 0o010
		}
		if st.Mode&bit == 0 {
			return at
		}
		if at == filepath.Dir(at) {
			return ""
		}
	}
}

// describe works out what machine it is, and whether libvirt would run it.
func (t *Libvirt) describe(ctx context.Context, m Machine, s machine.Site, id string, p *Plan) error {
	if _, known := s.Networks[t.Network]; !known && t.Network != "" && t.Network != machine.Isolated {
		return &Refusal{fmt.Sprintf("There is no network %s on %s", t.Network, s.Name), "List them with: virsh net-list --all"}
	}
	spec := machine.Spec{Captured: m.Captured, Name: t.Name, UUID: id, Network: t.Network, KeepAddresses: t.KeepIdentity, UEFI: m.UEFI}
	for _, d := range p.Disks {
		spec.Disks = append(spec.Disks, machine.Disk{Key: d.Key, Path: d.To, Format: t.files.Format})
	}
	d, err := machine.Lasting(spec, s.Host)
	if err != nil {
		return refusal(err)
	}
	if t.Start && len(d.Idle) > 0 {
		return &Refusal{fmt.Sprintf("The machine cannot start: the network %s is not active", d.Idle[0]), fmt.Sprintf("Start it with: virsh net-start %s; or leave --start out.", d.Idle[0])}
	}
	if err := t.Hypervisor.Try(ctx, d.XML); err != nil {
		return refusal(err)
	}
	t.definition = machine.Definition{Name: t.Name, UUID: id, XML: d.XML, Start: t.Start}
	t.pool = s.Pool.Name
	p.Machine = &PlannedMachine{Name: t.Name, Starts: t.Start, Hardware: d.Hardware, Before: d.Before, Definition: d.XML}
	if t.KeepIdentity {
		p.Machine.UUID = id
	}
	p.Notes = append(p.Notes, d.Notes...)
	return nil
}

// refusal turns what a host cannot do into what a user is told.
func refusal(err error) error {
	if !errors.Is(err, machine.ErrUnfit) {
		return err
	}
	return &Refusal{strings.TrimPrefix(err.Error(), machine.ErrUnfit.Error()+": "),
		"Its disks can be had without it: --to file:DIR; define a machine for them with virt-install or virt-manager."}
}

// Open implements Target.
func (t *Libvirt) Open(ctx context.Context, d Disk) (block.Device, bool, error) {
	return t.files.Open(ctx, d)
}

// Commit implements Target. The machine is made when its files are complete and
// have their names; until then these have a second name, by which they are known
// for what they are.
func (t *Libvirt) Commit(ctx context.Context) (Made, error) {
	if err := t.files.finish(t.owner); err != nil {
		return Made{}, err
	}
	if err := ctx.Err(); err != nil {
		return Made{}, err
	}
	if err := t.files.publish(); err != nil {
		return Made{}, err
	}
	consoles, err := t.Hypervisor.Define(ctx, t.definition)
	if errors.Is(err, machine.ErrRemains) {
		t.files.leave() // it would have no disks
	}
	if err != nil {
		return Made{}, refusal(fmt.Errorf("make machine %s: %w", t.Name, err))
	}
	made := Made{Machine: &MadeMachine{Name: t.Name, UUID: t.definition.UUID, State: "shut off", Consoles: consoles}}
	if t.Start {
		made.Machine.State = "running"
	}
	if err := t.files.settle(); err != nil {
		made.Notes = append(made.Notes, secondName(err))
	}
	if t.pool != "" {
		if err := t.Hypervisor.Refresh(context.WithoutCancel(ctx), t.pool); err != nil {
			made.Notes = append(made.Notes, fmt.Sprintf("The storage pool does not show its files yet (%v): virsh pool-refresh %s.", err, t.pool))
		}
	}
	return made, nil
}

// Abort implements Target.
func (t *Libvirt) Abort() error { return t.files.Abort() }
