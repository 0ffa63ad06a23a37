package libvirt

import (
	"context"
	"log/slog"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
)

// HoldFrozen freezes a running machine as Begin does and calls fn meanwhile.
func (s *Source) HoldFrozen(ctx context.Context, vmUUID string, fn func() error) (consistency, note string, err error) {
	c, err := dial(ctx, s.socket)
	if err != nil {
		return "", "", err
	}
	defer c.hangUp()
	dom, err := c.DomainLookupByUUID(libvirt.UUID(uuid.MustParse(vmUUID)))
	if err != nil {
		return "", "", err
	}
	description, err := c.DomainGetXMLDesc(dom, 0)
	if err != nil {
		return "", "", err
	}
	d, err := parseDomain(description)
	if err != nil {
		return "", "", err
	}
	m := &machine{handle: handle{conn: c, dom: dom, log: slog.New(slog.DiscardHandler)}, socket: s.socket}
	return s.frozenly(ctx, m, d, fn)
}
