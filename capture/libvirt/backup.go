package libvirt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
)

// plan is a backup job to be: what of each disk is asked for.
type plan struct {
	name   string // of the checkpoint
	folder *folder
	disks  []planned
	others []string // keys of disks that are left out
}

type planned struct {
	key       string
	tracks    bool   // gets a bitmap for the new checkpoint
	since     string // checkpoint to tell the changes from, "" for none
	untracked string // why there is no since although the caller had a token
}

// XML documents of libvirt: formatbackup, formatcheckpoint.
type (
	backupXML struct {
		XMLName xml.Name `xml:"domainbackup"`
		Mode    string   `xml:"mode,attr"`
		Server  struct {
			Transport string `xml:"transport,attr"`
			Socket    string `xml:"socket,attr"`
		} `xml:"server"`
		Disks []backupDisk `xml:"disks>disk"`
	}
	backupDisk struct {
		Name        string   `xml:"name,attr"`
		Backup      string   `xml:"backup,attr"`
		Type        string   `xml:"type,attr,omitempty"`
		Mode        string   `xml:"backupmode,attr,omitempty"`
		Incremental string   `xml:"incremental,attr,omitempty"`
		Export      string   `xml:"exportname,attr,omitempty"`
		Bitmap      string   `xml:"exportbitmap,attr,omitempty"`
		Scratch     *scratch `xml:"scratch"`
	}
	scratch struct {
		File string `xml:"file,attr"`
	}
	checkpointXML struct {
		XMLName      xml.Name         `xml:"domaincheckpoint"`
		Name         string           `xml:"name"`
		Description  string           `xml:"description"`
		CreationTime int64            `xml:"creationTime,omitempty"` // for one that exists
		Disks        []checkpointDisk `xml:"disks>disk"`
	}
	checkpointDisk struct {
		Name       string `xml:"name,attr"`
		Checkpoint string `xml:"checkpoint,attr"`
	}
)

const checkpointDescription = "Sendense: the latest backup point"

// exportBitmap is the name of the dirty bitmap that is exported with a disk.
func exportBitmap(key string) string { return "backup-" + key }

// documents returns what backup-begin takes. Without a disk that tracks there is
// no checkpoint.
func (p *plan) documents(attempt int) (job string, check libvirt.OptString, err error) {
	b := backupXML{Mode: "pull"}
	b.Server.Transport, b.Server.Socket = "unix", p.folder.socket()
	c := checkpointXML{Name: p.name, Description: checkpointDescription}
	tracks := false
	for _, d := range p.disks {
		bd := backupDisk{Name: d.key, Backup: "yes", Type: "file", Mode: "full", Export: d.key,
			Scratch: &scratch{p.folder.scratch(d.key, attempt)}}
		if d.since != "" {
			bd.Mode, bd.Incremental, bd.Bitmap = "incremental", d.since, exportBitmap(d.key)
		}
		cd := checkpointDisk{d.key, "no"}
		if d.tracks {
			cd.Checkpoint, tracks = "bitmap", true
		}
		b.Disks, c.Disks = append(b.Disks, bd), append(c.Disks, cd)
	}
	for _, key := range p.others {
		b.Disks = append(b.Disks, backupDisk{Name: key, Backup: "no"})
		c.Disks = append(c.Disks, checkpointDisk{key, "no"})
	}
	doc, err := xml.Marshal(b)
	if err != nil || !tracks {
		return string(doc), nil, err
	}
	cdoc, err := xml.Marshal(c)
	return string(doc), libvirt.OptString{string(cdoc)}, err
}

// start begins the job. Disks whose bitmaps turn out to be unusable are changed
// to be read whole.
func (p *plan) start(ctx context.Context, m handle) error {
	if err := m.idle(ctx); err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		job, check, err := p.documents(attempt)
		if err != nil {
			return err
		}
		err = m.conn.DomainBackupBegin(m.dom, job, check, 0)
		if err == nil {
			return nil
		}
		if !p.giveUpTracking(err) {
			return explain(ctx, "begin backup", explainBegin(p.folder, err))
		}
		m.log.Info("change tracking is lost", "err", err)
	}
}

// giveUpTracking drops the since of the disks that libvirt refused to tell the
// changes of, and reports whether there were any.
func (p *plan) giveUpTracking(err error) bool {
	if !hasCode(err, libvirt.ErrCheckpointInconsistent, libvirt.ErrNoDomainCheckpoint, libvirt.ErrInvalidArg) {
		return false
	}
	var asked, named []*planned
	for i := range p.disks {
		d := &p.disks[i]
		if d.since == "" {
			continue
		}
		asked = append(asked, d)
		if strings.Contains(err.Error(), "'"+d.key+"'") {
			named = append(named, d)
		}
	}
	if len(named) > 0 {
		asked = named
	}
	for _, d := range asked {
		d.untracked = fmt.Sprintf("the bitmap of checkpoint %s in disk %s is missing or was not closed properly: %v", d.since, d.key, err)
		d.since = ""
	}
	return len(asked) > 0
}

func explainBegin(f *folder, err error) error {
	if strings.Contains(err.Error(), "Permission denied") {
		return fmt.Errorf("%w; QEMU cannot write into %s: choose another scratch folder, "+
			"or allow this one in the host's security module (AppArmor: /etc/apparmor.d/local/abstractions/libvirt-qemu)", err, f.path)
	}
	return err
}

// job returns the socket of the machine's backup job, and whether there is one.
func (h handle) job(ctx context.Context) (socket string, found bool, err error) {
	description, err := h.conn.DomainBackupGetXMLDesc(h.dom, 0)
	if hasCode(err, libvirt.ErrNoDomainBackup, libvirt.ErrNoDomain, libvirt.ErrOperationInvalid) {
		return "", false, nil
	}
	if err != nil {
		return "", false, explain(ctx, "look for a backup job", err)
	}
	var job backupXML
	if err := xml.Unmarshal([]byte(description), &job); err != nil {
		return "", false, fmt.Errorf("parse backup job: %w", err)
	}
	return job.Server.Socket, true, nil
}

// endStale ends a backup job that a capture left behind when it died. A job that
// somebody is at is an error that says whose.
func (h handle) endStale(ctx context.Context) error {
	socket, found, err := h.job(ctx)
	if err != nil || !found {
		return err
	}
	path, ours := folderOf(socket)
	if !ours {
		return fmt.Errorf("a backup job of another program is running; wait until it has ended, or end it with: virsh domjobabort %s", h.dom.Name)
	}
	gone, err := abandoned(path)
	if err != nil {
		return err
	}
	if !gone {
		return errors.New("another capture of the machine is running; wait until it has ended, or cancel it")
	}
	h.log.Info("ending the backup job of a capture that died", "folder", path)
	return errors.Join(h.endJob(ctx, socket), os.RemoveAll(path))
}

// endJob ends the backup job with the NBD server at socket and waits until
// libvirt has forgotten it. A job of somebody else stays, and with a machine that
// ends its job does too.
func (h handle) endJob(ctx context.Context, socket string) error {
	for aborted := false; ; {
		now, found, err := h.job(ctx)
		if err != nil {
			return err
		}
		if !found || now != socket || h.ending() {
			return nil
		}
		if !aborted {
			err := h.conn.DomainAbortJob(h.dom)
			if err != nil && !hasCode(err, libvirt.ErrOperationInvalid) && !h.ending() { // none, or none any more
				return explain(ctx, "end backup job", err)
			}
			aborted = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end backup job: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
