package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// Delete implements repository.Repository. A point that others build on is merged
// into the next one, which takes over what that one lacks: it costs the time and,
// until the point's files go, the room of what is taken over, where the file system
// cannot share blocks between files. Records find room in the reserve.
func (r *Repository) Delete(ctx context.Context, vm repository.VMID, points ...repository.PointID) error {
	v, rec, err := r.find(vm)
	if err != nil {
		return fmt.Errorf("delete points: %w", err)
	}
	if err := r.ReadOnly(); err != nil {
		return fmt.Errorf("delete points of VM %s: %w", rec.VM.Name, err)
	}
	defer r.SpendReserve()()
	l, err := r.lockVM(ctx, v, rec.VM.Name, "removal of points")
	if err != nil {
		return fmt.Errorf("delete points of VM %s: %w", rec.VM.Name, err)
	}
	err = r.delete(ctx, v, points)
	if err = errors.Join(err, l.release()); err != nil {
		return fmt.Errorf("delete points of VM %s: %w", rec.VM.Name, err)
	}
	return nil
}

func (r *Repository) delete(ctx context.Context, v *vmFolder, points []repository.PointID) error {
	rec, err := v.load()
	if err != nil {
		return err
	}
	if rec == nil {
		return repository.ErrNoVM
	}
	for _, id := range points {
		if rec.point(id) == nil {
			return fmt.Errorf("%w: %s", repository.ErrNoPoint, id)
		}
	}
	if rec.Merge != nil {
		next, err := r.resumeMerge(ctx, v, rec)
		switch {
		case err == nil:
			if err := v.tidy(next); err != nil {
				return err
			}
			rec = next
		case !rec.free(points): // else it may be what makes room for the merge
			return fmt.Errorf("finish the removal of point %s: %w", rec.Merge.Point, err)
		}
	}
	drop, merge := plan(rec, points)
	if len(drop) > 0 {
		if rec, err = v.drop(rec, drop); err != nil {
			return err
		}
		r.log.Info("points deleted", "vm", v.id, "points", drop)
	}
	for _, id := range merge {
		if rec, err = r.mergePoint(ctx, v, rec, id); err != nil {
			return fmt.Errorf("point %s: %w", id, err)
		}
		r.log.Info("point merged into the next and deleted", "vm", v.id, "point", id)
	}
	return nil
}

// plan says how points are removed: drop those that no remaining point builds on,
// all at once, then merge the others, one after another, oldest first, so that what
// goes through several of them is copied forward once at a time.
func plan(rec *record, points []repository.PointID) (drop, merge []repository.PointID) {
	gone := make(map[repository.PointID]bool)
	for _, id := range points {
		gone[id] = true
	}
	needed := make(map[string]bool)
	for i := len(rec.Points) - 1; i >= 0; i-- {
		p := &rec.Points[i]
		if gone[p.ID] && !slices.ContainsFunc(p.Disks, func(d repository.PointDisk) bool { return needed[d.File] }) {
			drop = append(drop, p.ID)
			continue
		}
		if gone[p.ID] {
			merge = append(merge, p.ID)
		}
		for _, d := range p.Disks {
			// Of a point to be merged, a disk that nobody needs keeps nothing alive.
			if !gone[p.ID] || needed[d.File] {
				needed[d.Parent] = true
			}
		}
	}
	slices.Reverse(drop)
	slices.Reverse(merge)
	return drop, merge
}

// free reports whether points can be dropped without regard to the merge that is
// not finished.
func (r *record) free(points []repository.PointID) bool {
	drop, merge := plan(r, points)
	return len(merge) == 0 && !slices.ContainsFunc(drop, func(id repository.PointID) bool {
		return id == r.Merge.Point || slices.ContainsFunc(r.point(id).Disks, r.merging)
	})
}

// merging reports whether a disk is just taking in what is below it.
func (r *record) merging(d repository.PointDisk) bool {
	return r.Merge != nil && slices.ContainsFunc(r.Merge.Disks, func(m mergeDisk) bool { return m.Child == d.File })
}

// drop removes points that no other builds on.
func (v *vmFolder) drop(rec *record, points []repository.PointID) (*record, error) {
	next := rec.clone()
	next.Points = slices.DeleteFunc(next.Points, func(p pointRecord) bool {
		if !slices.Contains(points, p.ID) {
			return false
		}
		for _, d := range p.Disks {
			next.Trash = append(next.Trash, d.File, d.Digests)
		}
		return true
	})
	if _, err := v.writeRecord(next); err != nil {
		return nil, err
	}
	return next, v.tidy(next)
}

// mergePoint removes a point that others build on: it records the intent, and does
// it.
func (r *Repository) mergePoint(ctx context.Context, v *vmFolder, rec *record, id repository.PointID) (*record, error) {
	next := rec.clone()
	next.Merge = intend(next, id)
	if err := r.checkRoom(v, next); err != nil {
		return nil, err
	}
	if _, err := v.writeRecord(next); err != nil {
		return nil, err
	}
	next, err := r.resumeMerge(ctx, v, next)
	if err != nil {
		return nil, err
	}
	return next, v.tidy(next)
}

// intend says what merging a point comes to. Files are named for what they become:
// what builds on a full is one.
func intend(rec *record, id repository.PointID) *mergeRecord {
	m := &mergeRecord{Point: id}
	for _, parent := range rec.point(id).Disks {
		child, point := rec.childOf(&parent)
		if child == nil {
			continue
		}
		base := strings.TrimSuffix(child.File, "-"+child.Kind+"-"+string(point)+imageSuffix)
		base += "-" + parent.Kind + "-" + string(point)
		m.Disks = append(m.Disks, mergeDisk{
			Index: parent.Index, Parent: parent.File, Child: child.File,
			File: base + imageSuffix, Digests: base + digestsSuffix,
		})
	}
	return m
}

// childOf returns the disk that builds on d, and its point; nil if there is none.
func (r *record) childOf(d *repository.PointDisk) (*repository.PointDisk, repository.PointID) {
	for i := range r.Points {
		if x := r.Points[i].disk(d.Index); x != nil && x.Parent == d.File {
			return x, r.Points[i].ID
		}
	}
	return nil, ""
}

// File systems on which files share blocks, so that a merge takes no room.
const (
	magicBtrfs = 0x9123683e
	magicXFS   = 0x58465342
	magicZFS   = 0x2fc12fc1
)

// checkRoom refuses a merge that would fill the file system: it is for making room
// that points are deleted.
func (r *Repository) checkRoom(v *vmFolder, rec *record) error {
	var s syscall.Statfs_t
	if err := syscall.Statfs(v.path, &s); err != nil {
		return fmt.Errorf("ask for free space: %w", err)
	}
	if s.Type == magicBtrfs || s.Type == magicXFS || s.Type == magicZFS {
		return nil
	}
	need, err := v.mergeBytes(rec)
	if err != nil {
		return err
	}
	// The reserve is for records: a merge that has begun has to be brought to its end.
	if free := max(0, int64(s.Bavail)*s.Bsize-v.reserveFor()); free < need {
		return fmt.Errorf("%w: merging it into the next point may take %d bytes, and %d are free; "+
			"delete the newest points, or all of the chain", repository.ErrNoSpace, need, free)
	}
	return nil
}

// mergeBytes returns how much room the rest of a merge may take.
func (v *vmFolder) mergeBytes(rec *record) (need int64, err error) {
	for _, m := range rec.Merge.Disks {
		backing, err := backingName(v.file(m.Child))
		if err != nil {
			return 0, err
		}
		if backing != filepath.Base(m.Parent) {
			continue // it has all it needs
		}
		n, err := occupied(v.file(m.Parent))
		if err != nil {
			return 0, err
		}
		child, _ := rec.childOf(rec.point(rec.Merge.Point).disk(m.Index))
		now, err := fileBytes(v.file(m.Child))
		if err != nil {
			return 0, err
		}
		need += max(0, n-max(0, now-child.StoredBytes)) // less what it took in before it was stopped
	}
	return need, nil
}

// occupied returns what a file takes on its file system, in bytes.
func occupied(path string) (int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512, nil
	}
	return st.Size(), nil
}

// resumeMerge does what the record's intent says, from wherever it was left. Each
// step leaves all points readable, and may be done again.
func (r *Repository) resumeMerge(ctx context.Context, v *vmFolder, rec *record) (*record, error) {
	if err := r.checkRoom(v, rec); err != nil {
		return nil, err
	}
	for _, m := range rec.Merge.Disks {
		if err := r.mergeDisk(ctx, v, rec, m); err != nil {
			return nil, fmt.Errorf("merge disk %d: %w", m.Index, err)
		}
	}
	next, err := v.merged(rec)
	if err != nil {
		return nil, err
	}
	if _, err := v.writeRecord(next); err != nil {
		return nil, err
	}
	return next, nil
}

// mergeDisk brings what file Parent holds into file Child, takes Parent out from
// below it, and gives it its new name.
func (r *Repository) mergeDisk(ctx context.Context, v *vmFolder, rec *record, m mergeDisk) error {
	parent := rec.point(rec.Merge.Point).disk(m.Index)
	child, _ := rec.childOf(parent)
	below := ""
	if parent.Parent != "" {
		below = filepath.Base(parent.Parent)
	}
	// Once the child is backed by what was below, it holds all it needs.
	backing, err := backingName(v.file(m.Child))
	if err != nil {
		return err
	}
	if backing == filepath.Base(m.Parent) {
		if err := r.bring(ctx, v, m); err != nil {
			return err
		}
		if err := r.mergeDigests(ctx, v, parent, child); err != nil {
			return err
		}
		if err := rebase(ctx, v.file(m.Child), below); err != nil {
			return err
		}
	}
	if m.File == m.Child {
		return nil
	}
	for _, l := range [][2]string{{m.Child, m.File}, {child.Digests, m.Digests}} {
		if err := linkFile(v.fs, v.file(l[0]), v.file(l[1])); err != nil {
			return err
		}
	}
	if err := v.fs.SyncDir(filepath.Dir(v.file(m.File))); err != nil {
		return err
	}
	if grandchild, _ := rec.childOf(child); grandchild != nil {
		return rebase(ctx, v.file(grandchild.File), filepath.Base(m.File))
	}
	return nil
}

// bring copies what the child lacks from its parent, durably.
func (r *Repository) bring(ctx context.Context, v *vmFolder, m mergeDisk) (err error) {
	chain, err := image.OpenChain(v.file(m.Parent), image.ChainOptions{Format: "qcow2"})
	if err != nil {
		return err
	}
	defer chain.Close()
	parent, err := image.OpenFile(v.file(m.Parent))
	if err != nil {
		return err
	}
	defer parent.Close()
	child, err := image.OpenWriter(v.file(m.Child), image.WriterOptions{Backing: chain})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, child.Close()) }()
	return image.Merge(ctx, child, parent, nil)
}

// mergeDigests puts the digests of what the child holds now in place of those it
// had. Both say the same of the disk as long as the parent is below.
func (r *Repository) mergeDigests(ctx context.Context, v *vmFolder, parent, child *repository.PointDisk) error {
	var known []*image.Digests
	for _, d := range []*repository.PointDisk{child, parent} {
		g, err := image.OpenDigests(v.file(d.Digests))
		if err != nil {
			return err
		}
		defer g.Close()
		known = append(known, g)
	}
	path := v.file(child.Digests)
	temp := path + partialSuffix
	err := writeSynced(v.fs, temp, func(w io.Writer) error {
		_, err := image.MergeDigests(ctx, v.file(child.File), known, w)
		return err
	})
	if err == nil {
		err = v.fs.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, removeFile(v.fs, temp))
	}
	return v.fs.SyncDir(filepath.Dir(path))
}

// backingName returns the name of the backing file in a file's header.
func backingName(path string) (string, error) {
	f, err := image.OpenFile(path)
	if err != nil {
		return "", err
	}
	return f.Header().BackingFile, f.Close()
}

// rebase changes the name of the backing file in a file's header, if it is not that
// already.
func rebase(ctx context.Context, path, name string) error {
	have, err := backingName(path)
	if err != nil || have == name {
		return err
	}
	w, err := image.OpenWriter(path, image.WriterOptions{})
	if err != nil {
		return err
	}
	format := "qcow2"
	if name == "" {
		format = ""
	}
	return errors.Join(w.Rebase(ctx, name, format), w.Close())
}

// merged returns the record as it is after the merge.
func (v *vmFolder) merged(rec *record) (*record, error) {
	next := rec.clone()
	next.Merge = nil
	gone := next.point(rec.Merge.Point)
	for _, m := range rec.Merge.Disks {
		parent := gone.disk(m.Index)
		child, _ := next.childOf(parent)
		grandchild, _ := next.childOf(child)
		g, err := image.OpenDigests(v.file(m.Digests))
		if err != nil {
			return nil, err
		}
		sum := g.Summary()
		if err := g.Close(); err != nil {
			return nil, err
		}
		if m.File != m.Child {
			next.Trash = append(next.Trash, child.File, child.Digests)
		}
		child.File, child.Digests, child.Kind, child.Parent = m.File, m.Digests, parent.Kind, parent.Parent
		child.DigestsSum = hexSum(sum.Sum)
		child.DataBytes, child.ZeroBytes = sum.Data*child.ClusterSize, sum.Zero*child.ClusterSize
		if child.StoredBytes, err = fileBytes(v.file(m.File)); err != nil {
			return nil, err
		}
		if grandchild != nil {
			grandchild.Parent = m.File
		}
	}
	for _, d := range gone.Disks {
		next.Trash = append(next.Trash, d.File, d.Digests)
	}
	next.Points = slices.DeleteFunc(next.Points, func(p pointRecord) bool { return p.ID == rec.Merge.Point })
	return next, nil
}
