package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"sync"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/nbdclient"
)

// Target returns the appliance as what a capture writes to: drafts over REST,
// content over NBD.
func (c *Client) Target() capture.Target { return target{c} }

type target struct{ c *Client }

// draft is an open draft. The answer to its POST is the lease: while its body is
// open the draft is.
type draft struct {
	c     *Client
	info  appliance.DraftInfo
	lease io.Closer
	stop  context.CancelFunc

	done chan struct{} // closed when the lease is over
	mu   sync.Mutex    // guards err
	err  error         // why the appliance ended the draft
}

// Begin implements [capture.Target].
func (t target) Begin(ctx context.Context, b capture.Begin) (capture.Draft, error) {
	// The lease outlives the call, and ctx too: a draft is aborted with a reason.
	leaseCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	resp, err := t.c.send(leaseCtx, "POST", "/v1/drafts", appliance.BeginRequest{
		UUID: b.VM.UUID, Name: b.VM.Name, Source: b.Source, Full: b.Full, Compress: b.Compress})
	if err != nil {
		stop()
		return nil, err
	}
	lines := bufio.NewReader(resp.Body)
	var first api.DraftEvent
	if err := readEvent(lines, &first); err != nil || first.Draft == nil {
		stop()
		resp.Body.Close()
		return nil, t.c.unreachable(ctx, fmt.Errorf("read draft: %w", err))
	}
	d := &draft{c: t.c, info: *first.Draft, lease: resp.Body, stop: stop, done: make(chan struct{})}
	go d.watch(lines)
	if d.info.Digest != image.DigestAlgorithm {
		d.release()
		return nil, &appliance.Error{Code: appliance.CodeInvalid, Msg: fmt.Sprintf("The control plane uses digests of type %s, this agent knows %s.",
			d.info.Digest, image.DigestAlgorithm), Hint: "Use an agent and a control plane of the same version."}
	}
	return d, nil
}

func readEvent(r *bufio.Reader, e *api.DraftEvent) error {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, e)
}

// watch waits for the end of the lease and notes why.
func (d *draft) watch(lines *bufio.Reader) {
	defer close(d.done)
	var last api.DraftEvent
	err := readEvent(lines, &last)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case last.Ended != nil:
		d.err = &appliance.Error{Code: last.Ended.Code, Msg: last.Ended.Detail, Hint: last.Ended.Hint}
	case err != nil:
		d.err = &appliance.Error{Code: appliance.CodeUnreachable, Err: err, Msg: "The control plane ended the draft or went away.",
			Hint: "See its log, and start the backup again."}
	}
}

// release gives up the lease and waits for what watches it.
func (d *draft) release() {
	d.stop()
	d.lease.Close()
	<-d.done
}

func (d *draft) path(suffix string) string {
	return "/v1/drafts/" + url.PathEscape(d.info.Job) + suffix
}

// ended returns why the draft is over, or nil.
func (d *draft) ended() error {
	select {
	case <-d.done:
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.err
	default:
		return nil
	}
}

func (d *draft) JobID() string   { return d.info.Job }
func (d *draft) PointID() string { return d.info.Point }

func (d *draft) Parent() *capture.Parent {
	if d.info.Parent == nil {
		return nil
	}
	p := &capture.Parent{PointID: d.info.Parent.Point}
	for _, disk := range d.info.Parent.Disks {
		p.Disks = append(p.Disks, capture.ParentDisk(disk))
	}
	return p
}

func (d *draft) AddDisk(ctx context.Context, s capture.DiskSpec) (capture.DraftDisk, error) {
	info, err := get[appliance.DraftDiskInfo](ctx, d.c, "POST", d.path("/disks"), api.DiskRequest{Key: s.Key, Size: s.Size})
	if err != nil {
		return nil, err
	}
	dev, err := nbdclient.Open(ctx, info.URI, nbdclient.Options{})
	if err != nil {
		return nil, fmt.Errorf("open draft of disk %s: %w", s.Key, err)
	}
	return &draftDisk{d: d, info: info, dev: dev}, nil
}

func (d *draft) Report(ctx context.Context, p capture.Progress) error {
	if err := d.ended(); err != nil {
		return errors.Join(err, capture.ErrCancelled)
	}
	err := d.c.call(ctx, "PUT", d.path("/progress"), api.ProgressReport(p), nil)
	var e *appliance.Error
	if errors.As(err, &e) && (e.Code == appliance.CodeCancelled || e.Code == appliance.CodeInterrupted || e.Code == appliance.CodeNotFound) {
		return errors.Join(e, capture.ErrCancelled)
	}
	return err
}

func (d *draft) Commit(ctx context.Context, r capture.Result) error {
	defer d.release()
	return d.c.call(ctx, "POST", d.path("/commit"), appliance.CommitRequest{Config: r.Config, Disks: r.Disks}, nil)
}

// givenUp is the reason of a draft that is aborted without one.
var givenUp = &appliance.Error{Code: appliance.CodeCancelled, Msg: "The capture agent gave the backup up.",
	Hint: "Start it again when you want it."}

func (d *draft) Abort(ctx context.Context, why error) error {
	defer d.release()
	if d.ended() != nil {
		return nil // the appliance was first
	}
	e := appliance.AsError(why)
	if e == nil {
		e = givenUp
	}
	err := d.c.call(ctx, "POST", d.path("/abort"), api.AbortRequest{Code: e.Code, Reason: e.Error(), Hint: e.Hint}, nil)
	var gone *appliance.Error
	if errors.As(err, &gone) && gone.Code == appliance.CodeNotFound {
		return nil // over already
	}
	return err
}

// draftDisk is one disk of a draft, written over NBD.
type draftDisk struct {
	d    *draft
	info appliance.DraftDiskInfo
	dev  *nbdclient.Device
}

func (dd *draftDisk) Device() block.Device { return dd.dev }
func (dd *draftDisk) ClusterSize() int64   { return dd.info.ClusterSize }
func (dd *draftDisk) Close() error         { return dd.dev.Close() }

func (dd *draftDisk) Sum(cluster []byte) capture.Digest { return capture.Digest(image.Sum(cluster)) }

func (dd *draftDisk) Differs(ctx context.Context, first int64, sums []capture.Digest) ([]bool, error) {
	req := api.DiffersRequest{First: first, Sums: make([]byte, 0, len(sums)*capture.DigestSize)}
	for i := range sums {
		req.Sums = append(req.Sums, sums[i][:]...)
	}
	reply, err := get[api.DiffersReply](ctx, dd.d.c, "POST", dd.d.path(fmt.Sprintf("/disks/%d/differs", dd.info.Index)), req)
	if err != nil {
		return nil, err
	}
	if len(reply.Differs) != len(sums) {
		return nil, fmt.Errorf("compare digests: asked for %d clusters, told of %d", len(sums), len(reply.Differs))
	}
	return reply.Differs, nil
}
