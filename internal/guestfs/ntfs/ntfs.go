// Package ntfs reads NTFS 3.0 and 3.1, as Windows 2000 and everything after it
// writes it. It knows the format only: nothing of drive letters, registries or
// accounts. So files belong to nobody, links to drives are followed where their
// path exists on the same volume, and what the log of an unclean volume holds is
// told and not replayed.
//
// An inode's ID is its file reference: the number of its MFT record in the lower
// 48 bits, above it the number of times that the record was used, which is
// compared whenever the record is read.
//
// The kind of an entry comes from the copy of attributes that a directory keeps.
// For a file with several names, Windows brings that copy up to date only under
// the name by which the file was opened.
package ntfs

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Options tell how to read a volume.
type Options struct {
	CacheBytes int64 // what structures may take in memory; default 20 MiB, below zero: none is kept
}

// Records of the MFT with a fixed place.
const (
	recordMFT    = 0
	recordLog    = 2
	recordVolume = 3
	recordRoot   = 5
	recordBitmap = 6
	recordUpCase = 10
	firstUser    = 16 // below are the system's own files
)

// fileSystem is an open volume.
type fileSystem struct {
	geometry
	raw  fsys.Volume // for content
	vol  fsys.Volume // for structures
	mft  []run
	mfts int64 // records of the MFT that there are
	up   upcase
	root fsys.ID
	info fsys.Info

	contents    *fsys.LRU[fsys.ID, *content]
	directories *fsys.LRU[fsys.ID, *directory]
	units       *fsys.LRU[unitKey, []byte]

	counting sync.Once // guards free
	free     int64
}

var _ fsys.Late = (*fileSystem)(nil)

// Open opens the file system on a volume. The error wraps fsys.ErrNotFound if
// there is none.
func Open(v fsys.Volume) (fsys.FileSystem, error) { return OpenWith(v, Options{}) }

// OpenWith is Open with options.
func OpenWith(v fsys.Volume, o Options) (fsys.FileSystem, error) {
	if v.Size() < bootBytes {
		return nil, fmt.Errorf("read a boot sector: the volume has %d bytes: %w", v.Size(), fsys.ErrNotFound)
	}
	boot := make([]byte, bootBytes)
	if err := v.ReadAt(boot, 0); err != nil {
		return nil, err
	}
	g, err := parseBoot(boot, v.Size())
	if err != nil {
		return nil, err
	}
	f := &fileSystem{
		geometry: g, raw: v, vol: v,
		contents: fsys.NewLRU[fsys.ID, *content](4<<20, math.MaxInt64), directories: fsys.NewLRU[fsys.ID, *directory](2<<20, math.MaxInt64), units: fsys.NewLRU[unitKey, []byte](4<<20, math.MaxInt64),
	}
	if o.CacheBytes >= 0 {
		f.vol = fsys.Cached(v, cmp.Or(o.CacheBytes, 20<<20))
	}
	for _, step := range []func() error{f.openMFT, f.openUpCase, f.openVolume, f.openRoot} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	f.info.Notes = append(f.info.Notes, f.logNotes()...)
	f.info.Notes = append(f.info.Notes, f.hibernationNotes()...)
	return f, nil
}

// openMFT finds the records. The first of them tells where all of them are, with
// the help of others if need be; those lie in what was found before.
func (f *fileSystem) openMFT() error {
	b := make([]byte, f.recordBytes)
	if err := f.vol.ReadAt(b, f.mftCluster*f.clusterBytes); err != nil {
		return err
	}
	r, err := parseRecord(b, recordMFT)
	if err != nil {
		return err
	}
	first := r.find(typeData, nil)
	if first == nil || first.resident || first.lowest != 0 {
		return corruptf("open the MFT: its first record does not tell where it is")
	}
	if f.mft, err = f.runs(first); err != nil {
		return fmt.Errorf("open the MFT: %w", err)
	}
	f.mfts = min(first.initialized, mapped(f.mft)*f.clusterBytes) / f.recordBytes
	in := &inode{id: reference(recordMFT, r.sequence), base: r}
	if in.list, err = f.attributeList(r); err != nil {
		return fmt.Errorf("open the MFT: %w", err)
	}
	for _, e := range in.list {
		if e.typ != typeData || len(e.name) > 0 || e.lowest == 0 {
			continue
		}
		if err := f.extendMFT(in, e, first.initialized); err != nil {
			return fmt.Errorf("open the MFT: %w", err)
		}
	}
	if mapped(f.mft)*f.clusterBytes < first.initialized {
		return corruptf("open the MFT: where %d of its %d bytes are is not told", first.initialized-mapped(f.mft)*f.clusterBytes, first.initialized)
	}
	return nil
}

// maxMFTRuns bounds the memory that a fragmented MFT takes.
const maxMFTRuns = 1 << 19

// extendMFT adds the runs that an entry of the MFT's attribute list stands for.
func (f *fileSystem) extendMFT(in *inode, e listEntry, initialized int64) error {
	if e.lowest != mapped(f.mft) {
		return corruptf("read its runs: cluster %d comes after %d", e.lowest, mapped(f.mft))
	}
	a, err := f.listed(in, e)
	if err != nil {
		return err
	}
	runs, err := f.runs(a)
	if err != nil {
		return err
	}
	if f.mft = append(f.mft, runs...); len(f.mft) > maxMFTRuns {
		return unsupportedf("an MFT of more than %d pieces", maxMFTRuns)
	}
	f.mfts = min(initialized, mapped(f.mft)*f.clusterBytes) / f.recordBytes
	return nil
}

// openUpCase reads the table by which names are compared.
func (f *fileSystem) openUpCase() error {
	b, err := f.system(recordUpCase, typeData, 2*len(f.up))
	if err != nil {
		return fmt.Errorf("read the table of upper case letters: %w", err)
	}
	if len(b) != 2*len(f.up) {
		return corruptf("read the table of upper case letters: it has %d bytes", len(b))
	}
	for i := range f.up {
		f.up[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return nil
}

// openVolume reads what the volume says of itself.
func (f *fileSystem) openVolume() error {
	f.info = fsys.Info{
		Type: "ntfs", UUID: fmt.Sprintf("%016X", f.serial), BlockSize: f.clusterBytes, Size: f.clusters * f.clusterBytes, FoldsCase: true,
	}
	b, err := f.system(recordVolume, typeVolumeInformation, 1<<10)
	if err != nil || len(b) < 12 {
		return errors.Join(corruptf("read what the volume says of itself: %d bytes", len(b)), err)
	}
	if major, minor := b[8], b[9]; major != 3 || minor > 1 {
		return unsupportedf("NTFS version %d.%d", major, minor)
	}
	f.info.Notes = volumeNotes(binary.LittleEndian.Uint16(b[10:]))
	label, err := f.system(recordVolume, typeVolumeName, 1<<10)
	if err != nil && !errors.Is(err, errNoAttribute) {
		return fmt.Errorf("read the label: %w", err)
	}
	f.info.Label = decodeName(label)
	return nil
}

func (f *fileSystem) openRoot() error {
	r, err := f.record(recordRoot)
	if err != nil {
		return fmt.Errorf("open the root directory: %w", err)
	}
	f.root = reference(recordRoot, r.sequence)
	if _, err := f.directory(f.root); err != nil {
		return fmt.Errorf("open the root directory: %w", err)
	}
	return nil
}

// system returns an attribute of a file of the system's, of no more than limit
// bytes.
func (f *fileSystem) system(number uint64, typ uint32, limit int) ([]byte, error) {
	in, err := f.inode(reference(number, 0))
	if err != nil {
		return nil, err
	}
	return f.value(in, typ, nil, limit)
}

// Info implements fsys.FileSystem.
func (f *fileSystem) Info() fsys.Info {
	f.counting.Do(func() { f.free = f.countFree() })
	info := f.info
	info.Free = f.free
	return info
}

// Root implements fsys.FileSystem.
func (f *fileSystem) Root() fsys.ID { return f.root }

// RecordsComeLate implements fsys.Late.
func (f *fileSystem) RecordsComeLate() {}

// Inode implements fsys.Inodes. The first sector of a record holds a number that
// changes whenever the record is written. While a program keeps a file open,
// Windows may write its content long before its record: where that was so, only
// the content itself tells.
func (f *fileSystem) Inode(id fsys.ID) (off, n int64, err error) {
	number := int64(numberOf(id))
	if number >= f.mfts {
		return 0, 0, corruptf("find MFT record %d: there are %d", number, f.mfts)
	}
	at := number * f.recordBytes
	i := runAt(f.mft, at/f.clusterBytes)
	r := f.mft[i]
	if r.lcn < 0 {
		return 0, 0, corruptf("find MFT record %d: it lies in a hole", number)
	}
	in := at - r.vcn*f.clusterBytes
	return r.lcn*f.clusterBytes + in, min(f.recordBytes, r.n*f.clusterBytes-in), nil
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, fsys.ErrCorrupt)...)
}

func unsupportedf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, fsys.ErrUnsupported)...)
}
