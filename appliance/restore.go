package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/restore"
)

// RestoreRequest says what is restored where.
type RestoreRequest struct {
	VM    string `json:"vm"`
	Point string `json:"point"`
	Disk  *int   `json:"disk,omitempty"` // index; nil: all disks
	// To is file:DIR, or blockdev:PATH with more paths behind commas, one for each
	// disk. Paths are absolute.
	To     string `json:"to"`
	Format string `json:"format,omitempty"` // of files: qcow2, the default, or raw
	// Delta reads what the devices hold, and writes only what differs.
	Delta bool `json:"delta,omitempty"`
	// Verified compares each cluster with its digest as it is read.
	Verified bool `json:"verified,omitempty"`
}

// target makes the target that a request names.
func (r *RestoreRequest) target() (restore.Target, error) {
	kind, where, _ := strings.Cut(r.To, ":")
	paths := strings.Split(where, ",")
	if kind == "file" {
		paths = []string{where}
	}
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			kind = ""
		}
	}
	switch kind {
	case "file":
		if !r.Delta {
			return &restore.Files{Dir: where, Format: r.Format}, nil
		}
		return nil, &Error{Code: CodeInvalid, Msg: "New files hold no older state, so there is no difference to write.", Hint: "Leave --delta out, or name a block device or raw image: --to blockdev:PATH."}
	case "blockdev":
		if r.Format == "" || r.Format == restore.Raw {
			return &restore.Devices{Paths: paths}, nil
		}
		return nil, &Error{Code: CodeInvalid, Msg: "A block device takes the disk as it is.", Hint: "Leave --format out."}
	}
	return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%q is no place to restore to.", r.To), Hint: "Give file:DIR or blockdev:PATH, with absolute paths."}
}

// PlanRestore says what a restore would do, and does nothing.
func (a *Appliance) PlanRestore(ctx context.Context, r RestoreRequest) (restore.Plan, error) {
	t, err := r.target()
	if err != nil {
		return restore.Plan{}, err
	}
	_, m, disks, err := a.machine(ctx, r)
	if err != nil {
		return restore.Plan{}, err
	}
	defer func() { _ = closeAll(disks) }() // they were only read
	p, err := t.Plan(ctx, m)
	return p, restoreError(err)
}

// Restore starts a job that writes the disks of a point to where they are used
// again. Its result is a [restore.Result].
func (a *Appliance) Restore(ctx context.Context, r RestoreRequest) (Job, error) {
	t, err := r.target()
	if err != nil {
		return Job{}, err
	}
	p, m, disks, err := a.machine(ctx, r)
	if err != nil {
		return Job{}, err
	}
	if _, err := t.Plan(ctx, m); err != nil { // before there is a job
		return Job{}, errors.Join(restoreError(err), closeAll(disks))
	}
	j, err := a.start("restore", m.Name, string(p.ID), func(ctx context.Context, job *running) (any, error) {
		defer func() { _ = closeAll(disks) }() // they were only read
		result, err := restore.Run(ctx, t, m, restore.Options{Delta: r.Delta, Progress: func(disk string, done, total int64) {
			job.progress("restore", disk, done, total)
		}})
		return result, restoreError(err)
	})
	if err != nil {
		return j, errors.Join(err, closeAll(disks))
	}
	return j, nil
}

// machine opens the disks of a point that are to be restored.
func (a *Appliance) machine(ctx context.Context, r RestoreRequest) (Point, restore.Machine, []repository.Disk, error) {
	vm, p, err := a.Point(ctx, r.VM, r.Point)
	if err != nil {
		return Point{}, restore.Machine{}, nil, err
	}
	m := restore.Machine{Name: fileName(vm.Name)}
	var disks []repository.Disk
	for _, d := range p.Disks {
		if r.Disk != nil && *r.Disk != d.Index {
			continue
		}
		x, err := a.repo.OpenDisk(ctx, p.VM, p.ID, d.Index, repository.OpenOptions{Verified: r.Verified})
		if err != nil {
			return p, m, nil, errors.Join(userError(err), closeAll(disks))
		}
		disks = append(disks, x)
		m.Disks = append(m.Disks, restore.Disk{Index: d.Index, Key: d.Key, Device: x})
	}
	if len(disks) == 0 {
		return p, m, nil, &Error{Code: CodeNotFound, Msg: fmt.Sprintf("Point %s has no disk %d.", p.ID, *r.Disk),
			Hint: fmt.Sprintf("List its disks with: sendense-control info %s %s", r.VM, r.Point)}
	}
	return p, m, disks, nil
}

func restoreError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, restore.ErrRefused):
		return &Error{Code: CodeInvalid, Msg: sentence(strings.TrimPrefix(err.Error(), restore.ErrRefused.Error()+": ")), Err: err,
			Hint: "See what would be done, and change nothing, with: --dry-run"}
	case errors.Is(err, fs.ErrNotExist):
		return &Error{Code: CodeNotFound, Msg: sentence(err.Error()), Err: err, Hint: "Check the path after --to; a folder has to be there."}
	}
	return userError(err)
}
