package dir

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

func hexSum(d image.Digest) string { return hex.EncodeToString(d[:]) }

// Commit implements repository.Draft. In this order: everything in the files
// durable, the files under their final names, the names durable, metadata.json.
func (d *draft) Commit(ctx context.Context, info repository.PointInfo) (repository.Point, error) {
	if d.lock == nil {
		return repository.Point{}, fmt.Errorf("commit point %s: the draft is over", d.point)
	}
	p, unsure, err := d.commit(ctx, info)
	if err != nil {
		err = fmt.Errorf("commit point %s of VM %s: %w", d.point, d.o.Name, err)
		if unsure {
			// The files stay: metadata.json may name them. Who takes the lock next
			// finds out.
			l := d.lock
			d.lock = nil
			return p, errors.Join(err, l.release())
		}
		return p, errors.Join(err, d.discard())
	}
	d.cleanUp()
	return p, nil
}

// cleanUp ends a committed draft. Nothing that fails here makes it less committed.
func (d *draft) cleanUp() {
	for _, x := range d.disks {
		if err := x.close(); err != nil {
			d.r.log.Warn("disk of a committed draft not closed", "vm", d.v.id, "disk", x.out.Key, "err", err)
		}
	}
	if _, err := d.v.removeDraft(""); err != nil {
		d.r.log.Warn("draft not cleaned up; the next backup does it", "vm", d.v.id, "err", err)
	}
	if err := d.lock.release(); err != nil {
		d.r.log.Warn("lock not released", "vm", d.v.id, "err", err)
	}
	d.lock = nil
}

func (d *draft) commit(ctx context.Context, info repository.PointInfo) (p repository.Point, unsure bool, err error) {
	next, err := d.nextRecord(info)
	if err != nil {
		return p, false, err
	}
	for _, x := range d.disks {
		if err := d.finish(ctx, x); err != nil {
			return p, false, fmt.Errorf("disk %s: %w", x.out.Key, err)
		}
	}
	point := next.latest()
	for i, x := range d.disks {
		describe(&point.Disks[i], &x.out)
	}
	if err := ctx.Err(); err != nil {
		return p, false, err
	}
	for _, x := range d.disks {
		if err := d.publish(x); err != nil {
			return p, false, fmt.Errorf("disk %s: %w", x.out.Key, err)
		}
	}
	if err := d.v.writeChains(next); err != nil {
		return p, false, err
	}
	if unsure, err = d.v.writeRecord(next); err != nil {
		if !unsure {
			err = errors.Join(err, d.v.writeChains(d.record))
		}
		return p, unsure, err
	}
	return next.export(next.latest()), false, nil
}

// nextRecord returns the machine's record with the point, and checks what the
// caller says of it.
func (d *draft) nextRecord(info repository.PointInfo) (*record, error) {
	if len(d.disks) == 0 {
		return nil, errors.New("it has no disks")
	}
	config, key, err := checkConfig(info.Config)
	if err != nil {
		return nil, err
	}
	next := d.record.clone()
	next.VM.Name, next.VM.Last = d.o.Name, d.point
	if key != "" {
		configs := map[string]json.RawMessage{key: config}
		for k, c := range d.record.Configs {
			configs[k] = c
		}
		next.Configs = configs
	}
	p := pointRecord{ID: d.point, Name: d.o.Name, Job: info.Job, Source: info.Source, Created: d.r.now().UTC(), Config: key}
	infos := make(map[string]repository.DiskInfo)
	for _, i := range info.Disks {
		infos[i.Key] = i
	}
	for _, x := range d.disks {
		if i, ok := infos[x.out.Key]; ok {
			x.out.Token, x.out.Mode, x.out.Reason, x.out.Audit = i.Token, i.Mode, i.Reason, i.Audit
			delete(infos, x.out.Key)
		}
		if _, ok := next.indexOf(x.out.Key); !ok {
			next.Disks = append(next.Disks, diskRecord{x.out.Index, x.out.Key})
		}
		p.Disks = append(p.Disks, x.out)
	}
	for k := range infos {
		return nil, fmt.Errorf("there is no disk %q in the draft", k)
	}
	next.Points = append(next.Points, p)
	return next, nil
}

// describe takes over what became known of a disk when it was finished.
func describe(dst, src *repository.PointDisk) {
	dst.DigestsSum, dst.DataBytes, dst.ZeroBytes, dst.StoredBytes = src.DigestsSum, src.DataBytes, src.ZeroBytes, src.StoredBytes
}

// finish makes the files of a disk complete and durable, still in the making.
func (d *draft) finish(ctx context.Context, x *draftDisk) error {
	var stats image.IngestStats
	err := writeSynced(d.r.fs, d.v.file(x.out.Digests)+partialSuffix, func(w io.Writer) error {
		var err error
		stats, err = x.in.Finish(ctx, w)
		return err
	})
	if err != nil {
		return err
	}
	if err := x.close(); err != nil {
		return err
	}
	if err := d.r.fs.Sync(x.path); err != nil {
		return err
	}
	x.out.DigestsSum = hexSum(stats.Sum)
	x.out.DataBytes, x.out.ZeroBytes = stats.Data*x.out.ClusterSize, stats.Zero*x.out.ClusterSize
	x.out.StoredBytes, err = fileBytes(x.path)
	return err
}

// publish gives the files of a disk their names, durably.
func (d *draft) publish(x *draftDisk) error {
	for _, name := range []string{x.out.File, x.out.Digests} {
		path := d.v.file(name)
		if err := d.r.fs.Rename(path+partialSuffix, path); err != nil {
			return err
		}
	}
	return d.r.fs.SyncDir(filepath.Dir(d.v.file(x.out.File)))
}
