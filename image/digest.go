package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math/bits"

	"github.com/zeebo/blake3"
)

// DigestSize is the length of a [Digest] in bytes.
const DigestSize = 32

// Digest is the digest of one cluster: BLAKE3-256 of its bytes as the guest sees
// them, uncompressed. A last cluster that the disk ends in the middle of is
// padded with zeroes.
type Digest [DigestSize]byte

// DigestAlgorithm is the name of the algorithm, as digests files give it.
const DigestAlgorithm = "blake3-256"

// Sum returns the digest of b, a whole cluster.
func Sum(b []byte) Digest { return blake3.Sum256(b) }

// A digests file says what one QCOW2 layer holds: the digest of each cluster of
// data, and which clusters are explicit zeroes. What the layer does not hold is
// not in it. All numbers are big-endian. It consists of a header, pages and a
// trailer:
//
//	header, 4096 bytes
//	    0   8  "SNDSDGST"
//	    8   4  version: 1
//	   12   4  cluster size, as a power of two: 9 to 21
//	   16   8  virtual size of the disk in bytes
//	   24  16  name of the algorithm, "blake3-256", padded with zeroes
//	   40      zeroes
//	 4092   4  CRC-32C of the 4092 bytes before
//
//	page, 4096 bytes each
//	    0   8  number of the page, from 0
//	    8   4  number of its entries: 1 to 101
//	   12   4  zeroes
//	   16  40  each entry
//	           zeroes
//	 4092   4  CRC-32C of the 4092 bytes before
//
//	entry, 40 bytes
//	    0   8  number of the cluster: guest offset by cluster size
//	    8  32  digest
//	  or, with bit 63 of the first number set, a run of clusters of zeroes
//	    0   8  number of the first cluster
//	    8   8  number of clusters
//	   16  24  zeroes
//
//	trailer, 64 bytes
//	    0   8  "SNDSDEND"
//	    8   8  number of pages
//	   16   8  number of clusters of data
//	   24   8  number of clusters of zeroes
//	   32  32  BLAKE3-256 of everything before
//
// Entries ascend, and runs do not overlap. Each page can be trusted by itself, so
// that a lookup reads a few pages and no more. An auditor needs no tool of ours:
//
//	head -c -32 X.digests | b3sum; tail -c 32 X.digests | xxd -p -c 32
//	dd if=/dev/nbd0 bs=64k skip=CLUSTER count=1 | b3sum
const (
	digestMagic      = "SNDSDGST"
	digestEndMagic   = "SNDSDEND"
	digestVersion    = 1
	digestPage       = 4096
	digestPageHead   = 16
	digestEntry      = 8 + DigestSize
	digestPerPage    = (digestPage - digestPageHead - 4) / digestEntry
	digestTrailer    = 64
	digestZeroes     = 1 << 63
	digestAlgorithms = 16 // bytes of the algorithm's name
)

var crc32c = crc32.MakeTable(crc32.Castagnoli)

// DigestOptions describe the layer that a digests file is about.
type DigestOptions struct {
	ClusterSize int64 // bytes, a power of two from 512 to 2 MiB
	Size        int64 // virtual size of the disk in bytes
}

func (o DigestOptions) validate() error {
	if o.ClusterSize < 1<<minClusterBits || o.ClusterSize > 1<<maxClusterBits || o.ClusterSize&(o.ClusterSize-1) != 0 {
		return fmt.Errorf("cluster size is %d", o.ClusterSize)
	}
	if o.Size < 0 {
		return fmt.Errorf("virtual size is %d", o.Size)
	}
	return nil
}

// clusterCount returns how many clusters a disk of size bytes has.
func clusterCount(size, clusterSize int64) int64 {
	n := size / clusterSize
	if size%clusterSize != 0 {
		n++
	}
	return n
}

// DigestSummary is what a finished digests file amounts to.
type DigestSummary struct {
	Data int64  // clusters of data
	Zero int64  // clusters of zeroes
	Sum  Digest // of the file, without the last 32 bytes, which are it
}

// DigestWriter writes a digests file in one pass and in constant memory. It does
// not make it durable.
type DigestWriter struct {
	w        io.Writer
	sum      hash.Hash
	clusters int64
	next     int64 // first cluster that may follow
	page     []byte
	entries  int
	pages    int64
	zero     int64 // first cluster of the pending run of zeroes
	zeroes   int64 // its length
	summary  DigestSummary
	err      error
}

// NewDigestWriter begins a digests file on w, which is written a page at a time.
func NewDigestWriter(w io.Writer, o DigestOptions) (*DigestWriter, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("begin digests: %w", err)
	}
	d := &DigestWriter{w: w, sum: blake3.New(), clusters: clusterCount(o.Size, o.ClusterSize), page: make([]byte, digestPage)}
	be := binary.BigEndian
	copy(d.page, digestMagic)
	be.PutUint32(d.page[8:], digestVersion)
	be.PutUint32(d.page[12:], uint32(bits.TrailingZeros64(uint64(o.ClusterSize))))
	be.PutUint64(d.page[16:], uint64(o.Size))
	copy(d.page[24:24+digestAlgorithms], DigestAlgorithm)
	return d, d.emit()
}

// emit seals the page at hand and writes it.
func (d *DigestWriter) emit() error {
	binary.BigEndian.PutUint32(d.page[digestPage-4:], crc32.Checksum(d.page[:digestPage-4], crc32c))
	err := d.write(d.page)
	clear(d.page)
	d.entries = 0
	return err
}

func (d *DigestWriter) write(b []byte) error {
	if d.err != nil {
		return d.err
	}
	d.sum.Write(b)
	if _, err := d.w.Write(b); err != nil {
		d.err = fmt.Errorf("write digests: %w", err)
	}
	return d.err
}

func (d *DigestWriter) entry(first uint64, payload []byte) error {
	at := digestPageHead + d.entries*digestEntry
	binary.BigEndian.PutUint64(d.page[at:], first)
	copy(d.page[at+8:], payload)
	if d.entries++; d.entries < digestPerPage {
		return d.err
	}
	return d.seal()
}

// seal finishes a page of entries.
func (d *DigestWriter) seal() error {
	binary.BigEndian.PutUint64(d.page, uint64(d.pages))
	binary.BigEndian.PutUint32(d.page[8:], uint32(d.entries))
	d.pages++
	return d.emit()
}

// claim checks that clusters [first, first+n) come next.
func (d *DigestWriter) claim(first, n int64) error {
	if d.err != nil {
		return d.err
	}
	if first < d.next || n <= 0 || first > d.clusters || n > d.clusters-first {
		return fmt.Errorf("write digests: %d clusters at %d do not follow %d of %d", n, first, d.next, d.clusters)
	}
	d.next = first + n
	return nil
}

// Add says that cluster, which lies behind all others so far, has the digest.
func (d *DigestWriter) Add(cluster int64, digest Digest) error {
	if err := d.claim(cluster, 1); err != nil {
		return err
	}
	if err := d.endZeroes(); err != nil {
		return err
	}
	d.summary.Data++
	return d.entry(uint64(cluster), digest[:])
}

// AddZeroes says that n clusters from first on, which lie behind all others so
// far, are explicit zeroes.
func (d *DigestWriter) AddZeroes(first, n int64) error {
	if err := d.claim(first, n); err != nil {
		return err
	}
	d.summary.Zero += n
	if d.zeroes > 0 && d.zero+d.zeroes == first {
		d.zeroes += n
		return nil
	}
	if err := d.endZeroes(); err != nil {
		return err
	}
	d.zero, d.zeroes = first, n
	return nil
}

func (d *DigestWriter) endZeroes() error {
	if d.zeroes == 0 {
		return nil
	}
	count := binary.BigEndian.AppendUint64(nil, uint64(d.zeroes))
	d.zeroes = 0
	return d.entry(uint64(d.zero)|digestZeroes, count)
}

// Finish writes what is left. The file is complete then, though not durable.
func (d *DigestWriter) Finish() (DigestSummary, error) {
	if err := d.endZeroes(); err != nil {
		return DigestSummary{}, err
	}
	if d.entries > 0 {
		if err := d.seal(); err != nil {
			return DigestSummary{}, err
		}
	}
	var t [digestTrailer]byte
	be := binary.BigEndian
	copy(t[:], digestEndMagic)
	be.PutUint64(t[8:], uint64(d.pages))
	be.PutUint64(t[16:], uint64(d.summary.Data))
	be.PutUint64(t[24:], uint64(d.summary.Zero))
	if err := d.write(t[:32]); err != nil {
		return DigestSummary{}, err
	}
	d.sum.Sum(d.summary.Sum[:0])
	if _, err := d.w.Write(d.summary.Sum[:]); err != nil {
		return DigestSummary{}, fmt.Errorf("write digests: %w", err)
	}
	d.err = errors.New("digests are finished")
	return d.summary, nil
}

// isZero reports whether b is nothing but zeroes.
func isZero(b []byte) bool {
	for len(b) > len(someZeroes) {
		if !bytes.Equal(b[:len(someZeroes)], someZeroes[:]) {
			return false
		}
		b = b[len(someZeroes):]
	}
	return bytes.Equal(b, someZeroes[:len(b)])
}
