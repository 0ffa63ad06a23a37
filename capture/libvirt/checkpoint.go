package libvirt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"

	"github.com/digitalocean/go-libvirt"
)

// checkpointName is the name of the checkpoint of a request's token, and the
// change token of the disks in it.
func checkpointName(token string) string {
	if strings.HasPrefix(token, prefix) {
		return token
	}
	return prefix + token
}

// checkpoint is one of the machine's checkpoints.
type checkpoint struct {
	handle libvirt.DomainCheckpoint
	disks  map[string]bool // keys of the disks that have a bitmap for it
}

// checkpoints returns those of the machine's checkpoints that are ours, by name.
func (h handle) checkpoints(ctx context.Context) (map[string]checkpoint, error) {
	all, _, err := h.conn.DomainListAllCheckpoints(h.dom, 1, 0)
	if err != nil {
		return nil, explain(ctx, "list checkpoints", err)
	}
	ours := map[string]checkpoint{}
	for _, cp := range all {
		if !strings.HasPrefix(cp.Name, prefix) {
			continue
		}
		const withoutDomain = 2 // VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
		description, err := h.conn.DomainCheckpointGetXMLDesc(cp, withoutDomain)
		if err != nil {
			return nil, explain(ctx, "describe checkpoint "+cp.Name, err)
		}
		var d struct {
			Disks []struct {
				Name       string `xml:"name,attr"`
				Checkpoint string `xml:"checkpoint,attr"`
			} `xml:"disks>disk"`
		}
		if err := xml.Unmarshal([]byte(description), &d); err != nil {
			return nil, fmt.Errorf("parse checkpoint %s: %w", cp.Name, err)
		}
		c := checkpoint{handle: cp, disks: map[string]bool{}}
		for _, disk := range d.Disks {
			if disk.Checkpoint == "bitmap" {
				c.disks[disk.Name] = true
			}
		}
		ours[cp.Name] = c
	}
	return ours, nil
}

// forget deletes our checkpoints except those named. Libvirt refuses to delete
// one whose bitmap is gone or broken; then its record of the checkpoint goes, so
// that the two agree again.
func (h handle) forget(ctx context.Context, keep map[string]bool) error {
	ours, err := h.checkpoints(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for name, c := range ours {
		if keep[name] {
			continue
		}
		errs = append(errs, h.deleteCheckpoint(ctx, c.handle))
	}
	return errors.Join(errs...)
}

func (h handle) deleteCheckpoint(ctx context.Context, cp libvirt.DomainCheckpoint) error {
	err := h.conn.DomainCheckpointDelete(cp, 0)
	if err == nil || hasCode(err, libvirt.ErrNoDomainCheckpoint) {
		return nil
	}
	// Not for a machine that is busy or does not run: that passes.
	if hasCode(err, libvirt.ErrCheckpointInconsistent, libvirt.ErrInternalError, libvirt.ErrInvalidArg, libvirt.ErrOperationFailed) {
		h.log.Info("checkpoint has lost its bitmap, deleting the record of it", "checkpoint", cp.Name, "err", err)
		err = h.conn.DomainCheckpointDelete(cp, libvirt.DomainCheckpointDeleteMetadataOnly)
	}
	return explain(ctx, "delete checkpoint "+cp.Name, err)
}
