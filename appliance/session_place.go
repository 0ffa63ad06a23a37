package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/restore"
)

// places is where the disks of a session go, by key.
type places struct {
	at    map[string]machine.Place
	pool  string // of libvirt, that files are in; empty: none
	notes []string
	made  []string // files
	// claims are what others must not have meanwhile.
	claims []func() error
}

// release gives up what others could not have.
func (p *places) release() error {
	var errs []error
	for _, fn := range p.claims {
		errs = append(errs, fn())
	}
	p.claims = nil
	return errors.Join(errs...)
}

// paths returns the paths by key.
func (p *places) paths() map[string]string {
	out := map[string]string{}
	for key, at := range p.at {
		out[key] = at.Path
	}
	return out
}

// devices reports whether they are block devices, which were there before.
func (p *places) devices() bool {
	for _, at := range p.at {
		return at.Device
	}
	return false
}

// make makes the files, empty, so that they are nobody else's.
func (p *places) make() (err error) {
	if p.devices() {
		return nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.remove())
		}
	}()
	for _, at := range p.at {
		f, err := os.OpenFile(at.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		p.made = append(p.made, at.Path)
		if err := f.Close(); err != nil {
			return err
		}
		if err := instant.SyncDir(filepath.Dir(at.Path)); err != nil {
			return err
		}
	}
	return nil
}

// remove removes what make made.
func (p *places) remove() error {
	var errs []error
	for _, path := range p.made {
		errs = append(errs, os.Remove(path))
	}
	p.made = nil
	return errors.Join(errs...)
}

// plan finds out where the disks go that are not somewhere already. The caller
// releases it.
func (s *session) plan(ctx context.Context, r MigrateRequest) (*places, error) {
	var disks []SessionDisk
	for _, d := range s.doc.Disks {
		if d.Moved == "" {
			disks = append(disks, d)
		}
	}
	kind, where, _ := strings.Cut(r.To, ":")
	switch kind {
	case "blockdev":
		if r.Format != "" && r.Format != restore.Raw {
			return nil, &Error{Code: CodeInvalid, Msg: "A block device takes the disk as it is.", Hint: "Leave --format out."}
		}
		return planDevices(strings.Split(where, ","), disks)
	case "file":
		return s.planFiles(where, r.Format, disks)
	case "pool":
		pool, err := instant.Definer{URI: s.doc.Machine.Connect}.Pool(ctx, where)
		if err != nil {
			return nil, hypervisorError(err)
		}
		dir, err := restore.PoolFolder(where, pool)
		if err != nil {
			return nil, restoreError(err)
		}
		p, err := s.planFiles(dir, r.Format, disks)
		if err == nil {
			p.pool = where
		}
		return p, err
	}
	return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%q is no place to move disks to.", r.To), Hint: "Give file:DIR, pool:NAME, or blockdev:PATH with more paths behind commas."}
}

// planFiles plans a new file in a folder for each disk.
func (s *session) planFiles(dir, format string, disks []SessionDisk) (*places, error) {
	if format == "" {
		format = restore.QCOW2
	}
	if format != restore.QCOW2 && format != restore.Raw {
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("There is no format %q for disks of machines.", format), Hint: "Choose qcow2 or raw."}
	}
	st, err := os.Stat(dir)
	if err == nil && !st.IsDir() || !filepath.IsAbs(dir) {
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%q is no folder.", dir), Hint: "Give the absolute path of one that exists: --to file:DIR"}
	}
	if err != nil {
		return nil, &Error{Code: CodeNotFound, Msg: sentence(err.Error()), Err: err, Hint: "Make the folder first."}
	}
	p := &places{at: map[string]machine.Place{}}
	for _, d := range disks {
		path := filepath.Join(dir, fileName(s.doc.Machine.Name+"-"+d.Key)+"."+format)
		switch _, err := os.Lstat(path); {
		case err == nil:
			return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%s is there already.", path), Hint: "Choose another folder, or move it away."}
		case !errors.Is(err, os.ErrNotExist):
			return nil, err
		}
		p.at[d.Key] = machine.Place{Path: path, Format: format}
	}
	return p, nil
}

// planDevices claims a block device for each disk, in their order.
func planDevices(paths []string, disks []SessionDisk) (_ *places, err error) {
	if len(paths) != len(disks) || slices.ContainsFunc(paths, func(p string) bool { return !filepath.IsAbs(p) }) {
		var keys []string
		for _, d := range disks {
			keys = append(keys, d.Key)
		}
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("The disks to move are %s: they need %d devices, and %d are given.", strings.Join(keys, ", "), len(disks), len(paths)),
			Hint: "Give the absolute path of a block device for each, in that order: --to blockdev:PATH,PATH"}
	}
	p := &places{at: map[string]machine.Place{}}
	defer func() {
		if err != nil {
			err = errors.Join(restoreError(err), p.release())
		}
	}()
	for i, d := range disks {
		longer, release, err := restore.Claim(paths[i], d.Size)
		if err != nil {
			return nil, err
		}
		p.claims = append(p.claims, release)
		at := machine.Place{Path: paths[i], Format: restore.Raw, Device: true}
		if longer > 0 { // QEMU copies to what is as long as the disk
			at.Size = d.Size
			p.notes = append(p.notes, fmt.Sprintf("%s is %d bytes longer than disk %s was, and so is the disk of the machine from its next start on.", paths[i], longer, d.Key))
		}
		p.at[d.Key] = at
	}
	return p, nil
}
