package dir

import (
	"context"
	"fmt"
	"sync"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// Bounds of a verification's memory.
const (
	windowClusters = 16384   // whose digests are compared with the tables at a time
	pieceBytes     = 1 << 20 // read and hashed at a time by one worker
	queuedPieces   = 256     // found in the tables and not read yet
	maxPerFile     = 100     // problems told of one file
)

// damage is a cluster that is not as it should be.
type damage struct {
	cluster int64
	what    string
}

// contentCheck compares what one file holds with its digests.
type contentCheck struct {
	f       *image.File
	g       *image.Digests
	cs      int64
	lax     bool // the file may hold more than the digests say
	pieces  chan<- piece
	pending sync.WaitGroup // pieces that were handed out

	mu      sync.Mutex // guards the fields below
	read    int64      // clusters
	found   []damage
	omitted int64
}

// piece is a run of clusters of data and what their digests have to be.
type piece struct {
	of    *contentCheck
	first int64
	sums  []image.Digest
}

// readers reads and hashes pieces of all files, on several processors: small files
// keep them busy as large ones do.
func (w *verification) readers(ctx context.Context, pieces <-chan piece) {
	var all sync.WaitGroup
	for range w.o.Workers {
		all.Go(func() {
			var buf []byte
			for p := range pieces {
				if n := max(pieceBytes, p.of.cs); int64(len(buf)) < n {
					buf = make([]byte, n)
				}
				p.of.compare(ctx, p, buf)
				w.progress.update(func(s *repository.Status) { s.Done += int64(len(p.sums)) * p.of.cs })
				p.of.pending.Done()
			}
		})
	}
	all.Wait()
}

// content reads all that a file holds, in the order of the disk, and compares it
// with the digests, which have to be of just that. One file is read after another.
func (w *verification) content(ctx context.Context, l layerRef, f *image.File, g *image.Digests) error {
	c := &contentCheck{f: f, g: g, cs: l.disk.ClusterSize, lax: w.rec.merging(*l.disk), pieces: w.pieces}
	err := w.handOut(ctx, l, c)
	c.pending.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return w.blame(ctx, l, err)
	}
	w.report.Clusters += c.read
	w.report.Bytes += c.read * c.cs
	for _, d := range c.found {
		w.problem(ctx, l, d.cluster, d.what)
	}
	w.report.Omitted += c.omitted
	return nil
}

// handOut hands the pieces of a file to the readers.
func (w *verification) handOut(ctx context.Context, l layerRef, c *contentCheck) error {
	w.reading.Lock()
	defer w.reading.Unlock()
	w.progress.update(func(s *repository.Status) { s.File = w.v.file(l.disk.File) })
	total := (c.f.Size() + c.cs - 1) / c.cs
	for first := int64(0); first < total; first += windowClusters {
		if err := c.window(ctx, first, min(windowClusters, total-first)); err != nil {
			return err
		}
	}
	return nil
}

func (c *contentCheck) damaged(cluster int64, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.found) == maxPerFile {
		c.omitted++
		return
	}
	c.found = append(c.found, damage{cluster, fmt.Sprintf(format, args...)})
}

// What the digests say of a cluster.
const (
	saysNothing = iota
	saysZeroes
	saysData
)

// window compares tables and digests of n clusters from first on, and hands their
// data to the workers.
func (c *contentCheck) window(ctx context.Context, first, n int64) error {
	says := make([]uint8, n)
	var sums []image.Digest // of those that are data
	at := make([]int32, n)
	err := c.g.Range(ctx, first, n, func(r *image.DigestRun) error {
		if !r.Zero {
			says[r.First-first], at[r.First-first] = saysData, int32(len(sums))
			sums = append(sums, r.Digest)
			return nil
		}
		for i := range r.Count {
			says[r.First-first+i] = saysZeroes
		}
		return nil
	})
	if err != nil {
		return err
	}
	off := first * c.cs
	err = c.f.Runs(ctx, off, min(n*c.cs, c.f.Size()-off), func(r image.Run) error {
		return c.run(ctx, r, first, says, at, sums)
	})
	if err != nil {
		return err
	}
	for i, s := range says {
		if s != saysNothing {
			c.damaged(first+int64(i), "the file does not hold it, though its digests have it")
		}
	}
	return nil
}

// run compares one run of the file's tables with the digests and strikes out what
// was met.
func (c *contentCheck) run(ctx context.Context, r image.Run, first int64, says []uint8, at []int32, sums []image.Digest) error {
	var p piece
	flush := func() error {
		if len(p.sums) == 0 {
			return nil
		}
		p.of = c
		c.pending.Add(1)
		select {
		case c.pieces <- p:
		case <-ctx.Done():
			c.pending.Done()
			return ctx.Err()
		}
		p = piece{}
		return nil
	}
	lo, hi := r.Off/c.cs, (r.Off+r.Len+c.cs-1)/c.cs
	for cluster := lo; cluster < hi; cluster++ {
		i := cluster - first
		held := uint8(saysData)
		if r.Content == image.Zeroed {
			held = saysZeroes
		}
		said := says[i]
		says[i] = saysNothing
		if said == held && held == saysData {
			if len(p.sums) == 0 {
				p.first = cluster
			}
			p.sums = append(p.sums, sums[at[i]])
			if int64(len(p.sums)) < max(1, pieceBytes/c.cs) {
				continue
			}
		} else if said != held && !(c.lax && said == saysNothing) {
			c.damaged(cluster, "the file holds %s for it, its digests say %s", named(held), named(said))
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return flush()
}

func named(s uint8) string {
	return [...]string{saysNothing: "nothing", saysZeroes: "zeroes", saysData: "data"}[s]
}

// compare reads and hashes one piece, unless ctx has ended.
func (c *contentCheck) compare(ctx context.Context, p piece, buf []byte) {
	n := int64(len(p.sums))
	off := p.first * c.cs
	size := min(n*c.cs, c.f.Size()-off)
	b := buf[:n*c.cs]
	clear(b[size:])
	err := c.f.ReadAt(ctx, b[:size], off)
	if ctx.Err() != nil {
		return
	}
	for i, want := range p.sums {
		cluster := b[int64(i)*c.cs : int64(i+1)*c.cs]
		if err != nil {
			// One by one, to find out which cannot be read.
			at := off + int64(i)*c.cs
			if one := c.f.ReadAt(ctx, cluster[:min(c.cs, c.f.Size()-at)], at); one != nil {
				c.damaged(p.first+int64(i), "it cannot be read: %v", one)
				continue
			}
		}
		if image.Sum(cluster) != want {
			c.damaged(p.first+int64(i), "its content is not what its digest says")
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read += n
}
