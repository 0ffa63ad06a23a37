package libvirt

import (
	"context"
	"fmt"

	"github.com/digitalocean/go-libvirt"
	"github.com/sendense/sendense/capture"
)

// migrated says what became of a machine that now runs elsewhere.
const migrated = "it was migrated to another host"

// idle returns an error if libvirt is at something with the machine that a backup
// job has to wait for. Libvirt waits half a minute, which would be too long for a
// guest that is frozen, and a machine that migrates might arrive frozen where
// nobody is there to thaw it.
func (h handle) idle(ctx context.Context) error {
	moving := fmt.Errorf("%w: it is being migrated; wait until it has arrived, and capture it there", capture.ErrVMChanged)
	kind, params, err := h.conn.DomainGetJobStats(h.dom, 0)
	switch {
	case hasCode(err, libvirt.ErrOperationUnsupported): // statistics of a migration are to be had where it comes from
		return moving
	case hasCode(err, libvirt.ErrOperationInvalid): // it stopped; what comes next will say so
		return nil
	case err != nil:
		return explain(ctx, "look for other jobs", err)
	case libvirt.DomainJobType(kind) == libvirt.DomainJobNone:
		return nil
	}
	for _, p := range params {
		if p.Field != libvirt.DomainJobOperationStr {
			continue
		}
		switch operation, _ := p.Value.I.(int32); libvirt.DomainJobOperation(operation) {
		case libvirt.DomainJobOperationStrMigrationOut, libvirt.DomainJobOperationStrMigrationIn:
			return moving
		}
	}
	return fmt.Errorf("libvirt is busy with another job of the machine (virsh domjobinfo %s); wait until it has ended", h.dom.Name)
}

// howStopped says why a machine does not run any more.
func (h handle) howStopped() string {
	state, reason, err := h.conn.DomainGetState(h.dom, 0)
	if err == nil && libvirt.DomainState(state) == libvirt.DomainShutoff &&
		libvirt.DomainShutoffReason(reason) == libvirt.DomainShutoffMigrated {
		return migrated
	}
	return "it stopped"
}
