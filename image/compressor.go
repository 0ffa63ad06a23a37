package image

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// compressor makes the streams of compressed clusters. It may be used from
// several goroutines at once.
type compressor struct {
	kind    Compression
	deflate sync.Pool // of *flate.Writer
	zstd    *zstd.Encoder
}

// deflateWindow is what the format allows deflate streams to refer back to.
const deflateWindow = 4096

// newCompressor makes streams of the kind. level is for zstd, 1 to 22; 0 means 3.
func newCompressor(kind Compression, level int) (*compressor, error) {
	c := &compressor{kind: kind}
	if kind == Zstd {
		if level == 0 {
			level = 3
		}
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
			zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("start zstd: %w", err)
		}
		c.zstd = enc
	}
	return c, nil
}

// compress appends to dst the stream for a cluster.
func (c *compressor) compress(dst, cluster []byte) ([]byte, error) {
	if c.kind == Zstd {
		return c.zstd.EncodeAll(cluster, dst), nil
	}
	buf := bytes.NewBuffer(dst)
	w, _ := c.deflate.Get().(*flate.Writer)
	if w == nil {
		var err error
		if w, err = flate.NewWriterWindow(buf, deflateWindow); err != nil {
			return nil, fmt.Errorf("start deflate: %w", err)
		}
	} else {
		w.Reset(buf)
	}
	defer c.deflate.Put(w)
	if _, err := w.Write(cluster); err != nil {
		return nil, fmt.Errorf("deflate: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("deflate: %w", err)
	}
	return buf.Bytes(), nil
}
