package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Defaults and bounds of a chain's memory.
const (
	defaultMapBytes = 64 << 20
	clusterBytes    = 8 << 20 // decompressed clusters
)

// Bounds of the size of a region, as shifts. A region holds 512 clusters where
// that lies inside them: enough that reading a layer's part of it is mostly the
// cost of one system call, few enough that a first touch is cheap at any depth.
const (
	minRegionBits     = 20
	maxRegionBits     = 28
	regionClusterBits = 9
	rawRegionBits     = 25 // where no layer has clusters
)

// Formats of a layer, as the backing format extension names them.
const (
	formatRaw   = "raw"
	formatQCOW2 = "qcow2"
)

// ChainOptions modify how a chain is opened.
type ChainOptions struct {
	// Format is the format of the top file: "qcow2" or "raw". Default: QCOW2 if
	// the file begins with its magic, else raw. The format of a backing file is
	// what the file above says, or else found in the same way; a raw file that a
	// guest has written must therefore be named as raw.
	Format string
	// MapBytes bounds the memory of the merged map in bytes. Default: 64 MiB. On
	// top of it, three eighths of it may go into L1 tables and into knowing which
	// layers matter where, and 8 MiB into decompressed clusters.
	MapBytes int64
	// LayerName gives the name of a layer in Layers and Changed. Default: the
	// base name of the path without its extension.
	LayerName func(path string) string
}

// Layer describes one file of a chain.
type Layer struct {
	Name        string // what LayerName made of Path
	Path        string // under which the file was opened
	Format      string // "qcow2" or "raw"
	Size        int64  // virtual size in bytes
	ClusterSize int64  // in bytes; 0 for raw
}

// Chain is an image with everything that backs it, open for reading: a
// block.Device that is also a block.Mapper, Locator and Changer. Its methods may
// be called concurrently.
type Chain struct {
	size       int64
	regionBits uint
	infos      []Layer
	layers     []layer
	files      []*os.File // where the data of each layer lie

	pools    pools
	regions  *cache[*region]
	holders  *cache[holders] // of regions whose map may be gone
	clusters *cache[[]byte]  // decompressed
	closers  []func() error
}

// fileID identifies a file whatever its name.
type fileID struct{ dev, ino uint64 }

// OpenChain opens the image at path and, one after another, the files that back
// it. It takes one descriptor for each layer (two for one with an external data
// file). The error names the file that is missing, of a kind that is not
// supported, or already part of the chain, and the file that refers to it; it
// wraps fs.ErrNotExist, ErrUnsupported or ErrCorrupt.
func OpenChain(path string, o ChainOptions) (*Chain, error) {
	c := &Chain{}
	err := c.open(path, o)
	if err == nil {
		return c, nil
	}
	return nil, errors.Join(fmt.Errorf("open chain %s: %w", path, err), c.Close())
}

func (c *Chain) open(path string, o ChainOptions) error {
	if o.LayerName == nil {
		o.LayerName = baseName
	}
	if o.MapBytes <= 0 {
		o.MapBytes = defaultMapBytes
	}
	seen := make(map[fileID]bool)
	parent, format := "", o.Format
	for path != "" {
		next, nextFormat, err := c.openLayer(path, format, seen)
		switch {
		case errors.Is(err, fs.ErrNotExist) && parent != "":
			return fmt.Errorf("image %s: its backing file %s cannot be opened (put it back, or name its new "+
				"place with qemu-img rebase -u): %w", parent, path, err)
		case err != nil && parent != "":
			return fmt.Errorf("image %s: its backing file %s: %w", parent, path, err)
		case err != nil:
			return err
		}
		c.infos[len(c.infos)-1].Name = o.LayerName(path)
		parent, path, format = path, next, nextFormat
	}
	c.size = c.layers[0].Size()
	c.shareMemory(o.MapBytes)
	return nil
}

// openLayer adds the file at path to the chain and returns what backs it.
func (c *Chain) openLayer(path, format string, seen map[fileID]bool) (next, nextFormat string, err error) {
	f, err := openRegular(path)
	if err != nil {
		return "", "", err
	}
	c.closers = append(c.closers, f.Close)
	st, err := f.Stat()
	if err != nil {
		return "", "", err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		id := fileID{uint64(sys.Dev), sys.Ino}
		if seen[id] {
			return "", "", corrupt("the chain comes back to a file that it already holds (%d layers up to here)", len(c.layers))
		}
		seen[id] = true
	}
	if len(c.layers) == maxLayers {
		return "", "", fmt.Errorf("%w: more than %d layers", ErrUnsupported, maxLayers)
	}
	switch format {
	case "", formatQCOW2:
		file, err := newFile(path, f, &c.pools)
		if errors.Is(err, ErrNotQCOW2) && format == "" {
			return "", "", c.addRaw(path, f)
		}
		if err != nil {
			return "", "", err
		}
		return c.addQCOW2(file)
	case formatRaw:
		return "", "", c.addRaw(path, f)
	}
	return "", "", fmt.Errorf("%w: format %q; convert the file with qemu-img convert -O qcow2", ErrUnsupported, format)
}

func (c *Chain) addRaw(path string, f *os.File) error {
	r, err := newRaw(path, f)
	if err != nil {
		return err
	}
	c.layers = append(c.layers, r)
	c.files = append(c.files, f)
	c.infos = append(c.infos, Layer{Path: path, Format: formatRaw, Size: r.Size()})
	return nil
}

func (c *Chain) addQCOW2(f *File) (next, nextFormat string, err error) {
	if f.data != f.meta {
		c.closers = append(c.closers, f.data.Close)
	}
	c.layers = append(c.layers, f)
	c.files = append(c.files, f.data)
	c.infos = append(c.infos, Layer{Path: f.path, Format: formatQCOW2, Size: f.Size(), ClusterSize: f.header.ClusterSize()})
	if next, err = f.Backing(); err != nil {
		return "", "", err
	}
	return next, f.header.BackingFormat(), nil
}

// shareMemory decides what is kept in memory, and in what pieces.
func (c *Chain) shareMemory(mapBytes int64) {
	bits := -1
	left := mapBytes / 4
	for _, l := range c.layers {
		f, ok := l.(*File)
		if !ok {
			continue
		}
		if b := int(f.header.ClusterBits) + regionClusterBits; bits < 0 || b < bits {
			bits = b
		}
		n := f.header.l1Needed() * 8
		f.keepL1 = n <= left
		if f.keepL1 {
			left -= n
		}
	}
	if bits < 0 {
		bits = rawRegionBits
	}
	c.regionBits = uint(min(max(bits, minRegionBits), maxRegionBits))
	c.regions = newCache(mapBytes, (*region).cost)
	c.holders = newCache(mapBytes/8, holders.cost)
	c.clusters = newCache(clusterBytes, func(b []byte) int64 { return int64(len(b)) })
}

// Close closes the files of the chain. Reads under way may fail.
func (c *Chain) Close() error {
	var errs []error
	for _, f := range c.closers {
		errs = append(errs, f())
	}
	c.closers = nil
	return errors.Join(errs...)
}

// Size returns the virtual size of the top image in bytes.
func (c *Chain) Size() int64 { return c.size }

// Layers describes the files of the chain, top first. The caller must not change
// the slice.
func (c *Chain) Layers() []Layer { return c.infos }

// baseName is the default of ChainOptions.LayerName.
func baseName(path string) string {
	name := filepath.Base(path)
	return strings.TrimSuffix(name, filepath.Ext(name))
}
