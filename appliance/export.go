package appliance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/nbdserver"
)

// ExportSpec says what is exported and where.
type ExportSpec struct {
	ID    string `json:"id"`             // chosen by the appliance
	VM    string `json:"vm"`             // name or UUID in a request, UUID afterwards
	Point string `json:"point"`          // as in Appliance.Point in a request, its id afterwards
	Disk  *int   `json:"disk,omitempty"` // index; nil: all disks
	// Socket is the path of a unix socket; default one in the run directory.
	Socket string `json:"socket,omitempty"`
	// Listen is a TCP address instead of a socket. Other than on loopback it takes
	// TLSDir.
	Listen string `json:"listen,omitempty"`
	// TLSDir holds ca-cert.pem, server-cert.pem and server-key.pem; clients then
	// have to show a certificate that the CA signed.
	TLSDir string `json:"tls_dir,omitempty"`
	// Verified compares each cluster with its digest when it is read.
	Verified bool `json:"verified,omitempty"`
	// Persist brings the export back when the appliance is started again.
	Persist bool      `json:"persist,omitempty"`
	Created time.Time `json:"created"`
}

// Export is a live NBD view of a point.
type Export struct {
	ExportSpec
	Name  string       `json:"name"` // of the VM
	Disks []ExportDisk `json:"disks"`
}

// ExportDisk is one disk of an export.
type ExportDisk struct {
	Index   int      `json:"index"`
	Key     string   `json:"key"`
	Size    int64    `json:"size"`
	Export  string   `json:"export"` // NBD export name
	URI     string   `json:"uri"`
	Since   []string `json:"since,omitempty"` // older points offered as qemu:dirty-bitmap:since-{point}
	Clients int      `json:"clients"`
}

// export is an Export at work.
type export struct {
	Export
	server *nbdserver.Server
	disks  []repository.Disk
	stop   context.CancelFunc
	done   chan struct{}
	once   sync.Once
	err    error // of closing; read after done
}

// Export serves a point over NBD, read-only, until Unexport or Close. The first
// disk is also the default export.
func (a *Appliance) Export(ctx context.Context, s ExportSpec) (Export, error) {
	if s.Persist && !a.opts.RestoreExports {
		return Export{}, &Error{Code: CodeInvalid, Msg: "Without a control plane nothing would bring the export back.",
			Hint: "Start sendense-control-plane, or leave --persist out."}
	}
	vm, point, err := a.Point(ctx, s.VM, s.Point)
	if err != nil {
		return Export{}, err
	}
	if s.ID == "" {
		s.ID = newExportID()
		s.Created = a.opts.Now().UTC()
	}
	s.VM, s.Point = string(vm.ID), string(point.ID)
	e := &export{Export: Export{ExportSpec: s, Name: vm.Name}, done: make(chan struct{})}
	if err := a.openExport(ctx, e, point); err != nil {
		return Export{}, errors.Join(err, closeAll(e.disks))
	}
	if s.Persist {
		kept := e.ExportSpec
		kept.Socket = s.Socket // the default one may be elsewhere the next time
		if err := a.opts.Journal.PutExport(kept); err != nil {
			return Export{}, errors.Join(err, a.endExport(e))
		}
	}
	a.log.Info("export began", "export", s.ID, "vm", vm.Name, "point", s.Point)
	return e.Export, nil
}

// openExport opens the disks and starts to serve them.
func (a *Appliance) openExport(ctx context.Context, e *export, point Point) error {
	points, err := a.repo.Points(ctx, point.VM)
	if err != nil {
		return userError(err)
	}
	l, err := a.listen(&e.ExportSpec)
	if err != nil {
		return err
	}
	o := nbdserver.Options{Log: a.log, Observer: a.opts.Metrics.observer("export")}
	if l.TLS != nil {
		o.TLS, o.TLSMode = l.TLS, nbdserver.TLSForced
	}
	e.server = nbdserver.New(o)
	if err := a.addDisks(ctx, e, l, point, points); err != nil {
		return errors.Join(err, l.Close())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errors.Join(errShutdown, l.Close())
	}
	serveCtx, cancel := context.WithCancel(context.Background())
	e.stop = cancel
	a.exports[e.ID] = e
	a.wg.Go(func() {
		defer close(e.done)
		if err := e.server.Serve(serveCtx, l); err != nil {
			a.log.Error("export ended", "export", e.ID, "err", err)
		}
		e.err = closeAll(e.disks)
	})
	return nil
}

// addDisks opens the disks that the export shows and offers them.
func (a *Appliance) addDisks(ctx context.Context, e *export, l *Listener, point Point, points []Point) error {
	for i := range point.Disks {
		d := &point.Disks[i]
		if e.Disk != nil && d.Index != *e.Disk {
			continue
		}
		dev, err := a.repo.OpenDisk(ctx, point.VM, point.ID, d.Index, repository.OpenOptions{Verified: e.Verified})
		if err != nil {
			return userError(err)
		}
		e.disks = append(e.disks, dev)
		x := ExportDisk{Index: d.Index, Key: d.Key, Size: d.Size, Export: fmt.Sprintf("disk-%d", d.Index), Since: olderPoints(points, d)}
		names := []string{x.Export}
		if len(e.Disks) == 0 {
			names = append(names, "") // the default export
			x.Export = ""
		}
		for _, name := range names {
			err := e.server.Add(nbdserver.Export{Name: name, Device: dev, ReadOnly: true, Since: x.Since,
				Description:    fmt.Sprintf("%s %s %s", point.Name, point.ID, d.Key),
				PreferredBlock: uint32(min(d.ClusterSize, 64<<10))})
			if err != nil {
				return err
			}
		}
		x.URI = l.URI(x.Export)
		e.Disks = append(e.Disks, x)
	}
	if len(e.Disks) == 0 {
		return &Error{Code: CodeNotFound, Msg: fmt.Sprintf("The point has no disk %d.", *e.Disk),
			Hint: "See which disks it has with: sendense-control info " + point.Name + " " + string(point.ID)}
	}
	return nil
}

// olderPoints returns the ids of the points whose files d's file builds on,
// newest first.
func olderPoints(points []Point, d *PointDisk) []string {
	var ids []string
	parent := d.Parent
	for i := len(points) - 1; i >= 0 && parent != ""; i-- {
		if p := points[i].Disk(d.Key); p != nil && p.File == parent {
			ids = append(ids, string(points[i].ID))
			parent = p.Parent
		}
	}
	return ids
}

// Exports lists the exports, oldest first.
func (a *Appliance) Exports(context.Context) []Export {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]Export, 0, len(a.exports))
	for _, e := range a.exports {
		x := e.Export
		x.Disks = append([]ExportDisk(nil), e.Disks...)
		for i := range x.Disks {
			d := &x.Disks[i]
			d.Clients = e.server.Connections(d.Export)
			if d.Export == "" {
				d.Clients += e.server.Connections(fmt.Sprintf("disk-%d", d.Index))
			}
		}
		out = append(out, x)
	}
	sort.Slice(out, func(i, k int) bool {
		if !out[i].Created.Equal(out[k].Created) {
			return out[i].Created.Before(out[k].Created)
		}
		return out[i].ID < out[k].ID
	})
	return out
}

// Unexport ends an export; requests in flight are answered first. CodeNotFound if
// there is none.
func (a *Appliance) Unexport(_ context.Context, id string) error {
	a.mu.Lock()
	e := a.exports[id]
	a.mu.Unlock()
	if e == nil {
		return &Error{Code: CodeNotFound, Msg: fmt.Sprintf("There is no export %s.", id),
			Hint: "List the exports with: sendense-control exports"}
	}
	err := a.endExport(e)
	if e.Persist {
		err = errors.Join(err, a.opts.Journal.DeleteExport(id))
	}
	a.log.Info("export ended", "export", id)
	return err
}

func (a *Appliance) endExport(e *export) error {
	e.once.Do(e.stop)
	<-e.done
	a.mu.Lock()
	delete(a.exports, e.ID)
	a.mu.Unlock()
	return e.err
}

// restoreExports brings back the exports that were asked to last.
func (a *Appliance) restoreExports(ctx context.Context) {
	specs, err := a.opts.Journal.Exports()
	if err != nil {
		a.log.Warn("exports could not all be read", "err", err)
	}
	for _, s := range specs {
		if _, err := a.Export(ctx, s); err != nil {
			a.log.Error("export could not be brought back", "export", s.ID, "vm", s.VM, "point", s.Point, "err", err)
		}
	}
}

// listen opens the socket or address that the export asks for.
func (a *Appliance) listen(s *ExportSpec) (*Listener, error) {
	if s.Listen != "" {
		if s.Socket != "" {
			return nil, &Error{Code: CodeInvalid, Msg: "An export has either a socket or an address.", Hint: "Leave one of them out."}
		}
		l, err := ListenTCP(s.Listen, s.TLSDir)
		if err == nil {
			s.Listen = l.Addr().String() // with the port that was found for 0
		}
		return l, err
	}
	if s.Socket == "" {
		s.Socket = filepath.Join(a.opts.RunDir, s.ID+".sock")
	}
	return ListenUnix(s.Socket, 0o660, s.TLSDir)
}

func newExportID() string {
	var b [4]byte
	rand.Read(b[:])
	return "export-" + hex.EncodeToString(b[:])
}

func closeAll(disks []repository.Disk) error {
	var errs []error
	for _, d := range disks {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}
