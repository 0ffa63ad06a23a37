package dir

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// Usage implements repository.Repository.
func (r *Repository) Usage(ctx context.Context, vm repository.VMID) (repository.Usage, error) {
	v, rec, err := r.find(vm)
	if err != nil {
		return repository.Usage{}, err
	}
	var u repository.Usage
	for i := range rec.Points {
		if err := ctx.Err(); err != nil {
			return repository.Usage{}, err
		}
		p, err := v.usage(&rec.Points[i])
		if err != nil {
			return repository.Usage{}, fmt.Errorf("measure point %s: %w", p.Point, err)
		}
		u.Points = append(u.Points, p)
		u.FileBytes += p.FileBytes
	}
	return u, nil
}

// usage measures one point.
func (v *vmFolder) usage(point *pointRecord) (repository.PointUsage, error) {
	p := repository.PointUsage{Point: point.ID, Ratio: 1}
	for _, d := range point.Disks {
		p.VirtualBytes += d.Size
		p.DataBytes += d.DataBytes
		for _, name := range []string{d.File, d.Digests} {
			n, err := occupied(v.file(name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return p, err
			}
			p.FileBytes += n
		}
		// Clusters that were given up in the file take room, but hold nothing: what
		// is stored as it is takes what it has. To find damage is not for here.
		stored := d.DataBytes
		if tables, err := tableBytes(v.file(d.File)); err == nil {
			stored = min(stored, max(d.StoredBytes-tables, 0))
		}
		p.StoredBytes += stored
	}
	if p.StoredBytes > 0 {
		p.Ratio = float64(p.DataBytes) / float64(p.StoredBytes)
	}
	return p, nil
}

// tableBytes returns what of a QCOW2 file is not guest data: its header, and its
// tables and refcounts. Only the two top tables are read, so that it costs the same
// for a file of any length.
func tableBytes(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h, err := image.ReadHeader(f)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	size := h.ClusterSize()
	l1 := int64(h.L1Size) * 8
	refs := int64(h.RefcountTableClusters) * size
	l2, err := entries(f, h.L1Offset, l1)
	blocks, refsErr := entries(f, h.RefcountTableOffset, refs)
	if err := errors.Join(err, refsErr); err != nil {
		return 0, fmt.Errorf("read tables of %s: %w", path, err)
	}
	return size + (l1+size-1)/size*size + refs + (l2+blocks)*size, nil
}

// entries counts the entries of a table of a QCOW2 file that refer to a cluster.
func entries(f io.ReaderAt, off, n int64) (count int64, err error) {
	const offsetMask = 0x00fffffffffffe00
	table := make([]byte, n)
	if _, err := f.ReadAt(table, off); err != nil {
		return 0, err
	}
	for i := 0; i+8 <= len(table); i += 8 {
		if binary.BigEndian.Uint64(table[i:])&offsetMask != 0 {
			count++
		}
	}
	return count, nil
}
