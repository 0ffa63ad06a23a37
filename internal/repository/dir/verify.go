package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// Verify implements repository.Repository. It takes no lock: where damage shows and
// the machine's record changed meanwhile, it looks again.
func (r *Repository) Verify(ctx context.Context, o repository.VerifyOptions) (*repository.Report, error) {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	folders, err := r.folders()
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if o.VM != "" {
		v, err := r.folder(o.VM)
		if err != nil {
			return nil, fmt.Errorf("verify: %w: %w", repository.ErrNoVM, err)
		}
		folders = []*vmFolder{v}
	} else if len(o.Points) > 0 {
		return nil, errors.New("verify: points of which machine?")
	}
	total := &repository.Report{Problems: []repository.Problem{}}
	progress := &progress{tell: o.Report}
	for _, v := range folders {
		report, err := r.verifyVM(ctx, v, o, progress)
		if err != nil {
			return nil, fmt.Errorf("verify VM %s: %w", v.id, err)
		}
		add(total, report)
	}
	return total, nil
}

// add adds what was found in a part to the whole.
func add(whole, part *repository.Report) {
	whole.VMs += part.VMs
	whole.Points += part.Points
	whole.Files += part.Files
	whole.Clusters += part.Clusters
	whole.Bytes += part.Bytes
	whole.Omitted += part.Omitted
	whole.Problems = append(whole.Problems, part.Problems...)
	whole.Notes = append(whole.Notes, part.Notes...)
}

// progress adds up what was read.
type progress struct {
	tell   func(repository.Status)
	mu     sync.Mutex // guards the field below and calls of tell
	status repository.Status
}

func (p *progress) update(fn func(*repository.Status)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn(&p.status)
	if p.tell != nil {
		p.tell(p.status)
	}
}

// verifyVM verifies a machine, again if its record changed while damage was found.
func (r *Repository) verifyVM(ctx context.Context, v *vmFolder, o repository.VerifyOptions, p *progress) (*repository.Report, error) {
	for try := 0; ; try++ {
		rec, before, err := loadRecord(v.metadata(), v.id)
		if err != nil {
			var damage *repository.CorruptError
			if !errors.As(err, &damage) {
				return nil, err
			}
			return &repository.Report{VMs: 1, Problems: []repository.Problem{{
				VM: v.id, File: metadataName, Cluster: -1, Off: -1, What: damage.Err.Error(), Affected: []repository.PointID{},
				Hint: "The files of its points are not concerned: each opens with qemu-img. Put back a copy of " +
					metadataName + ", or save the points that you need with qemu-img convert.",
			}}}, nil
		}
		if rec == nil || len(rec.Points) == 0 {
			if o.VM != "" {
				return nil, repository.ErrNoVM
			}
			return &repository.Report{}, nil
		}
		w := &verification{r: r, v: v, rec: rec, o: o, progress: p, report: &repository.Report{VMs: 1}, reading: new(sync.Mutex)}
		if err := w.run(ctx); err != nil {
			return nil, err
		}
		if w.report.OK() || try == 3 || !v.changed(before) {
			return w.report, nil
		}
	}
}

// verification is a look at one machine.
type verification struct {
	r        *Repository
	v        *vmFolder
	rec      *record
	o        repository.VerifyOptions
	progress *progress
	report   *repository.Report
	reading  *sync.Mutex  // held while pieces of a file are handed out: one file at a time
	pieces   chan<- piece // to the readers
}

// layerRef is a file to be verified.
type layerRef struct {
	point *pointRecord
	disk  *repository.PointDisk
}

func (w *verification) run(ctx context.Context) error {
	layers, err := w.choose()
	if err != nil {
		return err
	}
	w.progress.update(func(s *repository.Status) {
		for _, l := range layers {
			s.Total += l.disk.DataBytes
		}
	})
	// While one file is read the tables and digests of the next are looked at, so
	// that many small files keep all processors busy too.
	reports := make([]repository.Report, len(layers))
	g, gctx := errgroup.WithContext(ctx)
	pieces := make(chan piece, queuedPieces)
	w.pieces = pieces
	var reading sync.WaitGroup
	reading.Go(func() { w.readers(gctx, pieces) })
	g.SetLimit(2)
	for i, l := range layers {
		g.Go(func() error {
			one := *w
			one.report = &reports[i]
			return one.layer(gctx, l)
		})
	}
	err = g.Wait()
	close(pieces)
	reading.Wait()
	if err != nil {
		return err
	}
	for i := range reports {
		reports[i].Files = 1
		add(w.report, &reports[i])
	}
	return w.look()
}

// choose lists the files that the points chosen are made of, each once, oldest
// first.
func (w *verification) choose() ([]layerRef, error) {
	ids := w.o.Points
	if len(ids) == 0 {
		for _, p := range w.rec.Points {
			ids = append(ids, p.ID)
		}
	}
	wanted := make(map[string]bool)
	for _, id := range ids {
		p := w.rec.point(id)
		if p == nil {
			return nil, fmt.Errorf("%w: %s", repository.ErrNoPoint, id)
		}
		for i := range p.Disks {
			disks, _ := w.rec.layers(p, &p.Disks[i])
			for _, d := range disks {
				if wanted[d.File] {
					break
				}
				wanted[d.File] = true
			}
		}
	}
	w.report.Points += len(ids)
	var list []layerRef
	for i := range w.rec.Points {
		p := &w.rec.Points[i]
		for k := range p.Disks {
			if wanted[p.Disks[k].File] {
				list = append(list, layerRef{p, &p.Disks[k]})
			}
		}
	}
	return list, nil
}

// layer verifies one file: its structure, its links, its digests, its content.
func (w *verification) layer(ctx context.Context, l layerRef) error {
	f, err := image.OpenFile(w.v.file(l.disk.File))
	if err != nil {
		return w.blame(ctx, l, err)
	}
	defer f.Close()
	w.links(l, f)
	c, err := image.Check(ctx, w.v.file(l.disk.File))
	if err != nil {
		return w.blame(ctx, l, err)
	}
	for _, e := range c.Errors {
		w.problem(ctx, l, -1, "its structure is damaged: "+e.String())
	}
	w.report.Omitted += c.Corruptions - int64(len(c.Errors))
	if c.Leaks > 0 {
		w.report.Notes = append(w.report.Notes, fmt.Sprintf("%s: %d clusters of the file are lost, which takes room and nothing else", w.v.file(l.disk.File), c.Leaks))
	}
	g, err := image.OpenDigests(w.v.file(l.disk.Digests))
	if err == nil {
		defer g.Close()
		err = g.Check(ctx)
	}
	if err != nil {
		return w.blame(ctx, l, err)
	}
	if o := g.Options(); o.Size != f.Size() || o.ClusterSize != f.Header().ClusterSize() {
		w.problem(ctx, l, -1, fmt.Sprintf("its digests are about a disk of %d bytes", o.Size))
		return nil
	}
	if hexSum(g.Summary().Sum) != l.disk.DigestsSum && !w.rec.merging(*l.disk) {
		w.problem(ctx, l, -1, "its digests are not those that were recorded when it was committed")
	}
	return w.content(ctx, l, f, g)
}

// links compares the header with the record.
func (w *verification) links(l layerRef, f *image.File) {
	h := f.Header()
	if h.Size != l.disk.Size || h.ClusterSize() != l.disk.ClusterSize {
		w.problem(context.Background(), l, -1, fmt.Sprintf("it is a disk of %d bytes in clusters of %d, not of %d and %d",
			h.Size, h.ClusterSize(), l.disk.Size, l.disk.ClusterSize))
	}
	want := ""
	if l.disk.Parent != "" {
		want = filepath.Base(l.disk.Parent)
	}
	ok := h.BackingFile == want && (want == "" || h.BackingFormat() == "qcow2")
	if !ok && w.rec.Merge == nil {
		w.problem(context.Background(), l, -1, fmt.Sprintf("it is backed by %q (%s), not by %q", h.BackingFile, h.BackingFormat(), want))
	}
}

// blame makes a problem of an error about stored data. Other errors are returned.
func (w *verification) blame(ctx context.Context, l layerRef, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	w.problem(ctx, l, -1, err.Error())
	return nil
}

// problem adds damage to the report; cluster is -1 if it is the file's.
func (w *verification) problem(ctx context.Context, l layerRef, cluster int64, what string) {
	p := repository.Problem{
		VM: w.v.id, Name: w.rec.VM.Name, Point: l.point.ID, Disk: l.disk.Key, File: l.disk.File,
		Cluster: cluster, Off: -1, What: what, Affected: w.affected(ctx, l, cluster),
	}
	if cluster >= 0 {
		p.Off = cluster * l.disk.ClusterSize
	}
	list := make([]string, len(p.Affected))
	for i, id := range p.Affected {
		list[i] = string(id)
	}
	p.Hint = fmt.Sprintf("Disk %s cannot be trusted in %s; earlier points are not concerned. Make a full backup next, "+
		"then put %s back from a copy of the repository, or delete these points.", l.disk.Key, strings.Join(list, ", "), l.disk.File)
	w.report.Problems = append(w.report.Problems, p)
}

// affected lists the points that read a damaged file, or a cluster of it.
func (w *verification) affected(ctx context.Context, l layerRef, cluster int64) []repository.PointID {
	list := []repository.PointID{l.point.ID}
	for d := l.disk; ; {
		child, id := w.rec.childOf(d)
		if child == nil || cluster >= 0 && w.holds(ctx, child, cluster) {
			return list
		}
		list = append(list, id)
		d = child
	}
}

// holds reports whether a disk's digests say that its file holds a cluster.
func (w *verification) holds(ctx context.Context, d *repository.PointDisk, cluster int64) bool {
	g, err := image.OpenDigests(w.v.file(d.Digests))
	if err != nil {
		return false
	}
	defer g.Close()
	run, err := g.Lookup(ctx, cluster)
	return err == nil && run != nil
}

// look notes what in the machine's folder belongs to no point.
func (w *verification) look() error {
	note := func(format string, args ...any) {
		w.report.Notes = append(w.report.Notes, fmt.Sprintf(format, args...))
	}
	if w.rec.Merge != nil {
		note("VM %s: the removal of point %s is not finished; the next writer finishes it", w.v.id, w.rec.Merge.Point)
	}
	used := map[string]bool{}
	for _, p := range w.rec.Points {
		for _, d := range p.Disks {
			used[d.File], used[d.Digests] = true, true
		}
	}
	if w.rec.Merge != nil {
		for _, m := range w.rec.Merge.Disks {
			used[m.File], used[m.Digests] = true, true
		}
	}
	for _, name := range w.rec.Trash {
		used[name] = true
	}
	for _, d := range w.rec.Disks {
		folder := filepath.Join(w.v.path, diskDir(d.Index))
		entries, err := os.ReadDir(folder)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			name := diskDir(d.Index) + "/" + e.Name()
			f, ours := parsePointFile(e.Name())
			if e.Name() == chainName || used[name] || strings.HasSuffix(e.Name(), partialSuffix) || ours && f.point > w.rec.VM.Last {
				continue
			}
			note("%s belongs to no point", filepath.Join(folder, e.Name()))
		}
		if c := w.rec.chainOf(d); c != nil && !w.chainMatches(d, c) {
			note("%s does not agree with %s; the next backup writes it anew", filepath.Join(folder, chainName), metadataName)
		}
	}
	return nil
}

// chainMatches reports whether the chain.json of a disk says what the record says.
func (w *verification) chainMatches(d diskRecord, want *chainFile) bool {
	b, err := readBounded(filepath.Join(w.v.path, diskDir(d.Index), chainName), maxChainFile)
	if err != nil {
		return false
	}
	have, err := parseChainFile(b)
	return err == nil && have.Key == want.Key && have.VM == want.VM && slices.Equal(have.Files, want.Files)
}
