package dir

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// metadataFormat is the version of metadata.json that this program writes.
const metadataFormat = 1

// Bounds of what is read from records.
const (
	maxMetadata = 256 << 20
	maxConfig   = 4 << 20
	maxKey      = 255
	maxVMName   = 1024
	maxDisks    = 1024
)

// record is the content of metadata.json, the commit record of a machine.
// Whatever it does not name is not stored.
type record struct {
	Format  int                        `json:"format"`
	VM      vmRecord                   `json:"vm"`
	Disks   []diskRecord               `json:"disks"`   // every disk the machine ever had
	Configs map[string]json.RawMessage `json:"configs"` // by digest
	Points  []pointRecord              `json:"points"`  // oldest first
	Merge   *mergeRecord               `json:"merge,omitempty"`
	Trash   []string                   `json:"trash,omitempty"` // files to be removed, in no use any more
}

type vmRecord struct {
	UUID    repository.VMID    `json:"uuid"`
	Name    string             `json:"name"`
	Created time.Time          `json:"created"`
	Last    repository.PointID `json:"last"` // latest id ever given
}

type diskRecord struct {
	Index int    `json:"index"`
	Key   string `json:"key"`
}

type pointRecord struct {
	ID      repository.PointID     `json:"id"`
	Name    string                 `json:"name"`
	Job     string                 `json:"job,omitempty"`
	Source  string                 `json:"source,omitempty"`
	Created time.Time              `json:"created"`
	Config  string                 `json:"config,omitempty"` // key of Configs
	Disks   []repository.PointDisk `json:"disks"`
}

// mergeRecord is the intent to remove a point by merging it into those that build
// on it. Until that is done the point is there.
type mergeRecord struct {
	Point repository.PointID `json:"point"`
	Disks []mergeDisk        `json:"disks"`
}

// mergeDisk is one disk of a merge: what File Parent holds goes into file Child,
// which is called File afterwards.
type mergeDisk struct {
	Index   int    `json:"index"`
	Parent  string `json:"parent"`
	Child   string `json:"child"`
	File    string `json:"file"`
	Digests string `json:"digests"`
}

// Records end in the checksum of what stands before it, so that a flipped bit
// anywhere is seen: head -c -SEAL metadata.json | b3sum.
const (
	sealBegin = ",\n  \"checksum\": \"" + image.DigestAlgorithm + ":"
	sealEnd   = "\"\n}\n"
	sealBytes = len(sealBegin) + 2*image.DigestSize + len(sealEnd)
)

// seal encodes a record with its checksum.
func seal(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	b = bytes.TrimSuffix(b, []byte("\n}"))
	sum := image.Sum(b)
	b = append(b, sealBegin...)
	b = hex.AppendEncode(b, sum[:])
	return append(b, sealEnd...), nil
}

// unseal decodes what seal made into v, which has to have every field, format among
// them.
func unseal(b []byte, newest int, v any, format *int) error {
	err := decodeSealed(b, v)
	if err != nil {
		// A newer program may seal in another way: its record is to be named as such.
		var version struct {
			Format int `json:"format"`
		}
		if json.Unmarshal(b, &version) == nil {
			*format = version.Format
		}
	}
	if *format > newest {
		return fmt.Errorf("%w: format %d, newer than %d", repository.ErrTooNew, *format, newest)
	}
	return err
}

func decodeSealed(b []byte, v any) error {
	n := len(b) - sealBytes
	if n < 0 || !bytes.HasPrefix(b[n:], []byte(sealBegin)) || !bytes.HasSuffix(b, []byte(sealEnd)) {
		return fmt.Errorf("it does not end in a checksum")
	}
	sum := image.Sum(b[:n])
	if string(b[n+len(sealBegin):len(b)-len(sealEnd)]) != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("its checksum does not match")
	}
	d := json.NewDecoder(io.MultiReader(bytes.NewReader(b[:n]), bytes.NewReader([]byte("\n}"))))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return fmt.Errorf("there is more behind it")
	}
	return nil
}

// parseRecord decodes and checks the content of metadata.json.
func parseRecord(b []byte, id repository.VMID) (*record, error) {
	var r record
	if err := unseal(b, metadataFormat, &r, &r.Format); err != nil {
		return nil, err
	}
	if err := r.check(id); err != nil {
		return nil, err
	}
	return &r, nil
}

// loadRecord reads the metadata.json at path, and returns its bytes too; nil if
// there is none.
func loadRecord(path string, id repository.VMID) (*record, []byte, error) {
	b, err := readBounded(path, maxMetadata)
	if os.IsNotExist(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read record of VM %s: %w", id, err)
	}
	r, err := decodeRecord(path, b, id)
	return r, b, err
}

// decodeRecord is parseRecord for the content of the file at path, which its errors
// name.
func decodeRecord(path string, b []byte, id repository.VMID) (*record, error) {
	r, err := parseRecord(b, id)
	if errors.Is(err, repository.ErrTooNew) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if err != nil {
		return nil, &repository.CorruptError{VM: id, Cluster: -1, File: path, Err: fmt.Errorf("read %s: %w", path, err)}
	}
	return r, nil
}

// readBounded reads a file of up to limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBoundedFile(f, limit)
}

// readBoundedFile reads an open file of up to limit bytes.
func readBoundedFile(f *os.File, limit int64) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(int(min(st.Size(), limit)) + bytes.MinRead)
	_, err = b.ReadFrom(io.LimitReader(f, limit+1))
	if err == nil && int64(b.Len()) > limit {
		err = fmt.Errorf("it has more than %d bytes", limit)
	}
	return b.Bytes(), err
}

// point returns the record of a point, or nil.
func (r *record) point(id repository.PointID) *pointRecord {
	i, ok := slices.BinarySearchFunc(r.Points, id, func(p pointRecord, id repository.PointID) int {
		switch {
		case p.ID < id:
			return -1
		case p.ID > id:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &r.Points[i]
}

// latest returns the latest point, or nil.
func (r *record) latest() *pointRecord {
	if len(r.Points) == 0 {
		return nil
	}
	return &r.Points[len(r.Points)-1]
}

// disk returns the disk with an index, or nil.
func (p *pointRecord) disk(index int) *repository.PointDisk {
	for i := range p.Disks {
		if p.Disks[i].Index == index {
			return &p.Disks[i]
		}
	}
	return nil
}

// indexOf returns the index of the disk with a key; false if it is new.
func (r *record) indexOf(key string) (int, bool) {
	for _, d := range r.Disks {
		if d.Key == key {
			return d.Index, true
		}
	}
	return 0, false
}

// export returns a point as the outside sees it.
func (r *record) export(p *pointRecord) repository.Point {
	out := repository.Point{
		ID: p.ID, VM: r.VM.UUID, Name: p.Name, Job: p.Job, Source: p.Source, Created: p.Created,
		Config: bytes.Clone(r.Configs[p.Config]), Disks: slices.Clone(p.Disks),
	}
	for i := range out.Disks {
		if a := out.Disks[i].Audit; a != nil {
			copied := *a
			out.Disks[i].Audit = &copied
		}
	}
	return out
}

// clone returns a copy of which points, disks and trash may be changed.
func (r *record) clone() *record {
	c := *r
	c.Disks = slices.Clone(r.Disks)
	c.Trash = slices.Clone(r.Trash)
	c.Points = slices.Clone(r.Points)
	for i := range c.Points {
		c.Points[i].Disks = slices.Clone(c.Points[i].Disks)
	}
	return &c
}

// encode checks the record and returns the content of metadata.json, without the
// configurations that no point refers to.
func (r *record) encode() ([]byte, error) {
	used := make(map[string]json.RawMessage)
	for _, p := range r.Points {
		if p.Config != "" {
			used[p.Config] = r.Configs[p.Config]
		}
	}
	r.Configs = used
	if err := r.check(r.VM.UUID); err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	b, err := seal(r)
	if err == nil && len(b) > maxMetadata {
		err = fmt.Errorf("encode record: it would have more than %d bytes", maxMetadata)
	}
	return b, err
}
