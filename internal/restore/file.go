package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
)

// Formats of image files.
const (
	QCOW2 = "qcow2"
	Raw   = "raw"
)

// Files is a folder that gets an image file for each disk. Files that are there
// already are not overwritten. With an error nothing is left.
type Files struct {
	Dir    string
	Format string // QCOW2 or Raw; default QCOW2

	made []madeFile
}

type madeFile struct {
	index         int
	partial, path string
	dev           io.Closer
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
		path := f.path(m.Name, d)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return Plan{}, fmt.Errorf("%w: %s is there already; move it away or choose another folder", ErrRefused, path)
		}
		p.Disks = append(p.Disks, PlannedDisk{Index: d.Index, Key: d.Key, Size: d.Device.Size(), To: path})
		f.made = append(f.made, madeFile{index: d.Index, partial: path + ".partial", path: path})
	}
	return p, nil
}

// Open implements Target.
func (f *Files) Open(_ context.Context, d Disk) (block.Device, bool, error) {
	i := slices.IndexFunc(f.made, func(m madeFile) bool { return m.index == d.Index })
	if i < 0 {
		return nil, false, fmt.Errorf("disk %d was not planned", d.Index)
	}
	m := &f.made[i]
	if f.Format == Raw {
		file, err := os.OpenFile(m.partial, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, false, err
		}
		if err := errors.Join(file.Truncate(d.Device.Size()), file.Close()); err != nil {
			return nil, false, err
		}
		w, err := image.OpenRawWriter(m.partial)
		if err != nil {
			return nil, false, err
		}
		m.dev = w
		return w, true, nil
	}
	if err := image.Create(m.partial, image.CreateOptions{Size: d.Device.Size()}); err != nil {
		return nil, false, err
	}
	w, err := image.OpenWriter(m.partial, image.WriterOptions{Direct: true})
	if err != nil {
		return nil, false, err
	}
	m.dev = w
	return w, true, nil
}

// Commit implements Target.
func (f *Files) Commit(context.Context) error {
	for i := range f.made {
		m := &f.made[i]
		if m.dev == nil {
			continue
		}
		err := m.dev.Close()
		m.dev = nil
		if err != nil {
			return errors.Join(err, f.Abort())
		}
	}
	for _, m := range f.made {
		// Not over what somebody has put there meanwhile.
		if err := os.Link(m.partial, m.path); err != nil {
			return errors.Join(err, f.Abort())
		}
		if err := os.Remove(m.partial); err != nil {
			return err
		}
	}
	dir, err := os.Open(f.Dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Abort implements Target.
func (f *Files) Abort() error {
	var errs []error
	for i := range f.made {
		m := &f.made[i]
		if m.dev != nil {
			_ = m.dev.Close() // it is removed
			m.dev = nil
		}
		if err := os.Remove(m.partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
