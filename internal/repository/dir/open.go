package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// fileBytes returns the length of a file.
func fileBytes(path string) (int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// openChain is a disk of a point with all it builds on.
type openChain struct {
	chain   *image.Chain
	digests []*image.Digests // of the chain's layers; nil unless asked for
}

// Close closes all files.
func (c *openChain) Close() error {
	var errs []error
	for _, d := range c.digests {
		errs = append(errs, d.Close())
	}
	return errors.Join(append(errs, c.chain.Close())...)
}

// layers returns the disks that make up a disk's chain, itself first, and the
// points they belong to.
func (r *record) layers(p *pointRecord, d *repository.PointDisk) ([]*repository.PointDisk, []repository.PointID) {
	index := d.Index
	disks, points := []*repository.PointDisk{d}, []repository.PointID{p.ID}
	parent := d.Parent
	for i := len(r.Points) - 1; i >= 0 && parent != ""; i-- {
		if x := r.Points[i].disk(index); x != nil && x.File == parent {
			disks, points = append(disks, x), append(points, r.Points[i].ID)
			parent = x.Parent
		}
	}
	return disks, points
}

// openChain opens a disk of a point as the record says it is made up, with the
// digests if asked for. Files that are linked in another way are damaged.
func (r *Repository) openChain(v *vmFolder, rec *record, p *pointRecord, d *repository.PointDisk, digests bool) (*openChain, error) {
	c := &openChain{}
	err := c.open(v, rec, p, d, digests)
	if err == nil {
		return c, nil
	}
	if c.chain != nil {
		err = errors.Join(err, c.Close())
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, image.ErrCorrupt) || errors.Is(err, image.ErrNotQCOW2) ||
		errors.Is(err, image.ErrBadDigests) || errors.Is(err, errLinks) {
		err = &repository.CorruptError{VM: v.id, Name: rec.VM.Name, Point: p.ID, Disk: d.Key, Cluster: -1, File: d.File, Err: err}
	}
	return nil, err
}

// errLinks says that files are not backed by one another as the record says.
var errLinks = errors.New("files are not linked as they were")

func (c *openChain) open(v *vmFolder, rec *record, p *pointRecord, d *repository.PointDisk, digests bool) error {
	disks, points := rec.layers(p, d)
	names := make(map[string]int) // base names of files to indices in disks
	for i, x := range disks {
		names[filepath.Base(x.File)] = i
	}
	dropped := "" // the layer that may be missing, since it is being merged
	if rec.Merge != nil {
		for _, m := range rec.Merge.Disks {
			if i, ok := names[filepath.Base(m.Child)]; ok && m.Index == d.Index {
				names[filepath.Base(m.File)] = i
				dropped = m.Parent
			}
		}
	}
	var err error
	c.chain, err = image.OpenChain(v.file(d.File), image.ChainOptions{
		Format: "qcow2",
		LayerName: func(path string) string {
			if i, ok := names[filepath.Base(path)]; ok {
				return string(points[i])
			}
			return ""
		},
	})
	if err != nil {
		return err
	}
	next := 0
	for _, l := range c.chain.Layers() {
		if next < len(disks) && disks[next].File == dropped && names[filepath.Base(l.Path)] != next {
			next++
		}
		i, ok := names[filepath.Base(l.Path)]
		if !ok || i != next || filepath.Dir(l.Path) != filepath.Dir(v.file(d.File)) || l.Format != "qcow2" {
			return fmt.Errorf("%w: %s is backed by %s", errLinks, d.File, l.Path)
		}
		x := disks[i]
		if l.Size != x.Size || l.ClusterSize != x.ClusterSize {
			return fmt.Errorf("%w: %s is a disk of %d bytes in clusters of %d, not of %d and %d",
				errLinks, x.File, l.Size, l.ClusterSize, x.Size, x.ClusterSize)
		}
		if digests {
			if err := c.openDigests(v, x); err != nil {
				return err
			}
		}
		next++
	}
	if next < len(disks) && disks[next].File == dropped {
		next++
	}
	if next != len(disks) {
		return fmt.Errorf("%w: %s is not backed by %s", errLinks, disks[next-1].File, disks[next].File)
	}
	return nil
}

func (c *openChain) openDigests(v *vmFolder, x *repository.PointDisk) error {
	g, err := image.OpenDigests(v.file(x.Digests))
	if err != nil {
		return err
	}
	c.digests = append(c.digests, g)
	if o := g.Options(); o.Size != x.Size || o.ClusterSize != x.ClusterSize {
		return fmt.Errorf("%w: %s is about a disk of %d bytes", image.ErrBadDigests, x.Digests, o.Size)
	}
	return nil
}

// maxTries is how often a reader looks at a record that keeps changing.
const maxTries = 100

// OpenDisk implements repository.Repository.
func (r *Repository) OpenDisk(ctx context.Context, vm repository.VMID, point repository.PointID, disk int, o repository.OpenOptions) (repository.Disk, error) {
	d, err := r.openDisk(ctx, vm, point, disk, o)
	if err != nil {
		return nil, fmt.Errorf("open disk %d of point %s: %w", disk, point, err)
	}
	return d, nil
}

func (r *Repository) openDisk(ctx context.Context, vm repository.VMID, point repository.PointID, disk int, o repository.OpenOptions) (repository.Disk, error) {
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v, rec, before, err := r.findBytes(vm)
		if err != nil {
			return nil, err
		}
		p := rec.point(point)
		if p == nil {
			return nil, fmt.Errorf("%w: VM %s has no point %s", repository.ErrNoPoint, rec.VM.Name, point)
		}
		d := p.disk(disk)
		if d == nil {
			return nil, fmt.Errorf("%w: point %s of VM %s has no disk %d", repository.ErrNoDisk, point, rec.VM.Name, disk)
		}
		c, err := r.openChain(v, rec, p, d, o.Verified)
		if err == nil {
			return wrapDisk(c, v, rec, p, d, o.Verified)
		}
		// Was it because a removal took place meanwhile?
		if !v.changed(before) || try == maxTries {
			return nil, err
		}
	}
}

// changed reports whether the content of metadata.json is not what it was.
func (v *vmFolder) changed(before []byte) bool {
	after, err := os.ReadFile(v.metadata())
	return errors.Is(err, os.ErrNotExist) || err == nil && !bytes.Equal(before, after)
}

func wrapDisk(c *openChain, v *vmFolder, rec *record, p *pointRecord, d *repository.PointDisk, verified bool) (repository.Disk, error) {
	place := repository.CorruptError{VM: v.id, Name: rec.VM.Name, Point: p.ID, Disk: d.Key, Cluster: -1, File: d.File}
	if !verified {
		return &plainDisk{c.chain, c, place}, nil
	}
	dev, err := image.NewVerified(c.chain, c.digests)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &verifiedDisk{dev, c, place}, nil
}

// plainDisk is a disk of a point, with all that a chain can do.
type plainDisk struct {
	*image.Chain
	files *openChain
	place repository.CorruptError
}

// ReadAt names the disk where the chain finds damage.
func (d *plainDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return explain(d.Chain.ReadAt(ctx, p, off), d.place)
}

// Close closes the files.
func (d *plainDisk) Close() error { return d.files.Close() }

// verifiedDisk is a disk of a point that is checked as it is read.
type verifiedDisk struct {
	*image.Verified
	files *openChain
	place repository.CorruptError
}

// ReadAt names the disk and the cluster that is damaged.
func (d *verifiedDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return explain(d.Verified.ReadAt(ctx, p, off), d.place)
}

// Close closes the files.
func (d *verifiedDisk) Close() error { return d.files.Close() }

// explain says of which disk what is damaged.
func explain(err error, place repository.CorruptError) error {
	var damage *image.DamageError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &damage):
		place.Cluster, place.File = damage.Cluster, damage.File
	case !errors.Is(err, image.ErrCorrupt) && !errors.Is(err, image.ErrBadDigests):
		return err
	}
	place.Err = err
	return &place
}
