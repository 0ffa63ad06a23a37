package appliance

import (
	"context"
	"fmt"

	"github.com/sendense/sendense/internal/restore"
	"github.com/sendense/sendense/internal/restore/fit"
)

// fit finds out from inside of the disks what hardware a guest can run on, where
// it gets a machine. It returns what judges the machine once that is known.
func (a *Appliance) fit(ctx context.Context, r *restoring) func(*restore.PlannedMachine) []fit.Finding {
	if _, ok := r.target.(*restore.Libvirt); !ok {
		return func(*restore.PlannedMachine) []fit.Finding { return nil }
	}
	g, err := a.lookInto(ctx, r)
	if err != nil {
		f := fit.Finding{Severity: fit.Check, Text: sentence(fmt.Sprintf("nothing is known of its drivers, since its disks could not be looked into: %v", err))}
		return func(*restore.PlannedMachine) []fit.Finding { return []fit.Finding{f} }
	}
	// What no BIOS starts and a UEFI firmware does is given one.
	efi := g.Drivers.EFI
	r.machine.UEFI = !g.BIOS && (efi.Fallback || len(efi.Systems) > 0)
	return func(m *restore.PlannedMachine) []fit.Finding { return fit.Judge(g, m.Before, m.Hardware) }
}

// lookInto reads what concerns hardware from the disks.
func (a *Appliance) lookInto(ctx context.Context, r *restoring) (fit.Guest, error) {
	o, err := a.guests.get(ctx, r.point, r.request.Verified, r.request.Keyring)
	if err != nil {
		return fit.Guest{}, err
	}
	defer a.guests.release(o)
	g := fit.Guest{OS: o.guest.OS(), HasRoot: o.guest.HasRoot(), Keys: map[int]string{}}
	for _, d := range r.machine.Disks {
		g.Keys[d.Index] = d.Key
	}
	if g.Drivers, err = o.guest.Drivers(ctx); err != nil {
		return g, err
	}
	g.BIOS, err = startsByBIOS(ctx, r.machine.Disks[0])
	return g, err
}

// startsByBIOS reports whether a disk begins with what a BIOS starts: code, and the
// mark that says so.
func startsByBIOS(ctx context.Context, d restore.Disk) (bool, error) {
	var b [512]byte
	if d.Device.Size() < int64(len(b)) {
		return false, nil
	}
	if err := d.Device.ReadAt(ctx, b[:], 0); err != nil {
		return false, err
	}
	code := false
	for _, x := range b[:440] {
		code = code || x != 0
	}
	return code && b[510] == 0x55 && b[511] == 0xaa, nil
}
