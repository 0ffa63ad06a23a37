package instant

import (
	"context"
	"fmt"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/sendense/sendense/internal/machine"
)

// CopyState says how far a disk of a running machine is copied.
type CopyState struct {
	Source string // path of the file or device that the machine uses, "" while that is an export
	Active bool   // a copy runs
	Begun  bool   // the machine still has the copy's place, whether it runs or is being ended
	Ready  bool   // the copy holds what the disk does, and is kept so: it can take over
	Done   int64  // bytes, of Total
	Total  int64  // grows while the guest writes
}

// lookAgain is how long a copy that is being ended is left alone.
const lookAgain = 100 * time.Millisecond

// BeginCopy starts to copy a disk of a running machine, by the name it has there, to
// a place, and keeps copying what the guest writes meanwhile. A file has to be empty
// or absent. limit is in bytes of a second; 0: there is none.
func (h *Hypervisor) BeginCopy(ctx context.Context, uuid, disk string, to machine.Place, limit int64) error {
	// Writes go to both places at once, so that the copy ends however much the guest
	// writes.
	var params []libvirt.TypedParam
	if limit > 0 {
		params = append(params, libvirt.TypedParam{Field: libvirt.DomainBlockCopyBandwidth, Value: *libvirt.NewTypedParamValueUllong(uint64(limit))})
	}
	flags := libvirt.DomainBlockCopySynchronousWrites
	if to.Device { // which libvirt would make otherwise, and a part of it cannot be made
		flags |= libvirt.DomainBlockCopyReuseExt
	}
	return h.domain(ctx, uuid, func(d libvirt.Domain) error {
		return h.conn.DomainBlockCopy(d, disk, to.XML(), params, flags)
	})
}

// Copying tells how the copy of a disk stands.
func (h *Hypervisor) Copying(ctx context.Context, uuid, disk string) (s CopyState, err error) {
	var description string
	err = h.domain(ctx, uuid, func(d libvirt.Domain) error {
		found, _, _, done, total, err := h.conn.DomainGetBlockJobInfo(d, disk, 0)
		if err != nil {
			return err
		}
		s.Active, s.Done, s.Total = found != 0, int64(done), int64(total)
		description, err = h.conn.DomainGetXMLDesc(d, 0)
		return err
	})
	if err != nil {
		return s, err
	}
	now, ok, err := machine.DiskOf(description, disk)
	if err != nil {
		return s, err
	}
	if !ok {
		return s, fmt.Errorf("machine has no disk %s", disk)
	}
	s.Source = now.Path
	// Done equals Total for a moment at the very beginning, too.
	s.Begun, s.Ready = now.Mirror, s.Active && now.MirrorReady
	return s, nil
}

// EndCopy gives a copy up, waits until it has ended, and returns how the disk stands
// then: the machine goes on with the one it has, unless it had taken the copy over
// already. The file stays. That there is no copy is no error.
func (h *Hypervisor) EndCopy(ctx context.Context, uuid, disk string) (CopyState, error) {
	for {
		s, err := h.Copying(ctx, uuid, disk)
		if err != nil || !s.Active && !s.Begun {
			return s, err
		}
		// libvirt refuses this for a copy that has ended, and for one that is just being
		// ended or taken over. Only another look tells which it was.
		err = h.domain(ctx, uuid, func(d libvirt.Domain) error { return h.conn.DomainBlockJobAbort(d, disk, 0) })
		if err != nil && !answered(err, libvirt.ErrOperationInvalid, libvirt.ErrInvalidArg) {
			return s, err
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("wait for the end of the copy: %w", ctx.Err())
		case <-time.After(lookAgain):
		}
	}
}

// SwitchToCopy has the machine go on with the copy of a disk, which is ready.
func (h *Hypervisor) SwitchToCopy(ctx context.Context, uuid, disk string) error {
	return h.domain(ctx, uuid, func(d libvirt.Domain) error {
		return h.conn.DomainBlockJobAbort(d, disk, libvirt.DomainBlockJobAbortPivot)
	})
}

// Keep has libvirt keep a running machine's description, so that it can be started
// again once it has ended; ErrGone if it has ended. What its disks were told for the
// time of a session is taken back with the next start.
func (h *Hypervisor) Keep(ctx context.Context, uuid string) error {
	err := h.domain(ctx, uuid, func(d libvirt.Domain) error {
		description, err := h.conn.DomainGetXMLDesc(d, libvirt.DomainXMLInactive|libvirt.DomainXMLSecure)
		if err != nil {
			return err
		}
		if description, err = machine.Settled(description); err != nil {
			return err
		}
		_, err = h.conn.DomainDefineXML(description)
		return err
	})
	if isGone(err) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}
