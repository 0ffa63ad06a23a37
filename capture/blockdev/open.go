package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
	"golang.org/x/sys/unix"
)

// opened is one disk being read.
type opened struct {
	path   string
	file   *os.File
	device block.Device
	closer io.Closer // of device, if it is not file itself
	before look
	note   string // what a user should know, a clause; "" for nothing
}

// look is what tells whether a file was modified.
type look struct {
	size            int64 // of a device too
	modified, inode time.Time
}

// open opens a disk and sees who else uses it.
func (s *Source) open(d Disk) (*opened, error) {
	st, err := os.Stat(d.Path)
	if err != nil {
		return nil, unreachable(err)
	}
	device := st.Mode().Type() == fs.ModeDevice
	if !device && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is %s, neither a block device nor a file", capture.ErrUnreachable, d.Path, describe(st.Mode()))
	}
	o := &opened{path: d.Path}
	if device {
		o.file, o.note, err = s.openDevice(d.Path)
	} else {
		o.file, o.note, err = openFile(d.Path)
	}
	if err != nil {
		return nil, err
	}
	if err := s.begin(o, d); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

// begin notes what the disk looks like and makes a device of it.
func (s *Source) begin(o *opened, d Disk) (err error) {
	if o.before, err = lookAt(o.file); err != nil {
		return unreachable(err)
	}
	if d.Format == "" {
		if err := refuseQCOW2(o.file); err != nil {
			return err
		}
	}
	if d.Format == "" || d.Format == Raw {
		// This is advice; not being taken is no error.
		_ = unix.Fadvise(int(o.file.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
		o.device = &rawDevice{file: o.file, size: o.before.size}
		return nil
	}
	if o.device, o.closer, err = s.o.Open(d.Path); err != nil {
		return unreachable(err)
	}
	return nil
}

// ErrFormat says that a file begins like a QCOW2 image and nobody has said which
// format it has.
var ErrFormat = errors.New("it begins like a QCOW2 image: say which format it has, qcow2 or raw")

// refuseQCOW2 guards against an image being stored as the disk inside it.
func refuseQCOW2(f *os.File) error {
	var head [4]byte
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return err
	}
	if _, err := f.ReadAt(head[:], 0); err != nil && err != io.EOF {
		return unreachable(err)
	}
	if bytes.Equal(head[:], []byte("QFI\xfb")) {
		return fmt.Errorf("%s: %w", f.Name(), ErrFormat)
	}
	return nil
}

// openFile opens an image file and says whether somebody has it open for writing:
// the kernel grants a read lease only where nobody has. The lease is given back
// at once, since it would make writers wait.
func openFile(path string) (*os.File, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, "", unreachable(err)
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	if errors.Is(err, unix.EAGAIN) {
		return f, path + " is open for writing elsewhere; the copy is consistent only if nothing was written", nil
	}
	return f, "", nil // no lease to be had says nothing
}

// openDevice opens a block device. One that nobody uses is claimed, as mounting
// would; one that is in use is read all the same, unless mounted read-write.
func (s *Source) openDevice(path string) (*os.File, string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	if err == nil {
		return f, "", nil
	}
	if !errors.Is(err, unix.EBUSY) {
		return nil, "", unreachable(err)
	}
	if f, err = os.Open(path); err != nil {
		return nil, "", unreachable(err)
	}
	mounts, err := mountedReadWrite(f)
	switch {
	case err != nil:
		f.Close()
		return nil, "", fmt.Errorf("see who uses %s: %w", path, err)
	case len(mounts) == 0:
		return f, path + " is in use, though not mounted read-write; the copy is consistent only if nothing was written", nil
	case !s.o.AllowMounted:
		f.Close()
		return nil, "", fmt.Errorf("%w: %s is mounted read-write at %s; unmount it, name a snapshot of it, or allow an inconsistent copy",
			capture.ErrUnreachable, path, mounts[0])
	}
	return f, fmt.Sprintf("device is mounted read-write at %s; the copy is not consistent", mounts[0]), nil
}

func unreachable(err error) error { return fmt.Errorf("%w: %w", capture.ErrUnreachable, err) }

func describe(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeCharDevice != 0:
		return "a character device"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a special file"
}

// lookAt takes down the size and, of a file, when it was last modified.
func lookAt(f *os.File) (look, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return look{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		size, err := f.Seek(0, io.SeekEnd)
		return look{size: size}, err
	}
	return look{size: st.Size, modified: time.Unix(st.Mtim.Unix()), inode: time.Unix(st.Ctim.Unix())}, nil
}

// changed returns an error if the disk is not what it was.
func (o *opened) changed() error {
	now, err := lookAt(o.file)
	switch {
	case err != nil:
		return unreachable(err)
	case now.size != o.before.size:
		return fmt.Errorf("%s changed its size from %d to %d bytes while it was read: %w", o.path, o.before.size, now.size, capture.ErrVMChanged)
	case now != o.before:
		return fmt.Errorf("%s was modified while it was read: %w", o.path, capture.ErrVMChanged)
	}
	return nil
}

func (o *opened) close() error {
	var err error
	if o.closer != nil {
		err = o.closer.Close()
	}
	return errors.Join(err, o.file.Close())
}
