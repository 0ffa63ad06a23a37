package instant

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A redo log holds the changes of an overlay since a flush, in the order they were
// made. It lives in the page cache: it survives the death of the process, and is
// worth nothing after the kernel's, which takes the guest along too. So nothing of
// it is ever synced, and one of an earlier boot is thrown away.
//
// Its files, the segments, are used again and again: making and removing one for
// each flush would cost more than the flush. Layout: 8 bytes magic, 36 bytes boot
// id, the number of this use (8; 0: in none), then records: operation and flags (1
// byte each), 2 bytes of zero, CRC-32C of the number, the record with this field as
// zero, and its data (4), offset (8), length (8), and for opWrite the data. Records
// of an earlier use, which may follow, have another number. Integers are
// little-endian.
const (
	redoMagic  = "SDREDO\x00\x02"
	redoNumber = len(redoMagic) + bootIDBytes // where the number stands
	redoHeader = redoNumber + 8
	redoRecord = 24

	bootIDBytes = 36
	// maxRedoData bounds the data of one record when logs are read back, in bytes.
	maxRedoData = 1 << 30
	// keptRedo is how long a segment may be to be kept for another use, in bytes.
	keptRedo = 4 << 20
)

type redoOp byte

const (
	opWrite redoOp = 1
	opZero  redoOp = 2
	opTrim  redoOp = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// bootID names the boot of the kernel.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	id := strings.TrimSpace(string(b))
	if len(id) != bootIDBytes {
		return "", fmt.Errorf("boot id %q: want %d characters", id, bootIDBytes)
	}
	return id, nil
}

// segment is one file of a redo log.
type segment struct {
	path   string
	f      *os.File
	number uint64 // of this use

	mu   sync.Mutex // guards the field below, and keeps records in a row
	size int64
}

// newSegment makes a file for the use of a number.
func newSegment(path, boot string, number uint64) (*segment, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create redo log: %w", err)
	}
	s := &segment{path: path, f: f}
	_, err = f.WriteAt([]byte(redoMagic+boot), 0)
	if err == nil {
		err = s.use(number)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create redo log: %w", err), s.remove())
	}
	return s, nil
}

// use begins a use of the segment, without records; 0 ends one: its records are
// not done again.
func (s *segment) use(number uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.f.WriteAt(binary.LittleEndian.AppendUint64(nil, number), int64(redoNumber)); err != nil {
		return fmt.Errorf("write redo log: %w", err)
	}
	s.number, s.size = number, int64(redoHeader)
	return nil
}

// add appends a record. One that is cut short, by an error or a kill, was told to
// nobody; the next overwrites it.
func (s *segment) add(op redoOp, flags byte, off, n int64, data []byte) error {
	b := make([]byte, redoRecord)
	b[0], b[1] = byte(op), flags
	binary.LittleEndian.PutUint64(b[8:], uint64(off))
	binary.LittleEndian.PutUint64(b[16:], uint64(n))
	s.mu.Lock()
	defer s.mu.Unlock()
	binary.LittleEndian.PutUint32(b[4:], redoSum(s.number, b, data))
	if err := writeBoth(s.f, b, data, s.size); err != nil {
		return fmt.Errorf("write redo log: %w", err)
	}
	s.size += redoRecord + int64(len(data))
	return nil
}

// redoSum returns the sum of a record whose field for it is zero.
func redoSum(number uint64, record, data []byte) uint32 {
	sum := crc32.Checksum(binary.LittleEndian.AppendUint64(nil, number), castagnoli)
	return crc32.Update(crc32.Update(sum, castagnoli, record), castagnoli, data)
}

// writeBoth writes head and then data at an offset, in one call if that writes all.
func writeBoth(f *os.File, head, data []byte, off int64) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	n := 0
	ctlErr := raw.Control(func(fd uintptr) { n, err = unix.Pwritev(int(fd), [][]byte{head, data}, off) })
	if ctlErr != nil {
		return ctlErr
	}
	if err != nil || n == len(head)+len(data) {
		return err
	}
	if _, err := f.WriteAt(head, off); err != nil {
		return err
	}
	_, err = f.WriteAt(data, off+int64(len(head)))
	return err
}

func (s *segment) length() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size
}

// remove deletes the file. It may be called again.
func (s *segment) remove() error {
	err := os.Remove(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(err, s.f.Close())
}

// redoFiles lists the segments that belong to an overlay: all of them, and those
// that boot used last, in the order of their use.
func redoFiles(overlay, boot string) (all, used []string, err error) {
	entries, err := os.ReadDir(filepath.Dir(overlay))
	if err != nil {
		return nil, nil, err
	}
	numbers := map[string]uint64{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), filepath.Base(overlay)+".redo-") {
			continue
		}
		path := filepath.Join(filepath.Dir(overlay), e.Name())
		all = append(all, path)
		f, err := os.Open(path)
		if err != nil {
			return nil, nil, err
		}
		number, err := readNumber(f, boot)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
		if number > 0 {
			used, numbers[path] = append(used, path), number
		}
	}
	sort.Slice(used, func(i, k int) bool { return numbers[used[i]] < numbers[used[k]] })
	return all, used, nil
}

// readNumber reads the head of a segment and returns of which use it is; 0 if it is
// in none, or in one of another boot.
func readNumber(f *os.File, boot string) (uint64, error) {
	head := make([]byte, redoHeader)
	if _, err := io.ReadFull(f, head); err != nil || !bytes.Equal(head[:redoNumber], []byte(redoMagic+boot)) {
		return 0, ignoreEnd(err)
	}
	return binary.LittleEndian.Uint64(head[redoNumber:]), nil
}

// record is a change that was read back.
type record struct {
	op    redoOp
	flags byte
	off   int64
	n     int64
	data  []byte // of opWrite
}

// readSegment calls fn for the records of a segment that boot used, up to the first
// that is not whole or not of that use. A segment of another boot has none.
func readSegment(path, boot string, fn func(record) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	number, err := readNumber(f, boot)
	if number == 0 || err != nil {
		return err
	}
	b := make([]byte, redoRecord)
	var data []byte
	for {
		if _, err := io.ReadFull(f, b); err != nil {
			return ignoreEnd(err)
		}
		r := record{op: redoOp(b[0]), flags: b[1],
			off: int64(binary.LittleEndian.Uint64(b[8:])), n: int64(binary.LittleEndian.Uint64(b[16:]))}
		want := binary.LittleEndian.Uint32(b[4:])
		clear(b[4:8])
		if r.off < 0 || r.n < 0 || r.op < opWrite || r.op > opTrim || r.op == opWrite && r.n > maxRedoData {
			return nil
		}
		if r.op == opWrite {
			st, err := f.Stat()
			if err != nil || st.Size() < r.n {
				return err
			}
			if int64(cap(data)) < r.n {
				data = make([]byte, r.n)
			}
			r.data = data[:r.n]
			if _, err := io.ReadFull(f, r.data); err != nil {
				return ignoreEnd(err)
			}
		}
		if redoSum(number, b, r.data) != want {
			return nil
		}
		if err := fn(r); err != nil {
			return err
		}
	}
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
