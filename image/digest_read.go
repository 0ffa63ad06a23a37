package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/zeebo/blake3"
)

// ErrBadDigests says that a digests file is damaged or contradicts itself.
var ErrBadDigests = errors.New("digests file is damaged")

func badDigests(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBadDigests, fmt.Sprintf(format, args...))
}

// Digests is an open digests file. Only a page or two are in memory at a time;
// all methods may be called concurrently.
type Digests struct {
	r        io.ReaderAt
	close    func() error
	name     string
	opts     DigestOptions
	clusters int64
	pages    int64
	summary  DigestSummary
}

// OpenDigests opens the digests file at path and checks its header and its
// length. Pages are checked as they are read, all of them by [Digests.Check].
// The error wraps ErrBadDigests or ErrUnsupported where the content is the cause.
func OpenDigests(path string) (*Digests, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, fmt.Errorf("open digests: %w", err)
	}
	st, err := f.Stat()
	if err == nil {
		var d *Digests
		if d, err = ReadDigests(f, st.Size()); err == nil {
			d.name, d.close = path, f.Close
			return d, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("open digests %s: %w", path, err), f.Close())
}

// ReadDigests is OpenDigests on size bytes of r.
func ReadDigests(r io.ReaderAt, size int64) (*Digests, error) {
	pages := (size - digestPage - digestTrailer) / digestPage
	if size < digestPage+digestTrailer || size != digestPage+pages*digestPage+digestTrailer {
		return nil, badDigests("its length is %d", size)
	}
	d := &Digests{r: r, pages: pages, close: func() error { return nil }}
	b := make([]byte, digestPage)
	if err := d.readSealed(b, 0); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	be := binary.BigEndian
	if string(b[:8]) != digestMagic {
		return nil, badDigests("it does not begin with %s", digestMagic)
	}
	if v := be.Uint32(b[8:]); v != digestVersion {
		return nil, fmt.Errorf("%w: digests of version %d; this program reads version %d", ErrUnsupported, v, digestVersion)
	}
	if name := string(bytes.TrimRight(b[24:24+digestAlgorithms], "\x00")); name != DigestAlgorithm {
		return nil, fmt.Errorf("%w: digests by algorithm %q; this program knows %s", ErrUnsupported, name, DigestAlgorithm)
	}
	bits := be.Uint32(b[12:])
	if bits < minClusterBits || bits > maxClusterBits {
		return nil, badDigests("its cluster size is 2^%d", bits)
	}
	d.opts = DigestOptions{ClusterSize: 1 << bits, Size: int64(be.Uint64(b[16:]))}
	if d.opts.Size < 0 {
		return nil, badDigests("its disk has %d bytes", be.Uint64(b[16:]))
	}
	d.clusters = clusterCount(d.opts.Size, d.opts.ClusterSize)
	return d, d.readTrailer(size)
}

func (d *Digests) readTrailer(size int64) error {
	var t [digestTrailer]byte
	if err := readExactly(d.r, t[:], size-digestTrailer); err != nil {
		return fmt.Errorf("trailer: %w", err)
	}
	be := binary.BigEndian
	pages, data, zero := be.Uint64(t[8:]), be.Uint64(t[16:]), be.Uint64(t[24:])
	all := uint64(d.clusters)
	if string(t[:8]) != digestEndMagic || pages != uint64(d.pages) || data > all || zero > all-data {
		return badDigests("its trailer counts %d pages, %d and %d clusters", pages, data, zero)
	}
	d.summary = DigestSummary{Data: int64(data), Zero: int64(zero), Sum: Digest(t[32:])}
	return nil
}

func readExactly(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = badDigests("it ends at %d", off+int64(n))
	}
	return err
}

// readSealed reads a page at off and checks its seal.
func (d *Digests) readSealed(b []byte, off int64) error {
	if err := readExactly(d.r, b, off); err != nil {
		return err
	}
	if crc32.Checksum(b[:digestPage-4], crc32c) != binary.BigEndian.Uint32(b[digestPage-4:]) {
		return badDigests("checksum of the page at %d does not match", off)
	}
	return nil
}

// Close closes the file.
func (d *Digests) Close() error { return d.close() }

// Path returns the name under which the file was opened, "" for a reader.
func (d *Digests) Path() string { return d.name }

// Options returns the cluster size and the virtual size that the file is about.
func (d *Digests) Options() DigestOptions { return d.opts }

// Summary returns what the trailer says. Only Check finds out whether it is true.
func (d *Digests) Summary() DigestSummary { return d.summary }

// DigestRun is what a layer holds of one cluster of data, or of a run of
// clusters of zeroes.
type DigestRun struct {
	First  int64 // number of the cluster
	Count  int64 // clusters, > 0; 1 unless Zero
	Zero   bool
	Digest Digest // unless Zero
}

// page reads page i into b and its entries into dst. It returns the entries,
// which ascend and lie on the disk.
func (d *Digests) page(i int64, b []byte, dst []DigestRun) ([]DigestRun, error) {
	if err := d.readSealed(b, digestPage*(1+i)); err != nil {
		return nil, err
	}
	be := binary.BigEndian
	n := be.Uint32(b[8:])
	if be.Uint64(b) != uint64(i) || n < 1 || n > digestPerPage || be.Uint32(b[12:]) != 0 {
		return nil, badDigests("page %d is numbered %d and has %d entries", i, be.Uint64(b), n)
	}
	next := int64(0)
	for k := range int(n) {
		e := b[digestPageHead+k*digestEntry:][:digestEntry]
		first := be.Uint64(e)
		r := DigestRun{First: int64(first &^ digestZeroes), Count: 1, Zero: first&digestZeroes != 0}
		if r.Zero {
			r.Count = int64(be.Uint64(e[8:]))
			if !isZero(e[16:]) {
				return nil, badDigests("entry %d of page %d has bytes that must be zero", k, i)
			}
		} else {
			r.Digest = Digest(e[8:])
		}
		if r.First < next || r.Count <= 0 || r.First >= d.clusters || r.Count > d.clusters-r.First {
			return nil, badDigests("entry %d of page %d is %d clusters at %d, after %d of %d",
				k, i, r.Count, r.First, next, d.clusters)
		}
		next = r.First + r.Count
		dst = append(dst, r)
	}
	if !isZero(b[digestPageHead+int(n)*digestEntry : digestPage-4]) {
		return nil, badDigests("page %d has bytes that must be zero behind its entries", i)
	}
	return dst, nil
}

// Range calls fn, in ascending order, for what the layer holds of the n clusters
// from first on; runs of zeroes are cut to that. fn must not keep its argument.
func (d *Digests) Range(ctx context.Context, first, n int64, fn func(*DigestRun) error) error {
	end := first + n
	b := make([]byte, digestPage)
	list := make([]DigestRun, 0, digestPerPage)
	i, err := d.seek(first, b)
	if err != nil {
		return d.explain(err)
	}
	next := int64(0)
	for ; i < d.pages; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if list, err = d.page(i, b, list[:0]); err != nil {
			return d.explain(err)
		}
		if list[0].First < next {
			return d.explain(badDigests("page %d begins with cluster %d, after %d", i, list[0].First, next))
		}
		for k := range list {
			r := &list[k]
			next = r.First + r.Count
			if next <= first {
				continue
			}
			if r.First >= end {
				return nil
			}
			if r.First < first {
				r.First, r.Count = first, next-first
			}
			r.Count = min(r.Count, end-r.First)
			if err := fn(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// seek returns the last page that begins at or before cluster, or page 0.
func (d *Digests) seek(cluster int64, b []byte) (int64, error) {
	lo, hi := int64(0), d.pages // page lo begins at or before it, or is 0; page hi behind it
	for hi-lo > 1 {
		mid := lo + (hi-lo)/2
		if err := d.readSealed(b, digestPage*(1+mid)); err != nil {
			return 0, err
		}
		if int64(binary.BigEndian.Uint64(b[digestPageHead:])&^digestZeroes) <= cluster {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo, nil
}

// explain adds the file's name to an error about its content.
func (d *Digests) explain(err error) error {
	if d.name == "" {
		return fmt.Errorf("read digests: %w", err)
	}
	return fmt.Errorf("read digests %s: %w", d.name, err)
}

// Lookup returns what the layer holds of a cluster; nil if nothing.
func (d *Digests) Lookup(ctx context.Context, cluster int64) (*DigestRun, error) {
	var found *DigestRun
	err := d.Range(ctx, cluster, 1, func(r *DigestRun) error {
		copied := *r
		found = &copied
		return nil
	})
	return found, err
}

// Check reads all of the file: the checksum at its end, each page, and whether
// they add up to what the trailer says.
func (d *Digests) Check(ctx context.Context) error {
	sum := blake3.New()
	body := io.NewSectionReader(d.r, 0, digestPage*(1+d.pages)+digestTrailer-DigestSize)
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := body.Read(buf)
		sum.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return d.explain(err)
		}
	}
	if !bytes.Equal(sum.Sum(nil), d.summary.Sum[:]) {
		return d.explain(badDigests("checksum of the file does not match"))
	}
	var have DigestSummary
	err := d.Range(ctx, 0, d.clusters, func(r *DigestRun) error {
		if r.Zero {
			have.Zero += r.Count
		} else {
			have.Data++
		}
		return nil
	})
	if err != nil {
		return err
	}
	if have.Data != d.summary.Data || have.Zero != d.summary.Zero {
		return d.explain(badDigests("it has %d clusters of data and %d of zeroes where its trailer says %d and %d",
			have.Data, have.Zero, d.summary.Data, d.summary.Zero))
	}
	return nil
}
