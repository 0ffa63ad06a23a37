package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/sendense/sendense/capture"
)

// stopped is an instant of a machine that does not run: its disk files.
type stopped struct {
	*machine
	config  capture.Config
	disks   []capture.Disk
	closers []io.Closer
	files   []fileState
	closed  bool
}

// fileState is what a disk file looked like when it was opened. A machine that
// was started and stopped again in between leaves its mark there.
type fileState struct {
	key, path string
	size      int64
	modified  time.Time
}

func (s *Source) beginStopped(ctx context.Context, m *machine, r capture.Request) (_ capture.Instant, err error) {
	if s.o.OpenImage == nil {
		return nil, errors.New("the machine does not run, and nothing is configured that reads its disk files; start it")
	}
	definition, err := m.conn.DomainGetXMLDesc(m.dom, libvirt.DomainXMLInactive)
	if err != nil {
		return nil, explain(ctx, "describe", err)
	}
	d, err := parseDomain(definition)
	if err != nil {
		return nil, err
	}
	i := &stopped{machine: m}
	disks, notes := d.disks()
	if len(disks) == 0 {
		return nil, errors.New("the machine has no disk that can be captured")
	}
	consistency, note, err := m.stoppedHow(ctx)
	if err != nil {
		return nil, err
	}
	if note != "" {
		notes = append(notes, note)
	}
	i.config = capture.Config{Source: "libvirt", Host: m.host, Format: "libvirt-xml", Definition: definition,
		Consistency: consistency, Notes: notes}
	for _, disk := range disks {
		if err := i.open(ctx, s, &disk, r.Since[disk.Key()]); err != nil {
			return nil, errors.Join(err, i.release())
		}
	}
	return i, nil
}

// stoppedHow says what state the disks of the machine are in.
func (m *machine) stoppedHow(ctx context.Context) (consistency, note string, err error) {
	saved, err := m.conn.DomainHasManagedSaveImage(m.dom, 0)
	if err != nil {
		return "", "", explain(ctx, "look for a saved state", err)
	}
	if saved == 1 {
		return crash, "The machine's memory is saved on the host and is not part of the backup; its disks are as after a power failure.", nil
	}
	_, reason, err := m.conn.DomainGetState(m.dom, 0)
	if err != nil {
		return "", "", explain(ctx, "ask how it stopped", err)
	}
	switch libvirt.DomainShutoffReason(reason) {
	case libvirt.DomainShutoffShutdown:
		return clean, "", nil
	case libvirt.DomainShutoffMigrated:
		return "", "", errors.New(migrated + "; capture it there")
	case libvirt.DomainShutoffUnknown, libvirt.DomainShutoffDaemon:
		return crash, "The host does not know how the machine stopped; it may not have been shut down properly.", nil
	}
	return crash, "The machine was not shut down properly when it last ran.", nil
}

// open opens a disk's file. Its change token stays that of the last running
// instant: the bitmap counts from there, so that what it names since includes
// everything that will have changed since now.
func (i *stopped) open(ctx context.Context, s *Source, d *domainDisk, since string) error {
	path, err := i.pathOf(ctx, d)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("open disk %s: %w", d.Key(), err)
	}
	if inUse(path) {
		return fmt.Errorf("disk %s is in use: QEMU writes to %s, perhaps because the machine runs on another host; "+
			"capture it there, or end what uses the disk", d.Key(), path)
	}
	dev, closer, err := s.o.OpenImage(path, d.Format())
	if err != nil {
		return fmt.Errorf("open disk %s: %w", d.Key(), err)
	}
	i.closers = append(i.closers, closer)
	i.files = append(i.files, fileState{d.Key(), path, info.Size(), info.ModTime()})
	disk := capture.Disk{Key: d.Key(), Device: dev,
		Untracked: "the machine does not run; its changes can be told only while it does"}
	if d.tracks() {
		disk.Token = since
	}
	i.disks = append(i.disks, disk)
	return nil
}

// pathOf returns the path of the disk's file or block device.
func (i *stopped) pathOf(ctx context.Context, d *domainDisk) (string, error) {
	switch {
	case d.Type == "file" && d.Source.File != "":
		return d.Source.File, nil
	case d.Type == "block" && d.Source.Dev != "":
		return d.Source.Dev, nil
	case d.Type == "volume":
		pool, err := i.conn.StoragePoolLookupByName(d.Source.Pool)
		if err != nil {
			return "", explain(ctx, "look up storage pool "+d.Source.Pool, err)
		}
		vol, err := i.conn.StorageVolLookupByName(pool, d.Source.Volume)
		if err != nil {
			return "", explain(ctx, "look up volume "+d.Source.Volume, err)
		}
		path, err := i.conn.StorageVolGetPath(vol)
		return path, explain(ctx, "find volume "+d.Source.Volume, err)
	}
	kind := d.Type
	if d.Source.Protocol != "" {
		kind += " (" + d.Source.Protocol + ")"
	}
	return "", fmt.Errorf("disk %s is of type %s, which only QEMU can read; start the machine to capture it", d.Key(), kind)
}

// Disks implements capture.Instant.
func (i *stopped) Disks() []capture.Disk { return i.disks }

// Config implements capture.Instant.
func (i *stopped) Config() capture.Config { return i.config }

// Err implements capture.Instant.
func (i *stopped) Err() error {
	if err := i.check(); err != nil {
		return err
	}
	for _, f := range i.files {
		info, err := os.Stat(f.path)
		if err != nil {
			i.fail(fmt.Sprintf("disk %s cannot be found any more: %v", f.key, err))
		} else if info.Size() != f.size || !info.ModTime().Equal(f.modified) {
			i.fail(fmt.Sprintf("disk %s was written to", f.key))
		} else if inUse(f.path) {
			i.fail(fmt.Sprintf("disk %s was opened by QEMU, which may write to it", f.key))
		}
	}
	return i.reason()
}

// Commit implements capture.Instant. Checkpoints can be deleted only while the
// machine runs; the next instant of that kind does it.
func (i *stopped) Commit(context.Context) error { return nil }

// Close implements capture.Instant.
func (i *stopped) Close() error {
	if i.closed {
		return nil
	}
	i.closed = true
	err := i.release()
	i.unwatch()
	i.conn.hangUp()
	return err
}

func (i *stopped) release() error {
	var errs []error
	for _, c := range i.closers {
		errs = append(errs, c.Close())
	}
	i.closers = nil
	return errors.Join(errs...)
}
