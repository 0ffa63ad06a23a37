package dir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// maxDiskSize is the largest disk in bytes: what an L1 table of 32 MiB describes
// with clusters of 64 KiB.
const maxDiskSize = 2 << 50

// draft is a point in the making.
type draft struct {
	r      *Repository
	v      *vmFolder
	o      repository.BeginOptions
	point  repository.PointID
	record *record      // as it is, or what a new machine begins with
	parent *pointRecord // nil for a full
	lock   *lock        // nil once the draft is over
	disks  []*draftDisk
	kind   image.Compression
	level  int
}

// Begin implements repository.Repository.
func (r *Repository) Begin(ctx context.Context, o repository.BeginOptions) (repository.Draft, error) {
	d, err := r.beginDraft(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("begin point of VM %s: %w", o.Name, err)
	}
	return d, nil
}

func (r *Repository) beginDraft(ctx context.Context, o repository.BeginOptions) (*draft, error) {
	if err := checkName(o.Name); err != nil {
		return nil, fmt.Errorf("%w: %w", repository.ErrInvalid, err)
	}
	if err := r.ReadOnly(); err != nil {
		return nil, err
	}
	v, err := r.folder(o.VM)
	if err != nil {
		return nil, err
	}
	d := &draft{r: r, v: v, o: o}
	if d.kind, d.level, err = parseCompress(o.Compress); err != nil {
		return nil, err
	}
	if d.lock, err = r.lockVM(ctx, v, o.Name, o.Holder); err != nil {
		return nil, err
	}
	if err := d.begin(); err != nil {
		return nil, errors.Join(err, d.discard())
	}
	return d, nil
}

// parseCompress takes apart what BeginOptions.Compress may be.
func parseCompress(s string) (image.Compression, int, error) {
	name, level, found := strings.Cut(s, ":")
	n, err := 0, error(nil)
	if found {
		n, err = strconv.Atoi(level)
	}
	switch {
	case (s == "" || s == "zlib") && !found:
		return image.Deflate, 0, nil
	case name == "zstd" && err == nil && (!found || n >= 1 && n <= 22):
		return image.Zstd, n, nil
	}
	return 0, 0, fmt.Errorf("%w: compression %q is none of zlib, zstd, zstd:1 to zstd:22", repository.ErrInvalid, s)
}

func (d *draft) begin() error {
	rec, err := d.v.load()
	if err != nil {
		return err
	}
	now := d.r.now().UTC()
	if rec == nil {
		rec = &record{Format: metadataFormat, VM: vmRecord{UUID: d.v.id, Created: now}}
	} else if !d.o.Full {
		d.parent = rec.latest()
	}
	d.record = rec
	d.point = rec.VM.Last.Next(now)
	if err := mkdir(d.r.fs, d.v.path); err != nil {
		return err
	}
	b, err := seal(draftRecord{Format: draftFormat, Point: d.point, Holder: d.o.Holder})
	if err != nil {
		return err
	}
	_, err = replaceFile(d.r.fs, filepath.Join(d.v.path, draftName), b)
	return err
}

// Point implements repository.Draft.
func (d *draft) Point() repository.PointID { return d.point }

// Parent implements repository.Draft.
func (d *draft) Parent() *repository.Point {
	if d.parent == nil {
		return nil
	}
	p := d.record.export(d.parent)
	return &p
}

// draftDisk is one disk of a draft.
type draftDisk struct {
	out    repository.PointDisk // as it will be in the record
	path   string               // of the QCOW2 file in the making
	parent *openChain           // nil for a full
	w      *image.Writer
	in     *image.Ingest
}

// AddDisk implements repository.Draft.
func (d *draft) AddDisk(ctx context.Context, key string, size int64) (repository.DraftDisk, error) {
	x, err := d.addDisk(ctx, key, size)
	if err != nil {
		return nil, fmt.Errorf("add disk %s to point %s: %w", key, d.point, err)
	}
	d.disks = append(d.disks, x)
	return x, nil
}

func (d *draft) addDisk(ctx context.Context, key string, size int64) (*draftDisk, error) {
	if d.lock == nil {
		return nil, errors.New("the draft is over")
	}
	if err := checkKey(key); err != nil {
		return nil, fmt.Errorf("%w: %w", repository.ErrInvalid, err)
	}
	if size < 0 || size > maxDiskSize {
		return nil, fmt.Errorf("%w: a disk of %d bytes", repository.ErrInvalid, size)
	}
	index, err := d.index(key)
	if err != nil {
		return nil, err
	}
	x := &draftDisk{out: repository.PointDisk{Key: key, Index: index, Size: size, Kind: repository.Full, ClusterSize: d.o.ClusterSize}}
	if x.out.ClusterSize == 0 {
		x.out.ClusterSize = 64 << 10
	}
	folder := filepath.Join(d.v.path, diskDir(index))
	if err := mkdir(d.r.fs, folder); err != nil {
		return nil, err
	}
	if err := d.build(ctx, x); err != nil {
		return nil, errors.Join(err, x.close(), removeFile(d.r.fs, x.path))
	}
	return x, nil
}

// index returns the number of the disk with a key, which is not in the draft yet.
func (d *draft) index(key string) (int, error) {
	next := 0
	for _, x := range d.record.Disks {
		next = max(next, x.Index+1)
	}
	for _, x := range d.disks {
		if x.out.Key == key {
			return 0, errors.New("it is in the draft already")
		}
		next = max(next, x.out.Index+1)
	}
	if i, ok := d.record.indexOf(key); ok {
		return i, nil
	}
	if next >= maxDisks {
		return 0, fmt.Errorf("the VM has had %d disks", next)
	}
	return next, nil
}

// build makes the QCOW2 file of a disk and opens it for writing.
func (d *draft) build(ctx context.Context, x *draftDisk) error {
	co := image.CreateOptions{Size: x.out.Size, Compression: d.kind}
	wo := image.WriterOptions{CompressionLevel: d.level, Direct: true}
	in := image.IngestOptions{Compress: d.o.Compress != ""}
	if d.parent != nil && d.parent.disk(x.out.Index) != nil {
		p := d.parent.disk(x.out.Index)
		c, err := d.openParent(p)
		if err != nil {
			return err
		}
		x.parent = c
		x.out.Kind, x.out.Parent, x.out.ClusterSize = repository.Incremental, p.File, p.ClusterSize
		co.BackingFile, co.BackingFormat = filepath.Base(p.File), "qcow2"
		wo.Backing, in.Parent, in.ParentDigests = c.chain, c.chain, c.digests
	}
	co.ClusterSize = x.out.ClusterSize
	name := stem(d.o.Name, x.out.Index, x.out.Kind, d.point)
	x.out.File, x.out.Digests = name+imageSuffix, name+digestsSuffix
	x.path = d.v.file(x.out.File) + partialSuffix
	if err := image.Create(x.path, co); err != nil {
		return err
	}
	var err error
	if x.w, err = image.OpenWriter(x.path, wo); err != nil {
		return err
	}
	x.in, err = image.NewIngest(ctx, x.w, in)
	return err
}

// openParent opens the disk that a draft builds on, without digests if those are
// damaged: content is compared by itself then.
func (d *draft) openParent(p *repository.PointDisk) (*openChain, error) {
	c, err := d.r.openChain(d.v, d.record, d.parent, p, true)
	if err == nil {
		return c, nil
	}
	plain, plainErr := d.r.openChain(d.v, d.record, d.parent, p, false)
	if plainErr != nil {
		return nil, err
	}
	d.r.log.Warn("digests of the parent cannot be used", "vm", d.v.id, "disk", p.Key, "err", err)
	return plain, nil
}

// close gives up what is open of the disk.
func (x *draftDisk) close() error {
	var errs []error
	if x.in != nil {
		errs = append(errs, x.in.Close())
	}
	if x.w != nil {
		errs = append(errs, x.w.Close())
	}
	if x.parent != nil {
		errs = append(errs, x.parent.Close())
	}
	x.in, x.w, x.parent = nil, nil, nil
	return errors.Join(errs...)
}

// Device implements repository.DraftDisk.
func (x *draftDisk) Device() block.Device { return x.in }

// Index implements repository.DraftDisk.
func (x *draftDisk) Index() int { return x.out.Index }

// ClusterSize implements repository.DraftDisk.
func (x *draftDisk) ClusterSize() int64 { return x.out.ClusterSize }

// Differs implements repository.DraftDisk.
func (x *draftDisk) Differs(ctx context.Context, first int64, sums []image.Digest) ([]bool, error) {
	return x.in.Differs(ctx, first, sums)
}

// Abort implements repository.Draft.
func (d *draft) Abort(context.Context) error {
	if d.lock == nil {
		return nil
	}
	if err := d.discard(); err != nil {
		return fmt.Errorf("abort point %s of VM %s: %w", d.point, d.o.Name, err)
	}
	return nil
}

// discard ends a draft that is not to be. What cannot be removed now is removed by
// who takes the machine's lock next.
func (d *draft) discard() error {
	var errs []error
	for _, x := range d.disks {
		// A file that is going to be removed may fail to be closed.
		_ = x.close()
	}
	if d.point != "" {
		_, err := d.v.removeDraft(d.point)
		if rec, loadErr := d.v.load(); err == nil && loadErr == nil && rec == nil {
			err = d.v.removeEmpty()
		}
		errs = append(errs, err)
	}
	l := d.lock
	d.lock = nil
	return errors.Join(append(errs, l.release())...)
}

// checkConfig returns the configuration in compact form, and its key.
func checkConfig(config json.RawMessage) (json.RawMessage, string, error) {
	if len(config) == 0 {
		return nil, "", nil
	}
	if len(config) > maxConfig {
		return nil, "", fmt.Errorf("configuration has %d bytes, more than %d", len(config), maxConfig)
	}
	var v any
	if err := json.Unmarshal(config, &v); err != nil {
		return nil, "", fmt.Errorf("configuration is no JSON: %w", err)
	}
	// Through the encoder, as the record will have it.
	b, err := json.Marshal(config)
	if err != nil {
		return nil, "", err
	}
	return b, hexSum(image.Sum(b)), nil
}
