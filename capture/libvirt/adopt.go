package libvirt

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/digitalocean/go-libvirt"
)

// adopt makes libvirt know checkpoints of ours whose bitmaps are in the disks but
// of which this host has no record: a machine that migrates, or is defined anew,
// takes its bitmaps along and leaves the records behind. It does so if one of the
// tokens is without a record, for that one and for whatever else of ours is there,
// which can be deleted only once libvirt knows it. The errors, by token, say why a
// bitmap cannot be had.
func (h handle) adopt(ctx context.Context, disks []domainDisk, tokens map[string]bool) (map[string]error, error) {
	have, err := h.checkpoints(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for token := range tokens {
		if _, known := have[token]; !known {
			names[token] = true
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	found, err := h.bitmaps()
	if err != nil {
		h.log.Info("bitmaps of the disks cannot be listed; some may stay", "err", err)
	}
	for _, name := range found {
		if _, known := have[name]; !known {
			names[name] = true
		}
	}
	track := map[string]bool{}
	for _, disk := range disks {
		if disk.tracks() {
			track[disk.Key()] = true
		}
	}
	refused := map[string]error{}
	for name := range names {
		if _, err := h.redefine(name, track); err != nil {
			refused[name] = err
			continue
		}
		h.log.Info("checkpoint had no record on this host, but its bitmap is there", "checkpoint", name)
	}
	return refused, nil
}

// redefine makes libvirt know a checkpoint by its bitmaps in those of the disks,
// named by key, that have one which is complete and in use. An error says that
// none has.
func (h handle) redefine(name string, disks map[string]bool) (libvirt.DomainCheckpoint, error) {
	keys := slices.Collect(maps.Keys(disks))
	refusal := errors.New("no disk can hold its bitmap")
	for len(keys) > 0 { // libvirt takes none for all
		c := checkpointXML{Name: name, Description: checkpointDescription, CreationTime: 1} // libvirt wants one; nobody knows
		for _, key := range keys {
			c.Disks = append(c.Disks, checkpointDisk{key, "bitmap"})
		}
		doc, err := xml.Marshal(c)
		if err != nil {
			return libvirt.DomainCheckpoint{}, err
		}
		const flags = libvirt.DomainCheckpointCreateRedefine | libvirt.DomainCheckpointCreateRedefineValidate
		var cp libvirt.DomainCheckpoint
		if cp, refusal = h.conn.DomainCheckpointCreateXML(h.dom, string(doc), uint32(flags)); refusal == nil {
			return cp, nil
		}
		// Libvirt names the first disk that it cannot have the checkpoint of.
		without := slices.IndexFunc(keys, func(key string) bool { return strings.Contains(refusal.Error(), "'"+key+"'") })
		if without < 0 {
			break
		}
		keys = slices.Delete(keys, without, without+1)
	}
	return libvirt.DomainCheckpoint{}, refusal
}

// bitmaps returns the names of all bitmaps of ours that QEMU has for the machine's
// disks. Libvirt has no call that tells of those it does not know; QEMU is asked
// directly, which libvirt notes in its log.
func (h handle) bitmaps() ([]string, error) {
	reply, err := h.conn.QEMUDomainMonitorCommand(h.dom, `{"execute":"query-named-block-nodes","arguments":{"flat":true}}`, 0)
	if err != nil {
		return nil, err
	}
	var nodes struct {
		Return []struct {
			Bitmaps []struct {
				Name string `json:"name"`
			} `json:"dirty-bitmaps"`
		} `json:"return"`
	}
	if err := json.Unmarshal([]byte(reply), &nodes); err != nil {
		return nil, err
	}
	var names []string
	for _, n := range nodes.Return {
		for _, b := range n.Bitmaps {
			if strings.HasPrefix(b.Name, prefix) {
				names = append(names, b.Name)
			}
		}
	}
	return names, nil
}
