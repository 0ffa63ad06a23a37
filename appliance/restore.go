package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/restore"
)

// RestoreRequest says what is restored where.
type RestoreRequest struct {
	VM    string `json:"vm"`
	Point string `json:"point"`
	Disk  *int   `json:"disk,omitempty"` // index; nil: all disks
	// To is file:DIR, or blockdev:PATH with more paths behind commas, one for each
	// disk, or libvirt, with the URI of one on this host behind a colon. Paths are
	// absolute.
	To     string `json:"to"`
	Format string `json:"format,omitempty"` // of files: qcow2, the default, or raw
	// Delta reads what the devices hold, and writes only what differs.
	Delta bool `json:"delta,omitempty"`
	// Verified compares each cluster with its digest as it is read.
	Verified bool `json:"verified,omitempty"`
	// Machine says what machine libvirt gets; nil: the defaults. Others get none.
	Machine *RestoreMachine `json:"machine,omitempty"`
	// Keyring is the ID of passphrases with which it is looked for what the guest
	// needs; empty: none.
	Keyring string `json:"-"`
}

// RestoreMachine says what a restored machine is like.
type RestoreMachine struct {
	Name    string `json:"name,omitempty"`    // default that of the VM; no machine may have it
	Storage string `json:"storage,omitempty"` // absolute path of a folder, or pool:NAME; default libvirt's
	Network string `json:"network,omitempty"` // of libvirt, or "isolated"; default as captured, if it is there
	// KeepIdentity gives it the UUID and the hardware addresses of the VM, which must
	// be gone from libvirt.
	KeepIdentity bool `json:"keep_identity,omitempty"`
	Start        bool `json:"start,omitempty"`
}

// restoring is a restore that was prepared. Its disks are open.
type restoring struct {
	request RestoreRequest
	target  restore.Target
	machine restore.Machine
	vm      VM
	point   Point
	disks   []repository.Disk
}

// close closes what was only read.
func (r *restoring) close() { _ = closeAll(r.disks) }

// PlanRestore says what a restore would do, and does nothing.
func (a *Appliance) PlanRestore(ctx context.Context, request RestoreRequest) (restore.Plan, error) {
	r, err := a.prepare(ctx, request)
	if err != nil {
		return restore.Plan{}, err
	}
	defer r.close()
	judge := a.fit(ctx, r)
	p, err := r.target.Plan(ctx, r.machine)
	if err != nil {
		return p, restoreError(err)
	}
	p.Findings = judge(p.Machine)
	return p, nil
}

// Restore starts a job that writes the disks of a point to where they are used
// again. Its result is a [restore.Result].
func (a *Appliance) Restore(ctx context.Context, request RestoreRequest) (Job, error) {
	r, err := a.prepare(ctx, request)
	if err != nil {
		return Job{}, err
	}
	judge := a.fit(ctx, r)
	plan, err := r.target.Plan(ctx, r.machine) // before there is a job
	if err == nil {
		err = ctx.Err() // nobody waits for it any more
	}
	if err != nil {
		r.close()
		return Job{}, restoreError(err)
	}
	j, err := a.start("restore", fileName(r.vm.Name), string(r.point.ID), func(ctx context.Context, job *running) (any, error) {
		defer r.close()
		result, err := restore.Run(ctx, r.target, r.machine, restore.Options{Delta: request.Delta, Progress: func(disk string, done, total int64) {
			job.progress("restore", disk, done, total)
		}})
		result.Findings = judge(plan.Machine)
		return result, restoreError(err)
	})
	if err != nil {
		r.close()
	}
	return j, err
}

// prepare opens the disks of a point that are to be restored, and finds out where.
func (a *Appliance) prepare(ctx context.Context, request RestoreRequest) (*restoring, error) {
	r := &restoring{request: request}
	var err error
	if r.target, err = request.target(); err != nil {
		return nil, err
	}
	if r.vm, r.point, err = a.Point(ctx, request.VM, request.Point); err != nil {
		return nil, err
	}
	r.machine.Name = diskName(r.vm.Name)
	if t, ok := r.target.(*restore.Libvirt); ok {
		if t.Name == "" {
			t.Name = r.vm.Name
		}
		r.machine.Name = diskName(t.Name)
		if len(r.point.Config) > 0 {
			var c capture.Config
			if err := decodeConfig(r.point.Config, &c); err != nil {
				return nil, err
			}
			r.machine.Captured = machine.Captured{Format: c.Format, Definition: c.Definition}
		}
	}
	return r, a.openRestored(ctx, r)
}

// diskName returns what the files of a machine's disks begin with.
func diskName(machine string) string {
	return cmp.Or(fileName(machine), "machine") // of signs that no file should be called
}

// openRestored opens the disks.
func (a *Appliance) openRestored(ctx context.Context, r *restoring) error {
	for _, d := range r.point.Disks {
		if r.request.Disk != nil && *r.request.Disk != d.Index {
			continue
		}
		x, err := a.repo.OpenDisk(ctx, r.point.VM, r.point.ID, d.Index, repository.OpenOptions{Verified: r.request.Verified})
		if err != nil {
			return errors.Join(userError(err), closeAll(r.disks))
		}
		r.disks = append(r.disks, x)
		r.machine.Disks = append(r.machine.Disks, restore.Disk{Index: d.Index, Key: d.Key, Device: x})
	}
	if len(r.disks) == 0 {
		return &Error{Code: CodeNotFound, Msg: fmt.Sprintf("Point %s has no disk %d.", r.point.ID, *r.request.Disk),
			Hint: fmt.Sprintf("List its disks with: sendense-control info %s %s", r.request.VM, r.request.Point)}
	}
	return nil
}

// target makes the target that a request names.
func (r *RestoreRequest) target() (restore.Target, error) {
	kind, where, _ := strings.Cut(r.To, ":")
	if kind == "libvirt" {
		return r.libvirt(where)
	}
	paths := strings.Split(where, ",")
	if kind == "file" {
		paths = []string{where}
	}
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			kind = ""
		}
	}
	if (kind == "file" || kind == "blockdev") && r.Machine != nil {
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%s:… gets disks, and no machine.", kind), Hint: "Leave what concerns the machine out, or restore to libvirt: --to libvirt"}
	}
	switch kind {
	case "file":
		if !r.Delta {
			return &restore.Files{Dir: where, Format: r.Format}, nil
		}
		return nil, noDelta
	case "blockdev":
		if r.Format == "" || r.Format == restore.Raw {
			return &restore.Devices{Paths: paths}, nil
		}
		return nil, &Error{Code: CodeInvalid, Msg: "A block device takes the disk as it is.", Hint: "Leave --format out."}
	}
	return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%q is no place to restore to.", r.To), Hint: "Give file:DIR or blockdev:PATH, with absolute paths, or libvirt."}
}

var noDelta = &Error{Code: CodeInvalid, Msg: "New files hold no older state, so there is no difference to write.",
	Hint: "Leave --delta out, or name a block device or raw image: --to blockdev:PATH."}

// libvirt makes a target of the libvirt at a URI.
func (r *RestoreRequest) libvirt(uri string) (restore.Target, error) {
	if r.Delta {
		return nil, noDelta
	}
	var m RestoreMachine
	if r.Machine != nil {
		m = *r.Machine
	}
	if m.Storage != "" && !strings.HasPrefix(m.Storage, "pool:") && !filepath.IsAbs(m.Storage) {
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%q is no place for the disks of a machine.", m.Storage),
			Hint: "Give the absolute path of a folder, or a storage pool as pool:NAME."}
	}
	return &restore.Libvirt{Hypervisor: instant.Definer{URI: uri}, MachineOptions: restore.MachineOptions{
		Name: m.Name, Storage: m.Storage, Format: r.Format, Network: m.Network, KeepIdentity: m.KeepIdentity, Start: m.Start}}, nil
}

func restoreError(err error) error {
	var refusal *restore.Refusal
	var partial *restore.PartialError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &partial):
		e := *AsError(restoreError(partial.Err))
		e.Msg = fmt.Sprintf("%s %s: what is there now is neither what was nor the point.", sentence(e.Error()), strings.Join(partial.Paths, ", "))
		e.Hint = strings.TrimSpace(e.Hint + " Run the restore again; with --delta it writes only what is not yet as it should be.")
		return remains{&e}
	case errors.Is(err, machine.ErrRemains):
		return &Error{Code: CodeInternal, Msg: sentence(err.Error()), Err: err,
			Hint: "Its disks were left for it. Once libvirt answers, see whether it is there: virsh list --all"}
	case errors.As(err, &refusal):
		return &Error{Code: CodeInvalid, Msg: sentence(refusal.Msg), Err: err, Hint: refusal.Hint}
	case errors.Is(err, restore.ErrRefused):
		return &Error{Code: CodeInvalid, Msg: sentence(strings.TrimPrefix(err.Error(), restore.ErrRefused.Error()+": ")), Err: err,
			Hint: "See what would be done, and change nothing, with: --dry-run"}
	case errors.Is(err, instant.ErrInvalid):
		return &Error{Code: CodeInvalid, Msg: sentence(err.Error()), Err: err, Hint: "Give --to libvirt, or an address of that form behind a colon."}
	case errors.Is(err, instant.ErrUnreachable):
		return &Error{Code: CodeUnreachable, Msg: sentence(err.Error()), Err: err, Hint: "Start libvirt, with: systemctl start libvirtd (or virtqemud)"}
	case errors.Is(err, instant.ErrRejected):
		return &Error{Code: CodeInternal, Msg: sentence(err.Error()), Err: err, Hint: "Nothing was left. See libvirt's log, and try other hardware or no --start."}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT): // which reading a point does not meet
		return &Error{Code: CodeNoSpace, Msg: sentence(err.Error()), Err: err, Hint: "Free space where the disks go, or choose another place, and start again."}
	case errors.Is(err, syscall.EFBIG):
		return &Error{Code: CodeInvalid, Msg: sentence(err.Error()), Err: err, Hint: "The file system takes no file of that length: choose another place, or --format qcow2."}
	case errors.Is(err, fs.ErrNotExist):
		return &Error{Code: CodeNotFound, Msg: sentence(err.Error()), Err: err, Hint: "Check the path after --to or --storage; a folder has to be there."}
	}
	return userError(err)
}
