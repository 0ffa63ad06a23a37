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
	"strconv"
	"strings"
	"sync"
)

// A redo log holds the changes of an overlay since a flush, in the order they were
// made. It lives in the page cache: it survives the death of the process, and is
// worth nothing after the kernel's, which takes the guest along too. So nothing of
// it is ever synced, and one of an earlier boot is thrown away.
//
// Layout: 8 bytes magic, 36 bytes boot id, then records: operation and flags (1 byte
// each), 2 bytes of zero, CRC-32C of the record with this field as zero (4), offset
// (8), length (8), and for opWrite the data. Integers are little-endian.
const (
	redoMagic  = "SDREDO\x00\x01"
	redoHeader = len(redoMagic) + bootIDBytes
	redoRecord = 24

	bootIDBytes = 36
	// maxRedoData bounds the data of one record when logs are read back, in bytes.
	maxRedoData = 1 << 30
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
	path string
	f    *os.File

	mu   sync.Mutex // guards the field below, and keeps records in a row
	size int64
}

func newSegment(path, boot string) (*segment, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create redo log: %w", err)
	}
	if _, err := f.WriteAt([]byte(redoMagic+boot), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("create redo log: %w", err), f.Close(), os.Remove(path))
	}
	return &segment{path: path, f: f, size: int64(redoHeader)}, nil
}

// add appends a record. One that is cut short by an error is overwritten by the
// next.
func (s *segment) add(op redoOp, flags byte, off, n int64, data []byte) error {
	b := make([]byte, redoRecord, redoRecord+len(data))
	b[0], b[1] = byte(op), flags
	binary.LittleEndian.PutUint64(b[8:], uint64(off))
	binary.LittleEndian.PutUint64(b[16:], uint64(n))
	sum := crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, data)
	binary.LittleEndian.PutUint32(b[4:], sum)
	s.mu.Lock()
	defer s.mu.Unlock()
	// The data first: a record whose head is there is whole, whenever the process
	// is killed.
	if len(data) > 0 {
		if _, err := s.f.WriteAt(data, s.size+redoRecord); err != nil {
			return fmt.Errorf("write redo log: %w", err)
		}
	}
	if _, err := s.f.WriteAt(b, s.size); err != nil {
		return fmt.Errorf("write redo log: %w", err)
	}
	s.size += redoRecord + int64(len(data))
	return nil
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

// redoFiles lists the segments that belong to an overlay, oldest first, and the
// number of the next one.
func redoFiles(overlay string) (files []string, next int, err error) {
	prefix := filepath.Base(overlay) + ".redo-"
	entries, err := os.ReadDir(filepath.Dir(overlay))
	if err != nil {
		return nil, 0, err
	}
	numbers := map[string]int{}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		n, err := strconv.Atoi(rest)
		if !ok || err != nil || n < 0 {
			continue
		}
		path := filepath.Join(filepath.Dir(overlay), e.Name())
		files, numbers[path], next = append(files, path), n, max(next, n+1)
	}
	sort.Slice(files, func(i, k int) bool { return numbers[files[i]] < numbers[files[k]] })
	return files, next, nil
}

// record is a change that was read back.
type record struct {
	op    redoOp
	flags byte
	off   int64
	n     int64
	data  []byte // of opWrite
}

// readSegment calls fn for the records of a segment that boot wrote, up to the
// first that is not whole. A segment of another boot has none.
func readSegment(path, boot string, fn func(record) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, redoHeader)
	if _, err := io.ReadFull(f, head); err != nil || !bytes.Equal(head, []byte(redoMagic+boot)) {
		return ignoreEnd(err)
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
		sum := crc32.Checksum(b, castagnoli)
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
			sum = crc32.Update(sum, castagnoli, r.data)
		}
		if sum != want {
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
