package image

import (
	"errors"
	"fmt"
	"os"
)

// CreateOptions say what a new file is like. Everything but Size has a default.
type CreateOptions struct {
	Size          int64       // virtual size in bytes
	ClusterSize   int64       // power of two, 512 to 2 MiB; default 64 KiB
	RefcountBits  int         // power of two, 1 to 64; default 16, the only one of version 2
	Version       int         // 2 or 3; default 3
	ExtendedL2    bool        // 32 subclusters a cluster; from 16 KiB on
	Compression   Compression // of compressed clusters; default Deflate
	BackingFile   string      // as it goes into the header; default none
	BackingFormat string      // "qcow2" or "raw"; should go with every BackingFile
	Extensions    []Extension // further header extensions
	Mode          os.FileMode // permissions before umask; default 0o600
}

// Create makes a new QCOW2 file at path, without data. It is an error if there is
// a file already. The file is durable after the first Flush of a Writer, and its
// name once the folder was synced.
func Create(path string, o CreateOptions) error {
	h, err := o.header()
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	if o.Mode == 0 {
		o.Mode = 0o600
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, o.Mode)
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	if err := errors.Join(format(diskFile{f}, h), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("create %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// header checks the options and puts them into a header, without the tables.
func (o CreateOptions) header() (*Header, error) {
	if o.ClusterSize == 0 {
		o.ClusterSize = 64 << 10
	}
	if o.RefcountBits == 0 {
		o.RefcountBits = 16
	}
	if o.Version == 0 {
		o.Version = 3
	}
	clusterBits, ok := log2(o.ClusterSize)
	if !ok || clusterBits < minClusterBits || clusterBits > maxClusterBits {
		return nil, fmt.Errorf("cluster size %d is no power of two from 512 to 2 MiB", o.ClusterSize)
	}
	if o.ExtendedL2 && clusterBits < 14 {
		return nil, fmt.Errorf("clusters of %d bytes are too small for subclusters", o.ClusterSize)
	}
	order, ok := log2(int64(o.RefcountBits))
	if !ok || order > 6 {
		return nil, fmt.Errorf("refcount width %d is no power of two from 1 to 64", o.RefcountBits)
	}
	if o.Version != 2 && o.Version != 3 {
		return nil, fmt.Errorf("version %d is neither 2 nor 3", o.Version)
	}
	if o.Version == 2 && (order != 4 || o.ExtendedL2 || o.Compression != Deflate) {
		return nil, errors.New("version 2 has no refcount widths but 16, no subclusters and no compression but deflate")
	}
	h := &Header{
		Version: uint32(o.Version), ClusterBits: clusterBits, Size: o.Size,
		RefcountOrder: order, Compression: o.Compression, BackingFile: o.BackingFile,
	}
	if o.ExtendedL2 {
		h.Incompatible |= IncompatExtendedL2
	}
	if o.Compression != Deflate {
		h.Incompatible |= IncompatCompression
	}
	if o.BackingFormat != "" {
		h.Extensions = append(h.Extensions, Extension{extBackingFormat, []byte(o.BackingFormat)})
	}
	h.Extensions = append(h.Extensions, o.Extensions...)
	if o.Size < 0 || h.l1Needed()*8 > maxL1Bytes {
		return nil, fmt.Errorf("size %d is out of range for clusters of %d bytes", o.Size, o.ClusterSize)
	}
	h.L1Size = uint32(max(1, h.l1Needed()))
	if _, err := h.Encode(); err != nil {
		return nil, err
	}
	return h, nil
}

// log2 returns the exponent of a power of two.
func log2(v int64) (uint32, bool) {
	for i := range uint32(63) {
		if v == 1<<i {
			return i, true
		}
	}
	return 0, false
}

// format writes the header and the tables of an empty image to an empty file.
func format(st storage, h *Header) error {
	cs := h.ClusterSize()
	r := &refcounts{
		st: st, clusterBits: h.ClusterBits, order: h.RefcountOrder,
		table: make([]uint64, cs/8), tableOff: cs,
		blocks: newMetaCache(maxL1Bytes, cs), wrote: func() {}, freed: func(int64) {},
		tables: map[int64]struct{}{},
	}
	// The header in cluster 0, the refcount table, its first block; then whatever
	// it takes to get so many clusters in a row for the L1 table.
	if _, err := r.ensureBlock(0, 2); err != nil {
		return err
	}
	if err := r.set(0, 2, 1); err != nil {
		return err
	}
	r.reserve(0, 2*cs)
	l1, err := r.allocExactly((int64(h.L1Size)*8 + cs - 1) >> h.ClusterBits)
	if err != nil {
		return err
	}
	for _, run := range r.retired {
		if err := r.release(run); err != nil {
			return err
		}
	}
	h.L1Offset = l1.first << h.ClusterBits
	h.RefcountTableOffset, h.RefcountTableClusters = r.tableOff, uint32(r.tableClusters())
	header, err := h.Encode()
	if err != nil {
		return err
	}
	if err := st.Truncate(r.virgin << h.ClusterBits); err != nil {
		return err
	}
	if err := writeTables(st, r.blocks.collect()); err != nil {
		return err
	}
	if err := writeAll(st, encodeEntries(r.table), r.tableOff); err != nil {
		return err
	}
	return writeAll(st, header, 0)
}
