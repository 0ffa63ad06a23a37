package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/sendense/sendense/block"
)

// Formats of image files.
const (
	QCOW2 = "qcow2"
	Raw   = "raw"
)

// Files is a folder that gets an image file for each disk. Files that are there
// already are not overwritten. With an error nothing is left; if the process is
// killed, files whose names end in .partial are, which the next restore to the same
// names removes.
type Files struct {
	Dir    string
	Format string // QCOW2 or Raw; default QCOW2

	made []*madeFile
}

var _ Target = (*Files)(nil)

func (f *Files) path(m string, d Disk) string {
	return filepath.Join(f.Dir, fmt.Sprintf("%s-disk-%d.%s", m, d.Index, f.Format))
}

// Plan implements Target.
func (f *Files) Plan(_ context.Context, m Machine) (Plan, error) {
	if f.Format == "" {
		f.Format = QCOW2
	}
	if f.Format != QCOW2 && f.Format != Raw {
		return Plan{}, fmt.Errorf("%w: %q is no format, use qcow2 or raw", ErrRefused, f.Format)
	}
	st, err := os.Stat(f.Dir)
	if err != nil {
		return Plan{}, err
	}
	if !st.IsDir() {
		return Plan{}, fmt.Errorf("%w: %s is no folder", ErrRefused, f.Dir)
	}
	var p Plan
	f.made = nil
	for _, d := range m.Disks {
		x := newMadeFile(d.Index, f.path(m.Name, d))
		note, err := x.look()
		if err != nil {
			return Plan{}, err
		}
		if note != "" {
			p.Notes = append(p.Notes, note)
		}
		p.Disks = append(p.Disks, PlannedDisk{Index: d.Index, Key: d.Key, Size: d.Device.Size(), To: x.path})
		f.made = append(f.made, x)
	}
	return p, nil
}

// Open implements Target.
func (f *Files) Open(_ context.Context, d Disk) (block.Device, bool, error) {
	i := slices.IndexFunc(f.made, func(m *madeFile) bool { return m.index == d.Index })
	if i < 0 {
		return nil, false, fmt.Errorf("disk %d was not planned", d.Index)
	}
	dev, err := f.made[i].create(f.Format, d.Device.Size())
	return dev, true, err
}

// Commit implements Target.
func (f *Files) Commit(ctx context.Context) (Made, error) {
	if err := ctx.Err(); err != nil {
		return Made{}, err
	}
	if err := f.finish(nil); err != nil {
		return Made{}, err
	}
	if err := f.publish(); err != nil {
		return Made{}, err
	}
	var made Made
	if err := f.settle(); err != nil { // they are complete all the same
		made.Notes = append(made.Notes, secondName(err))
	}
	return made, nil
}

// secondName says that settle failed.
func secondName(err error) string {
	return fmt.Sprintf("A second name of its files could not be removed: %v.", err)
}

// finish makes the files durable and gives them to whom they shall belong; nil:
// they stay with who wrote them.
func (f *Files) finish(to *owner) error {
	for _, m := range f.made {
		if err := m.finish(to); err != nil {
			return err
		}
	}
	return nil
}

// publish gives the files their names. They keep those that say that they are not
// complete until settle.
func (f *Files) publish() error {
	for _, m := range f.made {
		if err := m.publish(); err != nil {
			return err
		}
	}
	return syncFolder(f.Dir)
}

// settle takes the second names away.
func (f *Files) settle() error {
	made := f.made
	f.made = nil // from here on there is nothing to be given up
	var errs []error
	for _, m := range made {
		errs = append(errs, m.settle())
	}
	return errors.Join(errors.Join(errs...), syncFolder(f.Dir))
}

// leave gives the files up without removing them.
func (f *Files) leave() {
	for _, m := range f.made {
		m.close()
	}
	f.made = nil
}

// Abort implements Target.
func (f *Files) Abort() error {
	var errs []error
	for _, m := range f.made {
		errs = append(errs, m.remove())
	}
	f.made = nil
	return errors.Join(errs...)
}

func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// remove deletes a file that need not be there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
