package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/nbdserver"
)

// BeginRequest opens a draft of a machine's next point.
type BeginRequest struct {
	UUID     string `json:"uuid"`
	Name     string `json:"name"`
	Source   string `json:"source"`             // kind of source
	Full     bool   `json:"full,omitempty"`     // begin a new chain
	Compress string `json:"compress,omitempty"` // "", "zstd", "zstd:LEVEL", "zlib"
}

// DraftInfo describes a draft to who fills it.
type DraftInfo struct {
	Job    string      `json:"job"`
	Point  string      `json:"point"`            // that Commit will make
	Parent *ParentInfo `json:"parent,omitempty"` // nil for a full
	Digest string      `json:"digest"`           // algorithm of digests
}

// ParentInfo is the point that a draft builds on.
type ParentInfo struct {
	Point string       `json:"point"`
	Disks []ParentDisk `json:"disks"`
}

// ParentDisk is one disk of the parent.
type ParentDisk struct {
	Key   string `json:"key"`
	Size  int64  `json:"size"`
	Token string `json:"token,omitempty"`
}

// DraftDiskInfo says where and how a disk of a draft is written.
type DraftDiskInfo struct {
	Index       int    `json:"index"`
	ClusterSize int64  `json:"cluster_size"`
	URI         string `json:"uri"` // NBD
}

// CommitRequest is what the capture knows of the finished point.
type CommitRequest struct {
	Config capture.Config       `json:"config"`
	Disks  []capture.DiskResult `json:"disks"`
}

// Draft is a point in the making, and the backup job that makes it. Methods of
// one draft may be called concurrently.
type Draft struct {
	a     *Appliance
	job   *running
	ctx   context.Context // ends when the job is cancelled
	draft repository.Draft
	info  DraftInfo

	mu    sync.Mutex // guards the fields below
	disks map[int]repository.DraftDisk
	over  bool
	why   error         // that it was discarded; also read once ended is closed
	ended chan struct{} // closed when the draft is over
}

var compressPattern = regexp.MustCompile(`^(zlib|zstd(:([1-9]|1[0-9]|2[0-2]))?)?$`)

// BeginBackup opens a draft, which is a backup job until Commit or Abort. While
// it is open the machine has no other writer.
func (a *Appliance) BeginBackup(ctx context.Context, r BeginRequest) (*Draft, error) {
	id, err := repository.ParseVMID(r.UUID)
	if err != nil {
		return nil, &Error{Code: CodeInvalid, Msg: sentence(err.Error()), Hint: "The source has to give each VM a UUID."}
	}
	if !compressPattern.MatchString(r.Compress) {
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("There is no compression %q.", r.Compress),
			Hint: "Choose zstd, zstd with a level from zstd:1 to zstd:22, or zlib."}
	}
	if r.Name == "" {
		return nil, &Error{Code: CodeInvalid, Msg: "The VM has no name.", Hint: "Give it one."}
	}
	job, jobCtx, err := a.jobs.begin("backup", r.Name, "")
	if err != nil {
		return nil, err
	}
	rd, err := a.repo.Begin(ctx, repository.BeginOptions{VM: id, Name: r.Name, Full: r.Full, Compress: r.Compress, Holder: job.job.ID})
	if err != nil {
		err = userError(err)
		job.finish(nil, err)
		return nil, err
	}
	if err := job.setPoint(string(rd.Point())); err != nil {
		err = errors.Join(err, rd.Abort(context.WithoutCancel(ctx)))
		job.finish(nil, err)
		return nil, err
	}
	d := &Draft{a: a, job: job, ctx: jobCtx, draft: rd, disks: map[int]repository.DraftDisk{}, ended: make(chan struct{}),
		info: DraftInfo{Job: job.job.ID, Point: string(rd.Point()), Digest: image.DigestAlgorithm, Parent: parentInfo(rd.Parent())}}
	a.mu.Lock()
	a.drafts[d.info.Job] = d
	a.mu.Unlock()
	go d.watch() // ends with the draft, which the jobs wait for
	a.log.Info("backup began", "job", d.info.Job, "vm", r.Name, "point", d.info.Point, "full", d.info.Parent == nil)
	return d, nil
}

func parentInfo(p *Point) *ParentInfo {
	if p == nil {
		return nil
	}
	info := &ParentInfo{Point: string(p.ID)}
	for _, d := range p.Disks {
		info.Disks = append(info.Disks, ParentDisk{Key: d.Key, Size: d.Size, Token: d.Token})
	}
	return info
}

// Draft finds an open draft by its job's id; CodeNotFound if it is over.
func (a *Appliance) Draft(job string) (*Draft, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d := a.drafts[job]; d != nil {
		return d, nil
	}
	return nil, &Error{Code: CodeNotFound, Msg: fmt.Sprintf("There is no open draft %s.", job),
		Hint: "Its backup is over: see: sendense-control jobs " + job}
}

// watch discards the draft when its job is cancelled.
func (d *Draft) watch() {
	select {
	case <-d.ctx.Done():
		d.Abort(context.Cause(d.ctx))
	case <-d.ended:
	}
}

// Info describes the draft.
func (d *Draft) Info() DraftInfo { return d.info }

// Ended is closed when the draft is committed or discarded.
func (d *Draft) Ended() <-chan struct{} { return d.ended }

// Err returns why the draft was or is about to be discarded, or nil.
func (d *Draft) Err() error {
	select {
	case <-d.ended:
		return d.why
	default:
		return context.Cause(d.ctx)
	}
}

// AddDisk opens the draft of one disk under an NBD export of its own.
func (d *Draft) AddDisk(ctx context.Context, key string, size int64) (DraftDiskInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return DraftDiskInfo{}, d.overError()
	}
	dd, err := d.draft.AddDisk(ctx, key, size)
	if err != nil {
		return DraftDiskInfo{}, userError(err)
	}
	name := d.exportName(dd.Index())
	err = d.a.inbox.Add(nbdserver.Export{Name: name, Description: "draft of disk " + key, Device: dd.Device(),
		PreferredBlock: uint32(min(dd.ClusterSize(), 64<<10))})
	if err != nil {
		return DraftDiskInfo{}, err
	}
	d.disks[dd.Index()] = dd
	return DraftDiskInfo{Index: dd.Index(), ClusterSize: dd.ClusterSize(), URI: d.a.inboxAt.URI(name)}, nil
}

func (d *Draft) exportName(index int) string { return fmt.Sprintf("%s/disk-%d", d.info.Job, index) }

func (d *Draft) overError() error {
	if err := d.Err(); err != nil {
		return err
	}
	return &Error{Code: CodeInvalid, Msg: fmt.Sprintf("The draft of job %s is over.", d.info.Job), Hint: "Begin another backup."}
}

// Differs reports which clusters from first on differ from the parent's, going
// by their digests.
func (d *Draft) Differs(ctx context.Context, index int, first int64, sums []image.Digest) ([]bool, error) {
	d.mu.Lock()
	dd, over := d.disks[index], d.over
	d.mu.Unlock()
	if over {
		return nil, d.overError()
	}
	if dd == nil {
		return nil, &Error{Code: CodeNotFound, Msg: fmt.Sprintf("The draft has no disk %d.", index), Hint: "Add the disk first."}
	}
	differs, err := dd.Differs(ctx, first, sums)
	return differs, userError(err)
}

// Report records how far the capture is. It returns why the draft was discarded,
// if it was.
func (d *Draft) Report(p capture.Progress) error {
	if err := d.Err(); err != nil {
		return err
	}
	d.job.progress(p.Phase, p.Disk, p.Done, p.Total)
	return nil
}

// Commit makes the point and ends the job.
func (d *Draft) Commit(ctx context.Context, r CommitRequest) (Point, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return Point{}, d.overError()
	}
	info := repository.PointInfo{Job: d.info.Job, Source: r.Config.Source}
	config, err := json.Marshal(r.Config)
	if err != nil {
		return Point{}, fmt.Errorf("encode configuration: %w", err)
	}
	info.Config = config
	for _, disk := range r.Disks {
		di := repository.DiskInfo{Key: disk.Key, Token: disk.Token, Mode: disk.Mode, Reason: disk.Reason}
		if disk.Audit != nil {
			audit := repository.Audit(*disk.Audit)
			di.Audit = &audit
			d.a.opts.Metrics.audit(audit)
		}
		info.Disks = append(info.Disks, di)
	}
	if err := d.release(); err != nil {
		return Point{}, d.end(nil, err)
	}
	// The job cannot be cancelled any more: the point is made now, or not at all.
	point, err := d.draft.Commit(context.WithoutCancel(ctx), info)
	if err != nil {
		return Point{}, d.end(nil, userError(err))
	}
	return point, d.end(BackupResult{Point: point, Disks: r.Disks}, nil)
}

// BackupResult is the result of a backup job.
type BackupResult struct {
	Point Point                `json:"point"`
	Disks []capture.DiskResult `json:"disks"` // what was read and sent
}

// Abort discards the draft and ends its job with the reason. It does nothing
// once the draft is over.
func (d *Draft) Abort(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return
	}
	if why == nil {
		why = errors.New("backup was given up")
	}
	err := errors.Join(d.release(), d.draft.Abort(context.Background()))
	if err != nil {
		d.a.log.Error("draft could not be discarded", "job", d.info.Job, "err", err)
	}
	_ = d.end(nil, why) // the job has it
}

// release withdraws the disks' exports. The caller holds d.mu.
func (d *Draft) release() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var errs []error
	for index := range d.disks {
		errs = append(errs, d.a.inbox.Remove(ctx, d.exportName(index)))
		delete(d.disks, index)
	}
	return errors.Join(errs...)
}

// end closes the books on the draft and returns why. The caller holds d.mu.
func (d *Draft) end(result any, why error) error {
	if why != nil {
		// After a failed commit the repository's draft is over; aborting it again
		// does nothing.
		why = errors.Join(why, d.draft.Abort(context.Background()))
	}
	d.over, d.why = true, why
	close(d.ended)
	d.a.mu.Lock()
	delete(d.a.drafts, d.info.Job)
	d.a.mu.Unlock()
	d.job.finish(result, why)
	return why
}
