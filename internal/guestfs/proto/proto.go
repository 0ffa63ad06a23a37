// Package proto is what a process that reads guest file systems and the one that
// started it say to each other: CBOR (RFC 8949) in frames on one socket, reads of
// disks on another. Neither side believes the other's lengths.
package proto

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/sendense/sendense/internal/guestfs/drivers"
	"github.com/sendense/sendense/internal/guestfs/fsys"
	"github.com/sendense/sendense/internal/guestfs/tree"
	"github.com/sendense/sendense/internal/guestfs/volume"
)

// MaxFrame is the length of a frame that is taken, in bytes.
const MaxFrame = 32 << 20

// Op is what is asked for.
type Op uint8

// The requests. Open comes first, and answers once for each machine.
const (
	Open Op = iota + 1
	Resolve
	Lookup
	Stat
	List // entries of a directory with attributes, from N on
	Readlink
	Xattrs
	Extents
	Read
	Walk  // begins a stream
	Diff  // begins a stream
	Next  // more of a stream, if there is some within N milliseconds
	Stop  // of a stream
	Dirty // says what differs on the disk with index N between machines 0 and 1
	Volumes
	Drivers // what hardware the guest can run on
)

// Request asks for something.
type Request struct {
	ID      uint64    `cbor:"1,keyasint"`
	Op      Op        `cbor:"2,keyasint"`
	Machine int       `cbor:"3,keyasint,omitempty"`
	Node    tree.Node `cbor:"4,keyasint,omitempty"`
	Name    string    `cbor:"5,keyasint,omitempty"`
	Path    string    `cbor:"6,keyasint,omitempty"`
	Follow  bool      `cbor:"7,keyasint,omitempty"`
	Off     int64     `cbor:"8,keyasint,omitempty"`
	N       int64     `cbor:"9,keyasint,omitempty"`
	Stream  uint64    `cbor:"10,keyasint,omitempty"`
	Other   tree.Node `cbor:"11,keyasint,omitempty"` // of Diff: in machine 1
	Disks   [][]Disk  `cbor:"12,keyasint,omitempty"` // of Open: by machine
	// Passphrases and Keys are tried on encrypted containers by Open.
	Passphrases [][]byte     `cbor:"13,keyasint,omitempty"`
	Ranges      [][2]int64   `cbor:"14,keyasint,omitempty"` // of Dirty: offset and length
	Match       tree.Match   `cbor:"15,keyasint,omitempty"` // of Walk
	More        More         `cbor:"17,keyasint,omitempty"` // of Walk
	Keys        []volume.Key `cbor:"18,keyasint,omitempty"`
}

// More says what entries of a walk come with, beside their attributes.
type More uint8

// What there may be more.
const (
	Targets   More = 1 << iota // of symbolic links
	AllXattrs                  // extended attributes
	Places                     // the first extents of files, and what is in small ones that lies nowhere as it is
)

// Disk is a disk of a machine. Number is what reads name it by.
type Disk struct {
	Number int    `cbor:"1,keyasint"`
	Index  int    `cbor:"2,keyasint"`
	Key    string `cbor:"3,keyasint"`
	Size   int64  `cbor:"4,keyasint"`
}

// Reply answers a request.
type Reply struct {
	ID       uint64        `cbor:"1,keyasint"`
	Err      *Error        `cbor:"2,keyasint,omitempty"`
	Node     tree.Node     `cbor:"3,keyasint,omitempty"`
	Path     string        `cbor:"4,keyasint,omitempty"`
	Attr     Attr          `cbor:"5,keyasint,omitempty"`
	Entries  []Entry       `cbor:"6,keyasint,omitempty"`
	Xattrs   []fsys.Xattr  `cbor:"7,keyasint,omitempty"`
	Extents  []tree.Extent `cbor:"8,keyasint,omitempty"`
	Data     []byte        `cbor:"9,keyasint,omitempty"`
	Stream   uint64        `cbor:"10,keyasint,omitempty"`
	Changes  []Change      `cbor:"11,keyasint,omitempty"`
	Machines []Machine     `cbor:"12,keyasint,omitempty"`
	Done     bool          `cbor:"13,keyasint,omitempty"` // of List and Next: that was all
	Drivers  drivers.Guest `cbor:"16,keyasint,omitempty"`
	Keys     []volume.Key  `cbor:"17,keyasint,omitempty"` // of Open: those that unlocked something
	Later    bool          `cbor:"18,keyasint,omitempty"` // of Next: there is nothing yet
}

// Machine is what the disks of a machine hold.
type Machine struct {
	OS      tree.OS       `cbor:"1,keyasint"`
	Volumes []tree.Volume `cbor:"2,keyasint"`
	Root    bool          `cbor:"3,keyasint"` // it has a tree of its own
	// Notes are about what is no volume of its own: disks with tables, groups, arrays
	// and their members.
	Notes []string `cbor:"4,keyasint,omitempty"`
}

// Entry is a name of a directory, or of a walk, with its attributes.
type Entry struct {
	Name string    `cbor:"1,keyasint"`
	Node tree.Node `cbor:"2,keyasint"`
	Attr Attr      `cbor:"3,keyasint"`
	Err  *Error    `cbor:"4,keyasint,omitempty"` // why there are none

	Target    string        `cbor:"5,keyasint,omitempty"`
	Xattrs    []fsys.Xattr  `cbor:"6,keyasint,omitempty"`
	XattrsErr *Error        `cbor:"7,keyasint,omitempty"`
	Extents   []tree.Extent `cbor:"8,keyasint,omitempty"`
	Data      []byte        `cbor:"9,keyasint,omitempty"` // all of a small file
}

// Change is a difference between two machines.
type Change struct {
	Path string    `cbor:"1,keyasint"`
	What tree.What `cbor:"2,keyasint"`
	Old  Attr      `cbor:"3,keyasint"`
	New  Attr      `cbor:"4,keyasint"`
	Err  string    `cbor:"5,keyasint,omitempty"`
}

// Attr is an fsys.Attr on its way.
type Attr struct {
	Mode      uint32      `cbor:"1,keyasint,omitempty"`
	UID       uint32      `cbor:"2,keyasint,omitempty"`
	GID       uint32      `cbor:"3,keyasint,omitempty"`
	Links     uint32      `cbor:"4,keyasint,omitempty"`
	Size      int64       `cbor:"5,keyasint,omitempty"`
	Allocated int64       `cbor:"6,keyasint,omitempty"`
	Times     [4][2]int64 `cbor:"7,keyasint,omitempty"` // seconds and nanoseconds; 0 0: none
	Rdev      [2]uint32   `cbor:"8,keyasint,omitempty"`
	Flags     []string    `cbor:"9,keyasint,omitempty"`
}

// PackAttr makes an Attr.
func PackAttr(a fsys.Attr) Attr {
	p := Attr{Mode: uint32(a.Mode), UID: a.UID, GID: a.GID, Links: a.Links, Size: a.Size, Allocated: a.Allocated,
		Rdev: [2]uint32{a.Major, a.Minor}, Flags: a.Flags}
	for i, t := range []time.Time{a.Modified, a.Changed, a.Created, a.Accessed} {
		if !t.IsZero() {
			p.Times[i] = [2]int64{t.Unix(), int64(t.Nanosecond())}
		}
	}
	return p
}

// Unpack makes an fsys.Attr.
func (p Attr) Unpack() fsys.Attr {
	a := fsys.Attr{Mode: fs.FileMode(p.Mode), UID: p.UID, GID: p.GID, Links: p.Links, Size: max(p.Size, 0), Allocated: p.Allocated,
		Major: p.Rdev[0], Minor: p.Rdev[1], Flags: p.Flags}
	for i, t := range []*time.Time{&a.Modified, &a.Changed, &a.Created, &a.Accessed} {
		if p.Times[i] != [2]int64{} {
			*t = time.Unix(p.Times[i][0], p.Times[i][1])
		}
	}
	return a
}

// Error is an error on its way: what it says, and which of the known ones it is.
type Error struct {
	Text    string `cbor:"1,keyasint"`
	Code    uint8  `cbor:"2,keyasint,omitempty"`
	Path    string `cbor:"3,keyasint,omitempty"` // of a tree.PathError
	Nearest string `cbor:"4,keyasint,omitempty"`
}

// known are the errors that keep their identity; of several in one the first does.
var known = []error{nil, fsys.ErrVolume, fs.ErrNotExist, tree.ErrNotDir, fsys.ErrCorrupt, fsys.ErrUnsupported, fsys.ErrNotFound,
	tree.ErrNoRoot, io.EOF, ErrStream, tree.ErrLinks, tree.ErrLocked, ErrBusy}

var (
	// ErrStream says that there is no such stream.
	ErrStream = errors.New("no such stream")
	// ErrBusy says that there are as many streams as may be.
	ErrBusy = errors.New("too many walks at a time")
)

// PackError makes an Error; nil of nil.
func PackError(err error) *Error {
	if err == nil {
		return nil
	}
	p := &Error{Text: err.Error()}
	for i, k := range known {
		if k != nil && errors.Is(err, k) {
			p.Code = uint8(i)
			break
		}
	}
	var path *tree.PathError
	if errors.As(err, &path) {
		p.Text, p.Path, p.Nearest = path.Err.Error(), path.Path, path.Nearest
	}
	return p
}

// Unpack makes an error that reads as the packed one and is the known one.
func (p *Error) Unpack() error {
	if p == nil {
		return nil
	}
	var err error = &remote{p.Text, nil}
	if int(p.Code) < len(known) {
		err = &remote{p.Text, known[p.Code]}
	}
	if p.Path != "" {
		err = &tree.PathError{Path: p.Path, Nearest: p.Nearest, Err: err}
	}
	return err
}

// Remote reports whether an error is one that the other side sent.
func Remote(err error) bool {
	var r *remote
	return errors.As(err, &r)
}

type remote struct {
	text string
	is   error
}

func (e *remote) Error() string { return e.text }
func (e *remote) Unwrap() error { return e.is }

// ErrMessage says that a message is none that may be sent.
var ErrMessage = errors.New("message makes no sense")

// Conn sends and receives frames. One goroutine may receive, any may send.
type Conn struct {
	r  *bufio.Reader
	mu sync.Mutex // held to send
	w  io.Writer
}

// NewConn returns a Conn on a stream.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{r: bufio.NewReaderSize(rw, 64<<10), w: rw} }

// Send sends one message.
func (c *Conn) Send(v any) error {
	b, err := cbor.Marshal(v)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if len(b) > MaxFrame {
		return fmt.Errorf("%w: it has %d bytes", ErrMessage, len(b))
	}
	if err := check(b); err != nil {
		return err
	}
	frame := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...)
	// There may be passphrases in it, which are not to lie about.
	defer clear(frame)
	clear(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.w.Write(frame)
	return err
}

// decoding bounds what a frame may make of its bytes.
var decoding = func() cbor.DecMode {
	o := cbor.DecOptions{MaxArrayElements: maxArray, MaxMapPairs: maxPairs, MaxNestedLevels: 8, TagsMd: cbor.TagsForbidden,
		IndefLength: cbor.IndefLengthForbidden, UTF8: cbor.UTF8DecodeInvalid} // names are bytes
	m, err := o.DecMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// Receive receives one message into v.
func (c *Conn) Receive(v any) error {
	var head [4]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return fmt.Errorf("%w: it has %d bytes", ErrMessage, n)
	}
	b := make([]byte, n)
	defer clear(b)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return err
	}
	if err := check(b); err != nil {
		return err
	}
	if err := decoding.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return nil
}
