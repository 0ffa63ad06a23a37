package dir

import (
	"encoding/hex"
	"fmt"
	"path"
	"unicode"
	"unicode/utf8"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// check returns what is wrong with a record, so that whoever holds one can rely on
// its links: files lie in the machine's folder, and what a disk builds on is there.
func (r *record) check(id repository.VMID) error {
	if r.Format != metadataFormat {
		return fmt.Errorf("format is %d, not %d", r.Format, metadataFormat)
	}
	if _, err := repository.ParseVMID(string(r.VM.UUID)); err != nil || r.VM.UUID != id {
		return fmt.Errorf("it is the record of VM %q, not %s", r.VM.UUID, id)
	}
	if err := checkName(r.VM.Name); err != nil {
		return err
	}
	if _, err := repository.ParsePointID(string(r.VM.Last)); err != nil {
		return fmt.Errorf("latest point: %w", err)
	}
	keys, err := r.checkDisks()
	if err != nil {
		return err
	}
	files := make(map[string]*repository.PointDisk)
	last := repository.PointID("")
	for i := range r.Points {
		p := &r.Points[i]
		if _, err := repository.ParsePointID(string(p.ID)); err != nil {
			return err
		}
		if p.ID <= last || p.ID > r.VM.Last {
			return fmt.Errorf("point %s does not lie between %q and %s", p.ID, last, r.VM.Last)
		}
		last = p.ID
		if err := r.checkPoint(p, keys, files); err != nil {
			return fmt.Errorf("point %s: %w", p.ID, err)
		}
	}
	if err := r.checkMerge(files); err != nil {
		return fmt.Errorf("merge: %w", err)
	}
	return r.checkTrash(files)
}

func checkName(name string) error {
	if name == "" || len(name) > maxVMName || !utf8.ValidString(name) {
		return fmt.Errorf("name of the VM is %.100q", name)
	}
	return nil
}

func checkKey(key string) error {
	if key == "" || len(key) > maxKey || !utf8.ValidString(key) {
		return fmt.Errorf("key of a disk is %.100q", key)
	}
	for _, r := range key {
		if unicode.IsControl(r) {
			return fmt.Errorf("key of a disk is %.100q", key)
		}
	}
	return nil
}

func (r *record) checkDisks() (map[string]int, error) {
	keys := make(map[string]int)
	indices := make(map[int]bool)
	if len(r.Disks) > maxDisks {
		return nil, fmt.Errorf("it has %d disks, more than %d", len(r.Disks), maxDisks)
	}
	for _, d := range r.Disks {
		if err := checkKey(d.Key); err != nil {
			return nil, err
		}
		if _, ok := keys[d.Key]; ok || indices[d.Index] || d.Index < 0 || d.Index >= maxDisks {
			return nil, fmt.Errorf("disk %s has index %d", d.Key, d.Index)
		}
		keys[d.Key], indices[d.Index] = d.Index, true
	}
	return keys, nil
}

func (r *record) checkPoint(p *pointRecord, keys map[string]int, files map[string]*repository.PointDisk) error {
	if err := checkName(p.Name); err != nil {
		return err
	}
	if p.Config != "" && r.Configs[p.Config] == nil {
		return fmt.Errorf("its configuration %s is missing", p.Config)
	}
	seen := make(map[string]bool)
	for i := range p.Disks {
		d := &p.Disks[i]
		if index, ok := keys[d.Key]; !ok || index != d.Index || seen[d.Key] {
			return fmt.Errorf("disk %q has index %d", d.Key, d.Index)
		}
		seen[d.Key] = true
		if err := checkDisk(d, p.ID, files); err != nil {
			return fmt.Errorf("disk %s: %w", d.Key, err)
		}
	}
	// Only now: a disk builds on earlier points.
	for i := range p.Disks {
		files[p.Disks[i].File] = &p.Disks[i]
	}
	return nil
}

func checkDisk(d *repository.PointDisk, point repository.PointID, files map[string]*repository.PointDisk) error {
	if d.Kind != repository.Full && d.Kind != repository.Incremental {
		return fmt.Errorf("kind is %q", d.Kind)
	}
	if err := checkStored(d.File, d.Index, d.Kind, point, false); err != nil {
		return err
	}
	if err := checkStored(d.Digests, d.Index, d.Kind, point, true); err != nil {
		return err
	}
	if sum, err := hex.DecodeString(d.DigestsSum); err != nil || len(sum) != image.DigestSize {
		return fmt.Errorf("checksum of its digests is %.100q", d.DigestsSum)
	}
	if d.Size < 0 || d.DataBytes < 0 || d.ZeroBytes < 0 || d.StoredBytes < 0 ||
		d.ClusterSize < 512 || d.ClusterSize > 2<<20 || d.ClusterSize&(d.ClusterSize-1) != 0 {
		return fmt.Errorf("sizes are %d, %d, %d, %d and %d", d.Size, d.ClusterSize, d.DataBytes, d.ZeroBytes, d.StoredBytes)
	}
	if d.Kind == repository.Full {
		if d.Parent != "" {
			return fmt.Errorf("it is full and builds on %q", d.Parent)
		}
		return nil
	}
	parent := files[d.Parent]
	if parent == nil || parent.Index != d.Index || parent.ClusterSize != d.ClusterSize {
		return fmt.Errorf("it builds on %q, which is no disk like it of an earlier point", d.Parent)
	}
	return nil
}

func (r *record) checkMerge(files map[string]*repository.PointDisk) error {
	if r.Merge == nil {
		return nil
	}
	p := r.point(r.Merge.Point)
	if p == nil {
		return fmt.Errorf("there is no point %q", r.Merge.Point)
	}
	for _, m := range r.Merge.Disks {
		parent, child := files[m.Parent], files[m.Child]
		if parent == nil || child == nil || child.Parent != m.Parent || p.disk(m.Index) != parent {
			return fmt.Errorf("%q is not what %q builds on", m.Parent, m.Child)
		}
		_, base := path.Split(m.Child)
		f, _ := parsePointFile(base)
		if err := checkStored(m.File, m.Index, parent.Kind, f.point, false); err != nil {
			return err
		}
		if err := checkStored(m.Digests, m.Index, parent.Kind, f.point, true); err != nil {
			return err
		}
	}
	return nil
}

// checkTrash makes sure that removing trash removes nothing else.
func (r *record) checkTrash(files map[string]*repository.PointDisk) error {
	used := make(map[string]bool)
	for name, d := range files {
		used[name], used[d.Digests] = true, true
	}
	for _, name := range r.Trash {
		folder, base := path.Split(name)
		if _, ok := parsePointFile(base); !ok || !diskDirs.MatchString(path.Clean(folder)) || folder+base != path.Clean(folder)+"/"+base || used[name] {
			return fmt.Errorf("file %q is not to be removed", name)
		}
	}
	return nil
}
