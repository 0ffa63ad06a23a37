package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds the memory that a hostile frame can ask for. It is what
// every zstd decoder has to support, and four clusters of the largest size.
const maxZstdWindow = 8 << 20

// pools keeps scratch memory and decompressors between uses. Its zero value is
// ready. A chain has one for all its files.
type pools struct {
	merges  sync.Pool // *merge
	streams sync.Pool // *[]byte
	deflate sync.Pool // io.ReadCloser that is a flate.Resetter
	zstd    sync.Pool // *zstd.Decoder
}

func (p *pools) merge() *merge {
	if m, ok := p.merges.Get().(*merge); ok {
		return m
	}
	return new(merge)
}

// decompress fills dst, one cluster, from the stream that b begins with. What
// follows the stream in b is ignored, as is what the stream has beyond dst: the
// format gives the length of neither.
func (p *pools) decompress(dst, b []byte, c Compression) error {
	var err error
	if c == Zstd {
		err = p.unzstd(dst, bytes.NewReader(b))
	} else {
		err = p.unflate(dst, bytes.NewReader(b))
	}
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("%v stream ends before it fills the cluster", c)
	}
	if err != nil {
		return corrupt("%v stream: %v", c, err)
	}
	return nil
}

func (p *pools) unflate(dst []byte, r io.Reader) error {
	d, ok := p.deflate.Get().(io.ReadCloser)
	if !ok {
		d = flate.NewReader(r)
	} else if err := d.(flate.Resetter).Reset(r, nil); err != nil {
		return err
	}
	defer p.deflate.Put(d)
	_, err := io.ReadFull(d, dst)
	return err
}

func (p *pools) unzstd(dst []byte, r io.Reader) error {
	d, ok := p.zstd.Get().(*zstd.Decoder)
	if !ok {
		var err error
		// Concurrency 1 decodes in the caller's goroutine: nothing to close.
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return err
		}
	}
	if err := d.Reset(r); err != nil {
		return err
	}
	_, err := io.ReadFull(d, dst)
	if err := d.Reset(nil); err != nil { // forget r
		return err
	}
	p.zstd.Put(d)
	return err
}

// inflate fills dst, one cluster, with the compressed guest cluster at start.
func (f *File) inflate(dst []byte, start int64) error {
	e, _, err := f.entryAt(start)
	if err == nil {
		if e&entryCompressed == 0 {
			err = corrupt("L2 entry changed to %#x under the reader", e)
		} else {
			err = f.decompressEntry(dst, e)
		}
	}
	if err != nil {
		return fmt.Errorf("read image %s at guest offset %d: %w", f.path, start, err)
	}
	return nil
}

func (f *File) decompressEntry(dst []byte, e uint64) error {
	host, size := decodeCompressed(e, f.header.ClusterBits)
	if !f.inData(host) {
		return corrupt("compressed cluster at host offset %d lies beyond the end of the file (%d bytes)",
			host, f.dataEnd.Load())
	}
	// The last sector of the last stream need not be there in full.
	if !f.inData(host + size - 1) {
		size = f.dataEnd.Load() - host
	}
	buf, ok := f.pools.streams.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	defer f.pools.streams.Put(buf)
	*buf = sized(*buf, size)
	if err := readFull(f.data, *buf, host); err != nil {
		return err
	}
	return f.pools.decompress(dst, *buf, f.header.Compression)
}

// readCompressed fills p with guest bytes from off on, all of which lie in
// compressed clusters of f.
func (f *File) readCompressed(p []byte, off int64) error {
	size := f.header.ClusterSize()
	var whole []byte
	for len(p) > 0 {
		start := off &^ (size - 1)
		n := min(int64(len(p)), start+size-off)
		if n == size {
			if err := f.inflate(p[:n], start); err != nil {
				return err
			}
		} else {
			whole = sized(whole, size)
			if err := f.inflate(whole, start); err != nil {
				return err
			}
			copy(p[:n], whole[off-start:])
		}
		p, off = p[n:], off+n
	}
	return nil
}
