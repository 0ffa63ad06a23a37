package btrfs

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// memory is a Volume of bytes.
type memory = fstest.Memory

// item is one of a leaf.
type item struct {
	k    key
	data []byte
}

const (
	tinyNode  = 4096
	tinyStart = 128 << 10 // of the only chunk; logical addresses are those of the volume
	tinySize  = 64 << 10

	devItemsObject = 1 // of keys of the devices
)

// Where the blocks of a tiny file system are.
const (
	tinyChunks = tinyStart + iota*tinyNode
	tinyRoots
	tinyFiles
	tinyLogs
	tinyLog
	tinyData
)

// leaf returns the part of a leaf behind its header, with a count of items.
func leaf(items ...item) (body []byte, n int) {
	slices.SortFunc(items, func(a, b item) int { return a.k.compare(b.k) })
	body = make([]byte, tinyNode-headerSize)
	end := len(body)
	for i, it := range items {
		end -= len(it.data)
		copy(body[end:], it.data)
		it.k.put(body[i*itemSize:])
		binary.LittleEndian.PutUint32(body[i*itemSize+keySize:], uint32(end))
		binary.LittleEndian.PutUint32(body[i*itemSize+keySize+4:], uint32(len(it.data)))
	}
	return body, len(items)
}

// tiny is a file system of a few blocks, of which tests make what they like.
type tiny struct{ b []byte }

func newTiny() tiny {
	t := tiny{make([]byte, tinyStart+tinySize)}
	s := t.b[64<<10:][:superSize]
	put := func(at int, v uint64) { binary.LittleEndian.PutUint64(s[at:], v) }
	copy(s[64:], magic)
	for at, v := range map[int]uint64{48: 64 << 10, 72: 7, 80: tinyRoots, 88: tinyChunks, 112: uint64(len(t.b)), 128: 6, 136: 1, 164: 7} {
		put(at, v)
	}
	binary.LittleEndian.PutUint32(s[144:], tinyNode)
	binary.LittleEndian.PutUint32(s[148:], tinyNode)
	device := make([]byte, deviceItemSize)
	device[0] = 1
	copy(s[201:], device)
	chunk := make([]byte, chunkBytes(1))
	for at, v := range map[int]uint64{0: tinySize, 16: stripeLen, 24: chunkTypes, 48: 1, 56: tinyStart} {
		binary.LittleEndian.PutUint64(chunk[at:], v)
	}
	chunk[44] = 1
	chunkKey := key{firstFreeID, chunkItem, tinyStart}
	chunkKey.put(s[811:])
	copy(s[811+keySize:], chunk)
	binary.LittleEndian.PutUint32(s[160:], uint32(keySize+len(chunk)))
	t.put(tinyChunks, 7, item{chunkKey, chunk}, item{key{devItemsObject, devItem, 1}, device})
	t.put(tinyRoots, 7, item{key{topLevelID, rootItem, 0}, tinyRoot(tinyFiles, 7)})
	t.seal()
	return t
}

// tinyRoot returns the root item of a tree of one leaf.
func tinyRoot(at, generation uint64) []byte {
	b := make([]byte, 439)
	binary.LittleEndian.PutUint64(b[rootGeneration:], generation)
	binary.LittleEndian.PutUint64(b[rootDirID:], firstFreeID)
	binary.LittleEndian.PutUint64(b[rootBytenr:], at)
	b[rootRefs] = 1
	return b
}

// put writes a leaf.
func (t tiny) put(at int, generation uint64, items ...item) {
	body, n := leaf(items...)
	t.putRaw(at, generation, body, n)
}

func (t tiny) putRaw(at int, generation uint64, body []byte, n int) {
	b := t.b[at:][:tinyNode]
	clear(b)
	binary.LittleEndian.PutUint64(b[48:], uint64(at))
	binary.LittleEndian.PutUint64(b[80:], generation)
	binary.LittleEndian.PutUint32(b[96:], uint32(n))
	copy(b[headerSize:], body)
	copy(b, checksums[0].sum(b[32:]))
}

// leaf returns what putRaw wrote.
func (t tiny) leaf(at int) (body []byte, n uint8) {
	return t.b[at+headerSize : at+tinyNode], t.b[at+96]
}

// log gives the file system a log of the topmost subvolume.
func (t tiny) log() {
	binary.LittleEndian.PutUint64(t.b[64<<10+96:], tinyLogs)
	t.put(tinyLogs, 8, item{key{treeLogObject, rootItem, topLevelID}, tinyRoot(tinyLog, 8)})
	t.seal()
}

// seal writes the checksum of the superblock.
func (t tiny) seal() {
	s := t.b[64<<10:][:superSize]
	copy(s, checksums[0].sum(s[32:]))
}

func (t tiny) open(o Options) (*FS, error) { return OpenWith([]fsys.Volume{memory(t.b)}, o) }

// tinyInode returns an inode item.
func tinyInode(mode uint32, size uint64) []byte {
	b := make([]byte, inodeSize)
	b[inodeGeneration] = 7
	binary.LittleEndian.PutUint64(b[inodeSizeAt:], size)
	binary.LittleEndian.PutUint32(b[inodeLinksAt:], 1)
	binary.LittleEndian.PutUint32(b[inodeModeAt:], mode)
	return b
}

// tinyEntry returns an entry of a directory.
func tinyEntry(location key, kind uint8, name string) []byte {
	b := make([]byte, dirEntrySize, dirEntrySize+len(name))
	location.put(b)
	binary.LittleEndian.PutUint16(b[27:], uint16(len(name)))
	b[29] = kind
	return append(b, name...)
}

// tinyExtent returns an extent that is not inline.
func tinyExtent(kind, compression uint8, ram, disk, diskLen, offset, n uint64) []byte {
	b := make([]byte, regularSize)
	b[16], b[20] = compression, kind
	for at, v := range map[int]uint64{8: ram, 21: disk, 29: diskLen, 37: offset, 45: n} {
		binary.LittleEndian.PutUint64(b[at:], v)
	}
	return b
}

// tinyInline returns an inline extent.
func tinyInline(compression uint8, ram uint64, data []byte) []byte {
	b := make([]byte, inlineStart, inlineStart+len(data))
	binary.LittleEndian.PutUint64(b[8:], ram)
	b[16] = compression
	return append(b, data...)
}

// named returns the items of a name in a directory.
func named(dir, inode, index uint64, kind uint8, name string) []item {
	e := tinyEntry(key{inode, inodeItem, 0}, kind, name)
	return []item{
		{key{dir, dirItem, nameHash([]byte(name))}, e}, {key{dir, dirIndex, index}, e},
		{key{inode, inodeRef, dir}, appendRef(nil, key{inode, inodeRef, dir}, ref{dir, index, []byte(name)})},
	}
}

// tinyFileSystem is one with a bit of everything.
func tinyFileSystem() []item {
	items := []item{
		{key{256, inodeItem, 0}, tinyInode(0o40755, 0)},
		{key{256, inodeRef, 256}, appendRef(nil, key{256, inodeRef, 256}, ref{256, 0, []byte("..")})},
		{key{257, inodeItem, 0}, tinyInode(0o100644, 5)}, {key{257, extentData, 0}, tinyInline(0, 5, []byte("hello"))},
		{key{258, inodeItem, 0}, tinyInode(0o100644, 20000)},
		{key{258, extentData, 0}, tinyExtent(extentRegular, 0, 4096, tinyData, 4096, 0, 4096)},
		{key{258, extentData, 8192}, tinyExtent(extentPrealloc, 0, 8192, tinyData+4096, 8192, 4096, 4096)},
		{key{258, extentData, 12288}, tinyExtent(extentRegular, 2, 8192, tinyData+4096, 4096, 4096, 4096)},
		{key{259, inodeItem, 0}, tinyInode(0o120777, 5)}, {key{259, extentData, 0}, tinyInline(0, 5, []byte("hello"))},
		{key{260, inodeItem, 0}, tinyInode(0o40755, 0)},
		{key{257, xattrItem, nameHash([]byte("user.x"))}, tinyEntry(key{}, 8, "user.x")},
	}
	items = append(items, named(256, 257, 2, 1, "file")...)
	items = append(items, named(256, 258, 3, 1, "extents")...)
	items = append(items, named(256, 259, 4, 7, "link")...)
	return append(items, named(256, 260, 5, 2, "dir")...)
}

// visit calls everything for everything that can be reached, and returns the first
// error.
func visit(f *FS) error {
	var first error
	note := func(err error) {
		if first == nil && !errors.Is(err, io.EOF) {
			first = err
		}
	}
	seen := map[fsys.ID]bool{}
	for queue := []fsys.ID{f.Root()}; len(queue) > 0 && len(seen) < 1000; queue = queue[1:] {
		id := queue[0]
		if seen[id] {
			continue
		}
		seen[id] = true
		a, err := f.Stat(id)
		note(err)
		if err != nil {
			continue
		}
		_, err = f.Xattrs(id)
		note(err)
		switch {
		case a.Mode.IsDir():
			note(f.ReadDir(id, func(e fsys.Entry) bool {
				_, err := f.Lookup(id, e.Name)
				note(err)
				queue = append(queue, e.ID)
				return true
			}))
		case a.Mode.IsRegular():
			_, err := f.Extents(id, 0, a.Size)
			note(err)
			p := make([]byte, 20000)
			for _, off := range []int64{0, a.Size / 2, max(a.Size-100, 0)} {
				_, err := f.ReadAt(id, p, off)
				note(err)
			}
		default:
			_, _ = f.Readlink(id)
		}
	}
	return first
}
