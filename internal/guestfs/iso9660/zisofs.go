package iso9660

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// zisofs says how a file is compressed: in blocks, each by itself. The format is that
// of libisofs' doc/zisofs_format.txt.
type zisofs struct {
	size   int64 // of the content, in bytes
	header int64 // bytes in front of the table of blocks
	block  int64 // bytes of content in each
	err    error // why it cannot be read
}

// zisofsMagic begins a file.
const zisofsMagic = "\x37\xe4\x53\x96\xc9\xdb\xd6\x07"

// parseZisofs reads an entry ZF.
func parseZisofs(e entry) *zisofs {
	z := &zisofs{}
	if len(e) < 16 {
		z.err = fmt.Errorf("an entry of %d bytes about compression: %w", len(e), fsys.ErrCorrupt)
		return z
	}
	z.size, z.header = int64(e.number(8)), int64(e[6])*4
	shift := e[7]
	switch {
	case string(e[4:6]) != "pz":
		z.size = int64(le.Uint32(e[8:]))
		z.err = fmt.Errorf("compression %q: %w", e[4:6], fsys.ErrUnsupported)
	case shift < 12 || shift > 17:
		z.err = fmt.Errorf("compressed blocks of 1<<%d bytes: %w", shift, fsys.ErrUnsupported)
	default:
		z.block = 1 << shift
	}
	return z
}

// check compares what is said of a file with how much of it is stored.
func (z *zisofs) check(stored int64) error {
	if z.err != nil {
		return z.err
	}
	blocks := (z.size + z.block - 1) / z.block
	if z.header < 16 || z.header+(blocks+1)*4 > stored {
		return fmt.Errorf("%d compressed blocks in %d bytes: %w", blocks, stored, fsys.ErrCorrupt)
	}
	return nil
}

// inflated is the block that was inflated last.
type inflated struct {
	id    fsys.ID
	index int64
	data  []byte
}

// inflate reads content that is compressed, all of p being within it.
func (f *FS) inflate(id fsys.ID, n *inode, p []byte, off int64) error {
	for len(p) > 0 {
		b, err := f.inflateBlock(id, n, off/n.zisofs.block)
		if err != nil {
			return err
		}
		c := copy(p, b[off%n.zisofs.block:])
		p, off = p[c:], off+int64(c)
	}
	return nil
}

// inflateBlock returns one block. Nobody writes to it.
func (f *FS) inflateBlock(id fsys.ID, n *inode, index int64) ([]byte, error) {
	f.mu.Lock()
	last := f.last
	f.mu.Unlock()
	if last.data != nil && last.id == id && last.index == index {
		return last.data, nil
	}
	b, err := f.readBlock(n, index)
	if err != nil {
		return nil, fmt.Errorf("inflate block %d: %w", index, err)
	}
	f.mu.Lock()
	f.last = inflated{id, index, b}
	f.mu.Unlock()
	return b, nil
}

func (f *FS) readBlock(n *inode, index int64) ([]byte, error) {
	z := n.zisofs
	head := make([]byte, 16)
	if err := f.readStored(f.meta, n, head, 0); err != nil {
		return nil, err
	}
	if string(head[:8]) != zisofsMagic || int64(le.Uint32(head[8:])) != z.size || int64(head[12])*4 != z.header || 1<<head[13] != z.block {
		return nil, fmt.Errorf("the file's own header says otherwise: %w", fsys.ErrCorrupt)
	}
	var pointers [8]byte
	if err := f.readStored(f.meta, n, pointers[:], z.header+index*4); err != nil {
		return nil, err
	}
	at, end := int64(le.Uint32(pointers[:])), int64(le.Uint32(pointers[4:]))
	b := make([]byte, min(z.block, z.size-index*z.block))
	if at == end { // nothing but zeroes
		return b, nil
	}
	if end < at || end-at > 2*z.block {
		return nil, fmt.Errorf("it lies between bytes %d and %d: %w", at, end, fsys.ErrCorrupt)
	}
	stored := make([]byte, end-at)
	if err := f.readStored(f.vol, n, stored, at); err != nil {
		return nil, err
	}
	r, err := zlib.NewReader(bytes.NewReader(stored))
	if err == nil {
		_, err = io.ReadFull(r, b)
	}
	if err == nil {
		// What follows has to be the end, whose checksum is right.
		if n, end := r.Read(make([]byte, 1)); n != 0 || !errors.Is(end, io.EOF) {
			err = fmt.Errorf("it does not end with its content: %w", errors.Join(end, fsys.ErrCorrupt))
		}
	}
	if err != nil && !errors.Is(err, fsys.ErrCorrupt) {
		err = fmt.Errorf("%w: %w", err, fsys.ErrCorrupt)
	}
	return b, err
}
