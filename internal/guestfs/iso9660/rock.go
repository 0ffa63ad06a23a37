package iso9660

import (
	"fmt"
	"io/fs"
	"time"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// rock is what the entries of Rock Ridge say of a record.
type rock struct {
	name      []byte // nil: nothing
	hasMode   bool
	mode      fs.FileMode
	links     uint32
	uid, gid  uint32
	major     uint32
	minor     uint32
	times     [7]time.Time // creation, modification, access, change of attributes, …
	target    target
	child     uint32 // block of the directory that the record stands for
	isChild   bool
	relocated bool // the directory is shown elsewhere
	sparse    bool
	zisofs    *zisofs
}

// Indexes of times, which are the numbers of their bits in TF.
const (
	timeCreated = iota
	timeModified
	timeAccessed
	timeChanged
)

// rockOf reads the entries of a record. There are none on a disc without them.
func (f *FS) rockOf(r record) (rock, error) {
	var k rock
	if !f.rock {
		return k, nil
	}
	area := r.systemUse()
	area = area[min(f.skip, len(area)):]
	err := f.entries(area, k.take)
	return k, err
}

// take reads an entry (RRIP 4.1).
func (k *rock) take(e entry) error {
	switch string(e[:2]) {
	case "PX":
		if len(e) >= 36 {
			k.hasMode, k.mode = true, modeOf(e.number(4))
			k.links, k.uid, k.gid = e.number(12), e.number(20), e.number(28)
		}
	case "PN":
		k.major, k.minor = e.number(4), e.number(12)
		if dev := k.minor; k.major == 0 && dev > 0xff { // all of it is in the lower half, as glibc has it
			k.major, k.minor = dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
		}
	case "NM":
		const current, parent, known = 2, 4, 1
		if len(e) < 5 || e[4]&(current|parent) != 0 || e[4]&^known != 0 {
			break
		}
		if len(k.name)+len(e)-5 > maxName {
			return fmt.Errorf("a name of more than %d bytes: %w", maxName, fsys.ErrCorrupt)
		}
		k.name = append(k.name, e[5:]...)
	case "SL":
		return k.target.add(e)
	case "TF":
		k.takeTimes(e)
	case "CL":
		k.child, k.isChild = e.number(4), true
	case "RE":
		k.relocated = true
	case "SF":
		k.sparse = true
	case "ZF":
		k.zisofs = parseZisofs(e)
	}
	return nil
}

// maxName is how long a name may be, in bytes: Linux has none that is longer.
const maxName = 255

// takeTimes reads an entry TF (RRIP 4.1.6).
func (k *rock) takeTimes(e entry) {
	const long = 0x80
	if len(e) < 5 {
		return
	}
	size, decode := 7, shortTime
	if e[4]&long != 0 {
		size, decode = 17, longTime
	}
	b := e[5:]
	for i := range k.times {
		if e[4]&(1<<i) == 0 {
			continue
		}
		if len(b) < size {
			return
		}
		k.times[i] = decode(b[:size])
		b = b[size:]
	}
}

// modeOf translates a mode of POSIX (RRIP 4.1.1).
func modeOf(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & 0o170000 {
	case 0o040000:
		mode |= fs.ModeDir
	case 0o120000:
		mode |= fs.ModeSymlink
	case 0o010000:
		mode |= fs.ModeNamedPipe
	case 0o140000:
		mode |= fs.ModeSocket
	case 0o060000:
		mode |= fs.ModeDevice
	case 0o020000:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case 0o100000:
	default:
		mode |= fs.ModeIrregular
	}
	for bit, x := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= x
		}
	}
	return mode
}

// target is that of a symbolic link, in the making.
type target struct {
	path  []byte
	slash bool // one comes before the next component
	err   error
}

// maxTarget is how long a target may be, in bytes: Linux has none that is longer.
const maxTarget = 4096

// Flags of the components of a target (RRIP 4.1.3.1).
const (
	componentGoesOn  = 0x01
	componentCurrent = 0x02
	componentParent  = 0x04
	componentRoot    = 0x08
)

// add appends the components of an entry SL (RRIP 4.1.3). What cannot be translated
// is an error of the link, not of its inode.
func (t *target) add(e entry) error {
	if len(e) < 5 {
		return nil
	}
	for b := e[5:]; len(b) >= 2; {
		flags, n := b[0], int(b[1])
		if n > len(b)-2 {
			t.err = fmt.Errorf("a link whose target is cut off: %w", fsys.ErrCorrupt)
			return nil
		}
		text := b[2 : 2+n]
		b = b[2+n:]
		if t.slash {
			t.path = append(t.path, '/')
		}
		t.slash = flags&componentGoesOn == 0
		switch flags &^ componentGoesOn {
		case 0:
			t.path = append(t.path, text...)
		case componentCurrent:
			t.path = append(t.path, '.')
		case componentParent:
			t.path = append(t.path, ".."...)
		case componentRoot:
			t.path, t.slash = append(t.path, '/'), false
		default:
			t.err = fmt.Errorf("a link to the mount point or host of who reads it: %w", fsys.ErrUnsupported)
		}
		if len(t.path) > maxTarget {
			return fmt.Errorf("a link with a target of more than %d bytes: %w", maxTarget, fsys.ErrCorrupt)
		}
	}
	return nil
}

// text returns the target.
func (t *target) text() (string, error) { return string(t.path), t.err }
