package dir

import (
	"bytes"
	"fmt"
	"path/filepath"

	"github.com/sendense/sendense/internal/repository"
)

// chainFormat is the version of chain.json that this program writes.
const chainFormat = 1

// maxChainFile bounds what is read of a chain.json.
const maxChainFile = 64 << 20

// chainFile is the content of chain.json: which files of a disk's folder make up
// its chains. It says nothing that metadata.json does not say, in the place where
// a person with nothing but the folder looks for it.
type chainFile struct {
	Format int                `json:"format"`
	VM     repository.VMID    `json:"vm"`
	Key    string             `json:"key"`
	Index  int                `json:"index"`
	Latest repository.PointID `json:"latest"`
	Files  []chainLink        `json:"files"` // oldest first
}

type chainLink struct {
	Point  repository.PointID `json:"point"`
	File   string             `json:"file"`
	Kind   string             `json:"kind"`
	Parent string             `json:"parent,omitempty"`
	Size   int64              `json:"size"` // virtual, bytes
}

// chainOf returns the chain.json of a disk; nil if no point has it.
func (r *record) chainOf(d diskRecord) *chainFile {
	c := &chainFile{Format: chainFormat, VM: r.VM.UUID, Key: d.Key, Index: d.Index}
	for i := range r.Points {
		p := &r.Points[i]
		x := p.disk(d.Index)
		if x == nil {
			continue
		}
		parent := ""
		if x.Parent != "" {
			parent = filepath.Base(x.Parent)
		}
		c.Files = append(c.Files, chainLink{p.ID, filepath.Base(x.File), x.Kind, parent, x.Size})
		c.Latest = p.ID
	}
	if len(c.Files) == 0 {
		return nil
	}
	return c
}

// parseChainFile decodes and checks the content of a chain.json.
func parseChainFile(b []byte) (*chainFile, error) {
	var c chainFile
	if err := unseal(b, chainFormat, &c, &c.Format); err != nil {
		return nil, err
	}
	if c.Format != chainFormat || c.Index < 0 || c.Index >= maxDisks {
		return nil, fmt.Errorf("format is %d, index is %d", c.Format, c.Index)
	}
	if err := checkKey(c.Key); err != nil {
		return nil, err
	}
	known := make(map[string]bool)
	last := repository.PointID("")
	for _, l := range c.Files {
		if l.Point <= last || l.Size < 0 || l.Parent != "" && !known[l.Parent] {
			return nil, fmt.Errorf("file %q of point %q builds on %q", l.File, l.Point, l.Parent)
		}
		if err := checkStored(diskDir(c.Index)+"/"+l.File, c.Index, l.Kind, l.Point, false); err != nil {
			return nil, err
		}
		known[l.File], last = true, l.Point
	}
	if c.Latest != last {
		return nil, fmt.Errorf("latest point is %q, not %q", c.Latest, last)
	}
	return &c, nil
}

// writeChains brings the chain.json of every disk up to what the record says.
func (v *vmFolder) writeChains(r *record) error {
	for _, d := range r.Disks {
		path := filepath.Join(v.path, diskDir(d.Index), chainName)
		c := r.chainOf(d)
		have, err := readBounded(path, maxChainFile)
		if c == nil {
			if err == nil {
				err = removeFile(v.fs, path)
			}
			if err != nil && have != nil {
				return err
			}
			continue
		}
		want, err := seal(c)
		if err != nil {
			return fmt.Errorf("encode %s: %w", path, err)
		}
		if bytes.Equal(have, want) {
			continue
		}
		if _, err := replaceFile(v.fs, path, want); err != nil {
			return err
		}
	}
	return nil
}
