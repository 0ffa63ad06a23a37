// Package btrfs reads btrfs from one or several volumes: subvolumes and snapshots,
// all profiles but the reconstruction of RAID5 and RAID6 from parity, compressed
// content, and what was synced but not committed.
//
// It shows the subvolume that Linux mounts without options; subvolumes inside it
// are directories that lead into them. [FS.OpenSubvolume] shows others.
//
// Every tree block is compared with its checksum, and read from another copy if it
// is damaged. It follows the on-disk format in the btrfs documentation, and knows
// nothing of partitions or paths.
package btrfs

import (
	"fmt"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Options say how a file system is read.
type Options struct {
	// VerifyData compares content with its checksums where it is read, and reads
	// another copy where they differ. Without it only structures are verified.
	VerifyData bool
	// Degraded opens a file system of which devices are missing. What lies on these
	// alone is an fsys.ErrUnsupported where it is read.
	Degraded bool
	// CacheBytes bounds the memory of all caches; default 24 MiB.
	CacheBytes int64

	// trusting leaves checksums of tree blocks out, so that tests get beyond them.
	trusting bool
}

// FS shows a subvolume of an open file system.
type FS struct {
	store *store
	top   fsys.ID
}

var _ fsys.FileSystem = (*FS)(nil)

// store is what all subvolumes share. But for caches it does not change once open.
type store struct {
	opts     Options
	super    super
	seeds    map[uuid]bool // file systems that this one grew from
	space    space
	root     *tree
	sums     []*tree           // trees of checksums of data, those of logs first
	replayed map[uint64]*delta // what logs change, by subvolume
	notes    []string

	nodes      *fsys.LRU[uint64, *node]
	expansions *fsys.LRU[extentKey, []byte]
	subvolumes *fsys.LRU[uint64, *tree]
}

// Open opens the btrfs on a volume. It returns a [MissingError] if that is one of
// several devices.
func Open(v fsys.Volume) (fsys.FileSystem, error) {
	f, err := OpenWith([]fsys.Volume{v}, Options{})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// OpenDevices opens the btrfs that lies on several volumes, in any order. Extents
// lie on these as if each followed the one before it.
func OpenDevices(volumes []fsys.Volume) (*FS, error) { return OpenWith(volumes, Options{}) }

// OpenWith is OpenDevices with options.
func OpenWith(volumes []fsys.Volume, o Options) (*FS, error) {
	if o.CacheBytes <= 0 {
		o.CacheBytes = 24 << 20
	}
	s := &store{
		opts:       o,
		nodes:      newLRU[uint64, *node](o.CacheBytes * 5 / 8),
		expansions: newLRU[extentKey, []byte](o.CacheBytes / 4),
		subvolumes: newLRU[uint64, *tree](1024),
		seeds:      map[uuid]bool{},
	}
	for _, step := range []func() error{
		func() error { return s.readSupers(volumes) },
		s.readSystemChunks,
		s.readChunks,
		s.readRoots,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	s.replay()
	id, err := s.defaultSubvolume()
	if err != nil {
		return nil, err
	}
	f := &FS{store: s}
	if f, err = f.OpenSubvolumeID(id); err != nil {
		return nil, fmt.Errorf("open default subvolume: %w: %w", err, fsys.ErrCorrupt)
	}
	return f, nil
}

// readSupers reads the superblocks and makes devices of the volumes.
func (s *store) readSupers(volumes []fsys.Volume) error {
	if len(volumes) == 0 {
		return fmt.Errorf("btrfs: no volumes: %w", fsys.ErrNotFound)
	}
	supers := make([]super, len(volumes))
	best := -1
	for i, v := range volumes {
		one, notes, err := readSuper(v)
		if err != nil {
			return err
		}
		s.notes = append(s.notes, notes...)
		supers[i] = one
		if best < 0 || newer(&one, &supers[best]) {
			best = i
		}
	}
	s.super = supers[best]
	base := int64(0)
	for i, one := range supers {
		if one.fsid != s.super.fsid {
			if one.flags&flagSeeding == 0 {
				return fmt.Errorf("the volumes belong to btrfs %s and %s: %w", s.super.fsid, one.fsid, fsys.ErrUnsupported)
			}
			s.seeds[one.metadataFSID] = true
		}
		if s.space.known(one.device.uuid) {
			return fmt.Errorf("device %d of btrfs %s is there twice: %w", one.device.id, one.fsid, fsys.ErrUnsupported)
		}
		d := s.space.device(one.device.uuid, one.device.id)
		d.vol, d.base, d.index = volumes[i], base, i
		if base += volumes[i].Size(); base < 0 {
			return fmt.Errorf("the volumes are too large together: %w", fsys.ErrUnsupported)
		}
		d.meta = fsys.Cached(d.vol, s.opts.CacheBytes/8/int64(len(volumes)))
		if one.fsid == s.super.fsid && one.generation != s.super.generation {
			d.stale = true
			s.notes = append(s.notes, fmt.Sprintf("Device %d was absent when the others were written last.", d.id))
		}
		if uint64(d.vol.Size()) < one.device.size {
			s.notes = append(s.notes, fmt.Sprintf("Device %d has %d bytes where %d were recorded: its end is missing.", d.id, d.vol.Size(), one.device.size))
		}
	}
	if s.super.flags&flagError != 0 {
		s.notes = append(s.notes, "Linux has recorded errors in it.")
	}
	return nil
}

// newer says whether a superblock is to be preferred to another one. A file system
// that grew from a seed is newer than that.
func newer(a, b *super) bool {
	if seed := a.flags & flagSeeding; seed != b.flags&flagSeeding {
		return seed == 0
	}
	return a.generation > b.generation
}

// known says whether there is a device with a UUID.
func (s *space) known(u uuid) bool {
	for _, d := range s.devices {
		if d.uuid == u {
			return true
		}
	}
	return false
}

// readSystemChunks reads where the chunk tree lies.
func (s *store) readSystemChunks() error {
	for b := s.super.systemChunks; len(b) > 0; {
		if len(b) < keySize {
			return fmt.Errorf("system chunks: %d bytes are too few: %w", len(b), fsys.ErrCorrupt)
		}
		k := keyAt(b)
		if k.kind != chunkItem {
			return fmt.Errorf("system chunks: item %s: %w", k, fsys.ErrCorrupt)
		}
		c, n, err := s.space.parseChunk(k.offset, b[keySize:], s.super.sectorSize)
		if err == nil {
			err = s.space.add(c)
		}
		if err != nil {
			return fmt.Errorf("system chunks: %w", err)
		}
		b = b[keySize+n:]
	}
	return nil
}

// readChunks reads where everything lies, and which devices there are.
func (s *store) readChunks() error {
	t := &tree{store: s, id: chunkTreeID, root: blockRef{s.super.chunkRoot, s.super.chunkRootGen, s.super.chunkLevel}}
	var bad error
	err := t.scan(key{}, key{maxOffset, 255, maxOffset}, func(k key, b []byte) bool {
		switch k.kind {
		case chunkItem:
			var c chunk
			if c, _, bad = s.space.parseChunk(k.offset, b, s.super.sectorSize); bad == nil {
				bad = s.space.add(c)
			}
		case devItem:
			if len(b) < deviceItemSize {
				bad = fmt.Errorf("item of device %d has %d bytes: %w", k.offset, len(b), fsys.ErrCorrupt)
				break
			}
			d := parseDeviceItem(b)
			s.space.device(d.uuid, d.id)
		}
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	missing := s.space.missing(s.super.fsid)
	if missing != nil && (!s.opts.Degraded || err != nil) {
		return missing
	}
	if err != nil {
		return fmt.Errorf("read chunk tree: %w", err)
	}
	if missing != nil {
		s.notes = append(s.notes, fmt.Sprintf("It was opened without all of its devices: %s is missing, and what lies there alone cannot be read.", missing.names()))
	}
	return nil
}

// readRoots finds the trees that everything else is found from.
func (s *store) readRoots() error {
	s.root = &tree{store: s, id: rootTreeID, root: blockRef{s.super.root, s.super.generation, s.super.rootLevel}}
	if _, err := s.node(s.root.root); err != nil {
		return fmt.Errorf("read root tree: %w", err)
	}
	if !s.opts.VerifyData {
		return nil
	}
	t, _, err := s.tree(csumTreeID)
	if err != nil {
		return fmt.Errorf("read tree of checksums: %w", err)
	}
	s.sums = []*tree{t}
	return nil
}

// replay applies the logs, all or none.
func (s *store) replay() {
	if s.super.logRoot == 0 {
		return
	}
	deltas, logs, err := s.replayLogs()
	if err != nil {
		s.notes = append(s.notes, fmt.Sprintf("What was synced after the last commit is not shown, for the log cannot be replayed: %v.", err))
		return
	}
	s.replayed = deltas
	s.sums = append(logs, s.sums...)
	s.notes = append(s.notes, "It was not unmounted; its log was replayed in memory.")
}

// Info implements fsys.FileSystem.
func (f *FS) Info() fsys.Info {
	s := f.store
	i := fsys.Info{
		Type: "btrfs", Label: s.super.label, UUID: s.super.fsid.String(),
		BlockSize: int64(s.super.sectorSize), Size: int64(s.super.totalBytes), Free: s.free(),
		Notes: append([]string(nil), s.notes...),
	}
	return i
}

// free is what is left of all devices when each byte in use is counted as often as
// chunks of data store it.
func (s *store) free() int64 {
	used := s.super.bytesUsed
	for i := range s.space.chunks {
		if c := &s.space.chunks[i]; c.kind&chunkData != 0 {
			if n := uint64(c.copies()); used <= s.super.totalBytes/n {
				used *= n
			} else {
				used = s.super.totalBytes
			}
			break
		}
	}
	return int64(s.super.totalBytes - used)
}

// Root implements fsys.FileSystem.
func (f *FS) Root() fsys.ID { return f.top }

// newLRU returns an LRU without what would take more than a quarter of it.
func newLRU[K comparable, V any](most int64) *fsys.LRU[K, V] { return fsys.NewLRU[K, V](most, most/4) }
