package child

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// disks reads disks through a socket: requests of the number of the read and of
// the disk, length and offset; answers of the number of the read, how it went and
// how much follows.
type disks struct {
	w net.Conn

	send sync.Mutex // held to send

	mu    sync.Mutex // guards the fields below
	last  uint64
	reads map[uint64]*read
}

type read struct {
	p    []byte
	done chan error
}

// Lengths of what goes through the socket in front of data.
const (
	requestLen = 24
	answerLen  = 16
)

func newDisks(c net.Conn) *disks {
	d := &disks{w: c, reads: map[uint64]*read{}}
	go func() {
		// Without its disks this process is of no use.
		err := d.receive(bufio.NewReaderSize(c, 256<<10))
		if errors.Is(err, io.EOF) {
			os.Exit(0)
		}
		fmt.Fprintln(os.Stderr, "read from the disks:", err)
		os.Exit(1)
	}()
	return d
}

func (d *disks) receive(r io.Reader) error {
	var head [answerLen]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		id, status, n := binary.LittleEndian.Uint64(head[:]), binary.LittleEndian.Uint32(head[8:]), binary.LittleEndian.Uint32(head[12:])
		d.mu.Lock()
		x := d.reads[id]
		delete(d.reads, id)
		d.mu.Unlock()
		switch {
		case x == nil:
			return fmt.Errorf("answer to read %d, which nobody made", id)
		case status != 0:
			x.done <- fsys.ErrVolume
			continue
		case int(n) != len(x.p):
			return fmt.Errorf("answer of %d bytes to a read of %d", n, len(x.p))
		}
		_, err := io.ReadFull(r, x.p)
		x.done <- err
		if err != nil {
			return err
		}
	}
}

// maxPiece is how much one request reads, in bytes.
const maxPiece = 1 << 20

func (d *disks) readAt(number int, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), maxPiece)
		if err := d.readPiece(number, p[:n], off); err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (d *disks) readPiece(number int, p []byte, off int64) error {
	x := &read{p, make(chan error, 1)}
	d.mu.Lock()
	d.last++
	id := d.last
	d.reads[id] = x
	d.mu.Unlock()
	var b [requestLen]byte
	binary.LittleEndian.PutUint64(b[:], id)
	binary.LittleEndian.PutUint32(b[8:], uint32(number))
	binary.LittleEndian.PutUint32(b[12:], uint32(len(p)))
	binary.LittleEndian.PutUint64(b[16:], uint64(off))
	d.send.Lock()
	_, err := d.w.Write(b[:])
	d.send.Unlock()
	if err != nil {
		return err
	}
	return <-x.done
}

// disk is one disk, as a volume.
type disk struct {
	d      *disks
	number int
	size   int64
}

func (d *disk) Size() int64 { return d.size }

func (d *disk) ReadAt(p []byte, off int64) error {
	if err := fsys.CheckRange(off, int64(len(p)), d.size); err != nil {
		return err
	}
	return d.d.readAt(d.number, p, off)
}
