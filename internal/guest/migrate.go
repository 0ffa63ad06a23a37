package guest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/digitalocean/go-libvirt"
)

// Migration says how a machine is moved. The zero value of a field is its default.
type Migration struct {
	KeepSource bool   // leave the machine defined, and shut off, where it comes from
	Bandwidth  uint64 // of its memory, in MiB/s; default: no limit
}

// Migrate moves the running machine to another host of this computer, live, and
// returns it as it is there; its disks are shared by the hosts and stay where
// they are. If ctx ends first libvirt goes on with the migration.
func (v *VM) Migrate(ctx context.Context, to *Host, m Migration) (*VM, error) {
	moved, err := v.migrate(ctx, to, m)
	if err != nil {
		return nil, fmt.Errorf("migrate %s: %w", v.Name, err)
	}
	return moved, nil
}

func (v *VM) migrate(ctx context.Context, to *Host, m Migration) (*VM, error) {
	// A connection of its own: that of the machine stays free for other calls.
	conn, err := v.host.Connect()
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Disconnect() })()
	params := []libvirt.TypedParam{{
		Field: libvirt.MigrateParamURI,
		Value: *libvirt.NewTypedParamValueString("unix://" + filepath.Join(to.dir, "migrate-"+v.Name)),
	}}
	if m.Bandwidth > 0 {
		params = append(params, libvirt.TypedParam{
			Field: libvirt.MigrateParamBandwidth, Value: *libvirt.NewTypedParamValueUllong(m.Bandwidth),
		})
	}
	// Unsafe: libvirt does not know that the disks are shared.
	flags := libvirt.MigrateLive | libvirt.MigratePeer2peer | libvirt.MigrateUnsafe | libvirt.MigratePersistDest
	if !m.KeepSource {
		flags |= libvirt.MigrateUndefineSource
	}
	_, err = conn.DomainMigratePerform3Params(v.Domain, libvirt.OptString{to.URI()}, params, nil, flags)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err = errors.Join(err, conn.Disconnect()); err != nil {
		return nil, err
	}
	moved := &VM{Name: v.Name, UUID: v.UUID, host: to, console: v.console}
	if moved.Conn, err = to.Connect(); err != nil {
		return nil, err
	}
	if moved.Domain, err = moved.Conn.DomainLookupByUUID(v.Domain.UUID); err != nil {
		return nil, errors.Join(err, moved.Conn.Disconnect())
	}
	return moved, nil
}
