package image

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
)

// findSnapshots reads the snapshot table and the snapshots' L1 tables (qcow2.txt,
// "Snapshots").
func (c *checker) findSnapshots(ctx context.Context) error {
	if c.h.Snapshots == 0 {
		return nil
	}
	r := bufio.NewReader(io.NewSectionReader(c.st, c.h.SnapshotsOffset, maxSnapshotTable))
	users := map[hostBytes]uint32{}
	pos := int64(0)
	for i := range c.h.Snapshots {
		l1, n, err := readSnapshot(r)
		if err != nil {
			c.problem(c.h.SnapshotsOffset+pos, "snapshot table ends in entry %d of %d", i, c.h.Snapshots)
			break
		}
		at := c.h.SnapshotsOffset + pos
		pos += n
		switch {
		case l1.off&(c.h.ClusterSize()-1) != 0 || l1.off < 0:
			c.problem(at, "L1 table of snapshot %d at %#x does not begin on a cluster", i, l1.off)
		case l1.n > maxL1Bytes:
			c.problem(at, "L1 table of snapshot %d has %d bytes, more than 32 MiB", i, l1.n)
		case l1.n > 0:
			users[l1]++
			c.shared = append(c.shared, l1)
		}
	}
	c.own = append(c.own, hostBytes{c.h.SnapshotsOffset, pos, "snapshot table"})
	// Tables that do not overlap cannot be larger altogether than the file. This
	// also bounds what a malicious file can make us read.
	left := c.size
	for l1, n := range users {
		if err := ctx.Err(); err != nil {
			return err
		}
		if left -= l1.n; left < 0 {
			c.problem(l1.off, "L1 tables of snapshots overlap")
			return nil
		}
		if err := c.findL2(l1.off, l1.n/8, n, false); err != nil {
			return err
		}
	}
	return nil
}

// readSnapshot reads an entry of the snapshot table: where the L1 table lies, and
// how long the entry is.
func readSnapshot(r *bufio.Reader) (l1 hostBytes, n int64, err error) {
	var b [40]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return l1, 0, err
	}
	be := binary.BigEndian
	l1 = hostBytes{int64(be.Uint64(b[:])), int64(be.Uint32(b[8:])) * 8, "L1 table of a snapshot"}
	n = 40 + int64(be.Uint32(b[36:])) + int64(be.Uint16(b[12:])) + int64(be.Uint16(b[14:]))
	padded := (n + 7) &^ 7
	// QEMU writes the table without padding behind the last entry's name.
	_, err = io.CopyN(io.Discard, r, n-40)
	if err == nil {
		_, _ = r.Discard(int(padded - n))
	}
	return l1, padded, err
}

// findBitmaps reads the bitmap directory (qcow2.txt, "Bitmaps"). Without the
// autoclear bit the extension is void, and what it refers to is leaked.
func (c *checker) findBitmaps(ctx context.Context) error {
	ext := c.h.extension(extBitmaps)
	if c.h.Autoclear&AutoclearBitmaps == 0 || ext == nil {
		return nil
	}
	if len(ext) < 24 {
		c.problem(0, "bitmaps extension has %d bytes", len(ext))
		return nil
	}
	be := binary.BigEndian
	count, size, off := be.Uint32(ext), int64(be.Uint64(ext[8:])), int64(be.Uint64(ext[16:]))
	if count > maxBitmaps || size < 0 || size > maxBitmapDirectory || off < 0 || off&(c.h.ClusterSize()-1) != 0 || off > c.size-size {
		c.problem(off, "directory of %d bitmaps has %d bytes", count, size)
		return nil
	}
	c.own = append(c.own, hostBytes{off, size, "bitmap directory"})
	dir := make([]byte, size)
	if err := readPadded(c.st, dir, off); err != nil {
		return err
	}
	left := c.size
	for i := range count {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(dir) < 24 {
			c.problem(off, "bitmap directory ends in entry %d of %d", i, count)
			return nil
		}
		t := hostBytes{int64(be.Uint64(dir)), int64(be.Uint32(dir[8:])) * 8, "bitmap table"}
		n := (24 + int64(be.Uint32(dir[20:])) + int64(be.Uint16(dir[18:])) + 7) &^ 7
		if t.off&(c.h.ClusterSize()-1) != 0 || t.off < 0 || t.off > c.size-t.n || left < t.n {
			c.problem(t.off, "table of bitmap %d has %d bytes", i, t.n)
		} else if t.n > 0 {
			c.bitmaps = append(c.bitmaps, t)
			left -= t.n
		}
		dir = dir[min(n, int64(len(dir))):]
	}
	return nil
}

// countBitmap counts what a bitmap table refers to.
func (c *checker) countBitmap(ctx context.Context, t hostBytes) error {
	const chunk = 64 << 10
	for i := int64(0); i < t.n/8; i += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		es, err := readEntries(c.st, t.off+i*8, min(chunk, t.n/8-i))
		if err != nil {
			return err
		}
		for k, e := range es {
			host := int64(e & entryOffset)
			if reserved := e &^ entryOffset; c.first && (reserved > 1 || reserved == 1 && host != 0) {
				c.problem(t.off+(i+int64(k))*8, "bitmap table entry has reserved bits set: %#x", e)
			}
			if host != 0 {
				c.count(host, c.h.ClusterSize(), 1, "bitmap data")
			}
		}
	}
	return nil
}
