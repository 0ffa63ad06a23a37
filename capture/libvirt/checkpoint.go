package libvirt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"

	"github.com/digitalocean/go-libvirt"
	"github.com/sendense/sendense/capture"
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
// one whose bitmap is gone or broken in one of its disks; then its record of the
// checkpoint goes, and what is left of the bitmaps in the others.
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
		errs = append(errs, h.deleteCheckpoint(ctx, c))
	}
	return errors.Join(errs...)
}

// dropCheckpoint deletes the checkpoint of an instant that was given up. With a
// machine that does not run it stays until the next instant, which deletes it:
// bitmaps change only while the machine runs.
func (h handle) dropCheckpoint(ctx context.Context, name string) error {
	ours, err := h.checkpoints(ctx)
	c, found := ours[name]
	switch {
	case errors.Is(err, capture.ErrNoVM):
		return nil
	case err != nil || !found || h.ending():
		return err
	}
	return h.deleteCheckpoint(ctx, c)
}

func (h handle) deleteCheckpoint(ctx context.Context, c checkpoint) error {
	what := "delete checkpoint " + c.handle.Name
	err := h.conn.DomainCheckpointDelete(c.handle, 0)
	switch {
	case hasCode(err, libvirt.ErrNoDomainCheckpoint):
		return nil
	case !hasCode(err, libvirt.ErrCheckpointInconsistent, libvirt.ErrInternalError, libvirt.ErrInvalidArg, libvirt.ErrOperationFailed):
		return explain(ctx, what, err) // also for a machine that is busy or does not run: that passes
	}
	h.log.Info("checkpoint has lost its bitmap, deleting the record of it", "checkpoint", c.handle.Name, "err", err)
	if err := h.conn.DomainCheckpointDelete(c.handle, libvirt.DomainCheckpointDeleteMetadataOnly); err != nil {
		return explain(ctx, what, err)
	}
	rest, err := h.redefine(c.handle.Name, c.disks)
	if err != nil {
		return nil // it was in no disk any more
	}
	return explain(ctx, what, h.conn.DomainCheckpointDelete(rest, 0))
}
