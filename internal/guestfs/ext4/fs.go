package ext4

import (
	"fmt"
	"sync/atomic"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Options say how a file system is opened.
type Options struct {
	CacheBytes int64 // of structures that were read last; default 16 MiB
	// SkipJournal leaves out what the journal holds, as for one that is damaged. The
	// file system may then contradict itself, and a note says so.
	SkipJournal bool
}

// fileSystem implements fsys.FileSystem. It has no state that changes but what it
// remembers of the disk.
type fileSystem struct {
	super    *superblock
	vol      fsys.Volume     // with what the journal holds in its place
	meta     fsys.Volume     // the same, cached
	replayed *overlay        // what the journal holds; nil: nothing
	tables   []atomic.Uint64 // where the inodes of groups begin, as blocks; 0: not read yet
	info     fsys.Info
}

// Open opens the ext2, ext3 or ext4 on a volume, and replays its journal in memory.
// It reads little else.
func Open(v fsys.Volume) (fsys.FileSystem, error) { return OpenWith(v, Options{}) }

// OpenWith is Open with options.
func OpenWith(v fsys.Volume, o Options) (fsys.FileSystem, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = 16 << 20
	}
	super, err := readSuper(v)
	if err != nil {
		return nil, err
	}
	f := mounted(super, v, o)
	notes := notes{super: super, volume: v.Size()}
	if super.has(incompatRecover) {
		if f, err = f.recovered(o, &notes); err != nil {
			return nil, err
		}
	}
	root, err := f.visible(rootInode)
	if err != nil {
		return nil, fmt.Errorf("read the root directory: %w", err)
	}
	if !root.is(typeDir) {
		return nil, corruptf("the root directory has mode 0%o", root.mode)
	}
	f.info = f.describe()
	f.info.Notes = notes.list()
	return f, nil
}

// mounted returns the file system on v without asking for its journal.
func mounted(s *superblock, v fsys.Volume, o Options) *fileSystem {
	return &fileSystem{super: s, vol: v, meta: fsys.Cached(v, o.CacheBytes), tables: make([]atomic.Uint64, min(s.groups, maxTables))}
}

// recovered returns the file system with what its journal holds, and notes what it
// was.
func (f *fileSystem) recovered(o Options, n *notes) (*fileSystem, error) {
	if f.super.journalInode == 0 || o.SkipJournal {
		n.skipped = true
		return f, nil
	}
	log, err := f.openJournal()
	if err == nil {
		n.found, err = log.recover()
	}
	if err != nil {
		return nil, fmt.Errorf("replay the journal: %w", err)
	}
	if len(n.found.blocks) == 0 {
		return f, nil
	}
	over := &overlay{Volume: f.vol, blocks: n.found.blocks, blockSize: f.super.blockSize}
	super, err := readSuper(over)
	if err != nil {
		return nil, fmt.Errorf("with its journal replayed: %w", err)
	}
	if super.blockSize != f.super.blockSize {
		return nil, corruptf("the journal changes the size of blocks from %d to %d", f.super.blockSize, super.blockSize)
	}
	r := mounted(super, over, o)
	r.replayed = over
	n.super = super
	return r, nil
}

// Info implements fsys.FileSystem.
func (f *fileSystem) Info() fsys.Info { return f.info }

// Root implements fsys.FileSystem.
func (f *fileSystem) Root() fsys.ID { return rootInode }

func (f *fileSystem) describe() fsys.Info {
	s := f.super
	return fsys.Info{
		Type:      s.kind(),
		Label:     s.label,
		UUID:      s.uuid,
		BlockSize: s.clusterSize,
		Size:      int64(s.blocks) * s.blockSize,
		Free:      f.free(),
	}
}

// readBlock reads a block of structures. Its number was checked.
func (f *fileSystem) readBlock(number uint64) ([]byte, error) {
	b := make([]byte, f.super.blockSize)
	return b, f.meta.ReadAt(b, int64(number)*f.super.blockSize)
}

// holds says whether n blocks from number are of the file system.
func (s *superblock) holds(number, n uint64) bool {
	return number > s.firstData && number < s.blocks && n <= s.blocks-number
}
