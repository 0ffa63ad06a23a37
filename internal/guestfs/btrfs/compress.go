package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/anchore/go-lzo"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// expanders fill out from what a compressed extent holds, by the number of the
// compression. What the extent has too little leaves zeroes, what it has too much
// is cut off. In may have more behind its end.
var expanders = []func(s *store, out, in []byte) error{1: expandZlib, 2: expandLZO, 3: expandZstd}

// extentKey tells compressed extents apart.
type extentKey struct {
	disk, diskLen, ram uint64
	compression        uint8
}

// expanded returns what a compressed extent holds. Nobody changes it.
func (s *store) expanded(e *extent, verify bool) ([]byte, error) {
	out := make([]byte, e.ram)
	if e.kind == extentInline {
		return out, s.expand(e, out, e.inline)
	}
	k := extentKey{e.disk, e.diskLen, e.ram, e.compression}
	if b, ok := s.expansions.Get(k); ok {
		return b, nil
	}
	in := make([]byte, e.diskLen)
	// A copy that cannot be expanded is as bad as one with a wrong checksum.
	err := s.space.read(in, e.disk, false, func(in []byte) error {
		if verify {
			if err := s.verify(in, e.disk); err != nil {
				return err
			}
		}
		clear(out)
		return s.expand(e, out, in)
	})
	if err != nil {
		return nil, err
	}
	s.expansions.Put(k, out, int64(len(out)))
	return out, nil
}

func (s *store) expand(e *extent, out, in []byte) error {
	if err := expanders[e.compression](s, out, in); err != nil {
		return fmt.Errorf("expand extent at %d: %w: %w", e.disk, err, fsys.ErrCorrupt)
	}
	return nil
}

var zlibReaders, zstdReaders sync.Pool

func expandZlib(_ *store, out, in []byte) error {
	r, ok := zlibReaders.Get().(io.ReadCloser)
	var err error
	if ok {
		err = r.(zlib.Resetter).Reset(bytes.NewReader(in), nil)
	} else {
		r, err = zlib.NewReader(bytes.NewReader(in))
	}
	if err != nil {
		return err
	}
	defer zlibReaders.Put(r)
	_, err = readUpTo(r, out)
	return err
}

func expandZstd(_ *store, out, in []byte) error {
	r, ok := zstdReaders.Get().(*zstd.Decoder)
	var err error
	if ok {
		err = r.Reset(bytes.NewReader(in))
	} else {
		r, err = zstd.NewReader(bytes.NewReader(in), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxExpanded), zstd.WithDecoderMaxMemory(4*maxExpanded))
	}
	if err != nil {
		return err
	}
	defer zstdReaders.Put(r)
	n, err := readUpTo(r, out)
	if n > 0 && errors.Is(err, zstd.ErrMagicMismatch) { // zeroes behind the only frame
		err = nil
	}
	return err
}

// readUpTo fills p as far as r goes.
func readUpTo(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	if n == len(p) || errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// expandLZO expands what is framed as "Compression, LZO" of the on-disk format
// says: the length of everything, and then, each with its length, the sectors.
func expandLZO(s *store, out, in []byte) error {
	sector := int(s.super.sectorSize)
	if len(in) < 8 || int64(le32(in)) > int64(len(in)) {
		return errors.New("lzo: a length is wrong")
	}
	in = in[:le32(in)]
	var buf []byte
	for at := 4; len(out) > 0 && at < len(in); {
		if left := sector - at%sector; left < 4 { // lengths do not cross sectors
			at += left
		}
		if at > len(in)-4 || int64(le32(in[at:])) > int64(len(in)-at-4) {
			return errors.New("lzo: the length of a sector is wrong")
		}
		from := at + 4
		at = from + int(le32(in[at:]))
		to := out[:min(sector, len(out))]
		if len(to) < sector {
			buf = make([]byte, sector)
			to = buf
		}
		n, err := lzo.Decompress(in[from:at], to)
		if err != nil {
			return err
		}
		out = out[copy(out, to[:n]):]
	}
	return nil
}
