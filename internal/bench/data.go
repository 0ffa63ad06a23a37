package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/nbdclient"
)

// cluster is the unit in which everything here is written.
const cluster = 64 << 10

// random is a source of bytes that do not compress, the same in every run.
type random struct {
	*rand.Rand
	bytes *rand.ChaCha8
}

func newRandom(seed uint64) random {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	c := rand.NewChaCha8(key)
	return random{rand.New(c), c}
}

// fill fills p. Reading the generator cannot fail.
func (r random) fill(p []byte) { _, _ = r.bytes.Read(p) }

// layered is the same disk of random data three times.
type layered struct {
	raw    string // as it is
	single string // in one QCOW2 file
	deep   string // its clusters scattered over a chain of 128 QCOW2 files
}

const layeredDepth = 128

// buildLayered makes the images of the read figures.
func (b *bench) buildLayered(ctx context.Context) (err error) {
	if b.layered != nil {
		return nil
	}
	b.logf("build the images of the read figures")
	l := &layered{raw: filepath.Join(b.dir, "disk.raw"), single: filepath.Join(b.dir, "single.qcow2")}
	raw, err := os.Create(l.raw)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	single, err := newImage(l.single, "", b.size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, single.Close()) }()
	layers := make([]*image.Writer, 0, layeredDepth)
	defer func() {
		for _, w := range layers {
			err = errors.Join(err, w.Close())
		}
	}()
	for i := range layeredDepth {
		path, backing := filepath.Join(b.dir, fmt.Sprintf("layer-%03d.qcow2", i)), ""
		if i > 0 {
			backing = filepath.Base(l.deep)
		}
		w, err := newImage(path, backing, b.size)
		if err != nil {
			return err
		}
		layers, l.deep = append(layers, w), path
	}
	r, p := newRandom(1), make([]byte, cluster)
	for off := int64(0); off < b.size; off += cluster {
		r.fill(p)
		if _, err := raw.WriteAt(p, off); err != nil {
			return err
		}
		if err := errors.Join(single.WriteAt(ctx, p, off), layers[r.IntN(layeredDepth)].WriteAt(ctx, p, off)); err != nil {
			return err
		}
	}
	settle()
	b.layered = l
	return nil
}

// dropLayered removes those images.
func (b *bench) dropLayered() {
	b.layered = nil
	for _, pattern := range []string{"disk.raw", "single.qcow2", "layer-*.qcow2"} {
		paths, _ := filepath.Glob(filepath.Join(b.dir, pattern)) // a good pattern gives no error
		for _, p := range paths {
			os.Remove(p)
		}
	}
}

// newImage makes a QCOW2 file that is going to be written by whole clusters.
func newImage(path, backing string, size int64) (*image.Writer, error) {
	o := image.CreateOptions{Size: size, BackingFile: backing}
	if backing != "" {
		o.BackingFormat = "qcow2"
	}
	if err := image.Create(path, o); err != nil {
		return nil, err
	}
	return image.OpenWriter(path, image.WriterOptions{CacheBytes: 8 << 20})
}

// buildDeep makes the chain of the deep figures and returns its top.
func buildDeep(ctx context.Context, folder string) (string, error) {
	if err := os.Mkdir(folder, 0o700); err != nil {
		return "", err
	}
	r, p, top := newRandom(2), make([]byte, cluster), ""
	for i := range deepLayers {
		path, n := filepath.Join(folder, fmt.Sprintf("point-%03d.qcow2", i)), deepClusters
		if i == 0 {
			n = fullClusters
		} else {
			top = filepath.Base(top)
		}
		w, err := newImage(path, top, deepSize)
		if err != nil {
			return "", err
		}
		for range n {
			r.fill(p)
			if err := w.WriteAt(ctx, p, r.Int64N(deepSize/cluster)*cluster); err != nil {
				return "", errors.Join(err, w.Close())
			}
		}
		if err := w.Close(); err != nil {
			return "", err
		}
		top = path
	}
	return top, nil
}

// readOnce connects and reads 4 KiB.
func readOnce(ctx context.Context, uri string, off int64) error {
	d, err := nbdclient.Open(ctx, uri, nbdclient.Options{Conns: 1})
	if err != nil {
		return err
	}
	return errors.Join(d.ReadAt(ctx, make([]byte, 4096), off), d.Close())
}
