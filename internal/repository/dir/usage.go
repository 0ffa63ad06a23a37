package dir

import (
	"context"
	"fmt"

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
		p := repository.PointUsage{Point: rec.Points[i].ID, Ratio: 1}
		for _, d := range rec.Points[i].Disks {
			p.VirtualBytes += d.Size
			p.DataBytes += d.DataBytes
			p.StoredBytes += d.StoredBytes
			for _, name := range []string{d.File, d.Digests} {
				n, err := occupied(v.file(name))
				if err != nil {
					return repository.Usage{}, fmt.Errorf("measure point %s: %w", p.Point, err)
				}
				p.FileBytes += n
			}
		}
		if p.StoredBytes > 0 && p.DataBytes > 0 {
			p.Ratio = float64(p.DataBytes) / float64(p.StoredBytes)
		}
		u.Points = append(u.Points, p)
		u.FileBytes += p.FileBytes
	}
	return u, nil
}
