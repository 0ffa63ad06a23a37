package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"

	"github.com/digitalocean/go-libvirt"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/internal/nbdclient"
)

// running is an instant of a running machine: its backup job.
type running struct {
	*machine
	source  *Source
	plan    plan
	keep    map[string]bool // checkpoints that the caller asked about
	config  capture.Config
	disks   []capture.Disk
	devices []*nbdclient.Device

	stopRoom context.CancelFunc // ends the watch of the scratch folder
	rooms    sync.WaitGroup     // that watch

	mu        sync.Mutex // guards the fields below; held while the job is ended
	ended     bool
	committed bool
	closed    bool
}

func (s *Source) beginRunning(ctx context.Context, m *machine, r capture.Request) (_ capture.Instant, err error) {
	const migratable = libvirt.DomainXMLMigratable // as it runs, without what only the running process has
	definition, err := m.conn.DomainGetXMLDesc(m.dom, migratable)
	if err != nil {
		return nil, explain(ctx, "describe", err)
	}
	live, err := m.conn.DomainGetXMLDesc(m.dom, 0)
	if err != nil {
		return nil, explain(ctx, "describe", err)
	}
	d, err := parseDomain(live)
	if err != nil {
		return nil, err
	}
	if err := m.endStale(ctx); err != nil {
		return nil, err
	}
	if err := m.idle(ctx); err != nil {
		return nil, err
	}
	sweep(s.o.ScratchDir)
	if err := checkRoom(s.o.ScratchDir, s.o.ScratchReserve); err != nil {
		return nil, err
	}
	i := &running{machine: m, source: s, keep: map[string]bool{}}
	for _, token := range r.Since {
		i.keep[token] = true
	}
	disks, notes := d.disks()
	if len(disks) == 0 {
		return nil, errors.New("the machine has no disk that can be captured")
	}
	if err := i.prepare(ctx, d, disks, r); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, i.giveUp())
		}
	}()
	var consistency, note string
	err = m.uncut(ctx, func(ctx context.Context) error {
		consistency, note, err = s.frozenly(ctx, m, d, func() error { return i.plan.start(ctx, m.handle) })
		return err
	})
	if err != nil {
		return nil, err
	}
	if note != "" {
		notes = append(notes, note)
	}
	i.config = capture.Config{Source: "libvirt", Host: m.host, Format: "libvirt-xml", Definition: definition,
		Running: true, Consistency: consistency, Notes: notes}
	if err := i.open(ctx); err != nil {
		return nil, err
	}
	roomCtx, stop := context.WithCancel(context.WithoutCancel(ctx)) // until Close
	i.stopRoom = stop
	i.rooms.Go(func() { i.watchRoom(roomCtx) })
	return i, nil
}

// prepare decides what to ask of each disk, and cleans up what an interrupted
// capture left.
func (i *running) prepare(ctx context.Context, d *domain, disks []domainDisk, r capture.Request) error {
	var lost map[string]error
	if len(r.Since) > 0 {
		var err error
		if lost, err = i.adopt(ctx, disks, i.keep); err != nil {
			return err
		}
		// A full backup that fails must not cost the chain its tokens, so without
		// any to keep nothing is deleted before Commit.
		if err := i.forget(ctx, i.keep); err != nil {
			return err
		}
	}
	have, err := i.checkpoints(ctx)
	if err != nil {
		return err
	}
	i.plan.name = checkpointName(r.Token)
	captured := map[string]bool{}
	for _, disk := range disks {
		captured[disk.Key()] = true
		i.plan.disks = append(i.plan.disks, planDisk(&disk, r.Since[disk.Key()], have, lost))
	}
	for _, disk := range d.Devices.Disks {
		if !captured[disk.Key()] {
			i.plan.others = append(i.plan.others, disk.Key())
		}
	}
	i.plan.folder, err = newFolder(i.source.o.ScratchDir, d)
	return err
}

func planDisk(disk *domainDisk, since string, have map[string]checkpoint, lost map[string]error) planned {
	p := planned{key: disk.Key(), tracks: disk.tracks()}
	c, known := have[since]
	switch {
	case !p.tracks:
		p.untracked = disk.noBitmaps()
	case since == "":
	case !known:
		p.untracked = fmt.Sprintf("checkpoint %s is missing on the host, and cannot be made anew: %v", since, lost[since])
	case !c.disks[p.key]:
		p.untracked = fmt.Sprintf("checkpoint %s does not include disk %s", since, p.key)
	default:
		p.since = since
	}
	return p
}

// open connects to the exports of the job.
func (i *running) open(ctx context.Context) error {
	for _, p := range i.plan.disks {
		uri := url.URL{Scheme: "nbd+unix", Path: "/" + p.key, RawQuery: url.Values{"socket": {i.plan.folder.socket()}}.Encode()}
		o := nbdclient.Options{Conns: i.source.o.Conns}
		bitmap := "qemu:dirty-bitmap:" + exportBitmap(p.key)
		if p.since != "" {
			o.Contexts = []string{bitmap}
		}
		dev, err := nbdclient.Open(ctx, uri.String(), o)
		if err != nil {
			return fmt.Errorf("open export of disk %s: %w", p.key, err)
		}
		i.devices = append(i.devices, dev)
		if p.since != "" && !dev.HasContext(bitmap) {
			p.untracked, p.since = "QEMU does not export the bitmap of checkpoint "+p.since, ""
		}
		read := exported{dev: dev, instant: i}
		disk := capture.Disk{Key: p.key, Device: read, Untracked: p.untracked}
		if p.tracks {
			disk.Token = i.plan.name
		}
		if p.since != "" {
			disk.Tracked, disk.Device = true, tracked{exported: read, since: p.since, bitmap: bitmap}
		}
		i.disks = append(i.disks, disk)
	}
	return nil
}

// Disks implements capture.Instant.
func (i *running) Disks() []capture.Disk { return i.disks }

// Config implements capture.Instant.
func (i *running) Config() capture.Config { return i.config }

// Err implements capture.Instant.
func (i *running) Err() error {
	if err := i.check(); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended {
		return nil // by ourselves
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	defer i.conn.bound(ctx)()
	// The job of each disk in QEMU, not libvirt's record of them all: what the
	// guest overwrites is saved for as long as the former runs, and a job that is
	// being ended has a record until the end.
	for _, d := range i.plan.disks {
		found, kind, _, _, _, err := i.conn.DomainGetBlockJobInfo(i.dom, d.key, 0)
		switch {
		case hasCode(err, libvirt.ErrOperationInvalid):
			i.fail(i.howStopped())
			return i.reason()
		case err != nil:
			return explain(ctx, "look for the backup job of disk "+d.key, err)
		case found == 0 || libvirt.DomainBlockJobType(kind) != libvirt.DomainBlockJobTypeBackup:
			i.fail("its backup job was ended by somebody else")
			return i.reason()
		}
	}
	return nil
}

// Commit implements capture.Instant: it leaves the instant's own checkpoint as the
// only one of ours, and ends the job. The job comes last: a migration that waits
// for its end would take along what is still to be deleted.
func (i *running) Commit(ctx context.Context) error {
	defer i.conn.bound(ctx)()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.committed = true
	forgotten := i.forget(ctx, i.tokens())
	if err := i.end(ctx, i.handle); err != nil {
		return fmt.Errorf("commit instant of %s: %w", i.dom.Name, err)
	}
	if forgotten != nil {
		forgotten = i.forget(ctx, i.tokens())
	}
	if forgotten != nil {
		return fmt.Errorf("commit instant of %s: %w", i.dom.Name, forgotten)
	}
	return nil
}

// tokens names the checkpoints that the disks of the instant need.
func (i *running) tokens() map[string]bool {
	keep := map[string]bool{}
	for _, d := range i.disks {
		if d.Token != "" {
			keep[d.Token] = true
		}
	}
	return keep
}

// end closes the devices, ends the job and removes its folder. i.mu is held.
func (i *running) end(ctx context.Context, h handle) error {
	if i.ended {
		return nil
	}
	for _, d := range i.devices {
		_ = d.Close() // read-only: nothing is lost with it
	}
	if err := h.endJob(ctx, i.plan.folder.socket()); err != nil {
		return err
	}
	i.ended = true
	return i.plan.folder.remove()
}

// Close implements capture.Instant.
func (i *running) Close() error {
	i.stopRoom()
	i.rooms.Wait()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	i.closed = true
	err := i.cleanUp()
	i.unwatch()
	i.conn.hangUp()
	return err
}

// giveUp undoes a Begin that failed, after its job may have begun.
func (i *running) giveUp() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cleanUp()
}

// cleanUp ends the job and, without a Commit, deletes its checkpoint before that,
// as Commit does with others. The caller's context may have taken the connection
// along: then it makes one of its own. i.mu is held.
func (i *running) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	h := i.handle
	if !h.conn.usable() {
		c, err := dial(ctx, i.socket)
		if err != nil {
			return errors.Join(err, i.plan.folder.remove())
		}
		defer c.hangUp()
		h.conn = c
	}
	defer h.conn.bound(ctx)()
	if i.committed {
		return i.end(ctx, h)
	}
	left := h.dropCheckpoint(ctx, i.plan.name)
	err := i.end(ctx, h)
	if left != nil {
		left = h.dropCheckpoint(ctx, i.plan.name)
	}
	return errors.Join(err, left)
}
