package btrfs

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// verifyPiece is how much is read at once to be verified, in bytes.
const verifyPiece = 256 << 10

// readVerified fills p with data whose checksums are right.
func (s *store) readVerified(p []byte, logical uint64) error {
	sector := uint64(s.super.sectorSize)
	for len(p) > 0 {
		from := logical &^ (sector - 1)
		to := min((logical+uint64(len(p))+sector-1)&^(sector-1), from+verifyPiece)
		b := make([]byte, to-from)
		if err := s.space.read(b, from, false, func(b []byte) error { return s.verify(b, from) }); err != nil {
			return err
		}
		n := copy(p, b[logical-from:])
		p, logical = p[n:], logical+uint64(n)
	}
	return nil
}

// verify compares whole sectors with their checksums.
func (s *store) verify(b []byte, logical uint64) error {
	sector, size := int(s.super.sectorSize), s.super.sum.size
	sums, err := s.checksums(logical, len(b)/sector)
	if err != nil {
		return err
	}
	for i := range len(sums) / size {
		if !s.super.sum.matches(b[i*sector:(i+1)*sector], sums[i*size:]) {
			return fmt.Errorf("the checksum of the data at %d is wrong: %w", logical+uint64(i*sector), fsys.ErrCorrupt)
		}
	}
	return nil
}

// checksums returns those of n sectors, one after the other. What was committed
// last is asked last: logs hold those of what was written since.
func (s *store) checksums(logical uint64, n int) ([]byte, error) {
	sums := make([]byte, n*s.super.sum.size)
	have := make([]bool, n)
	missing := n
	for _, t := range s.sums {
		if missing == 0 {
			break
		}
		found, err := s.checksumsIn(t, logical, sums, have)
		if err != nil {
			return nil, err
		}
		missing -= found
	}
	if missing > 0 {
		return nil, fmt.Errorf("data at %d have no checksum: %w", logical, fsys.ErrCorrupt)
	}
	return sums, nil
}

// checksumsIn fills in the checksums that are still to be had and that a tree
// holds, and returns how many: "Checksum item" of the on-disk format.
func (s *store) checksumsIn(t *tree, logical uint64, sums []byte, have []bool) (found int, err error) {
	sector, size := uint64(s.super.sectorSize), s.super.sum.size
	end := logical + uint64(len(have))*sector
	first, _, err := t.floor(key{extentCsumObject, extentCsum, logical})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if err != nil || first.object != extentCsumObject || first.kind != extentCsum {
		first = key{extentCsumObject, extentCsum, logical}
	}
	err = t.scan(first, key{extentCsumObject, extentCsum, end - 1}, func(k key, b []byte) bool {
		for at := k.offset; len(b) >= size && at < end; at += sector {
			if at >= logical {
				if i := (at - logical) / sector; !have[i] {
					copy(sums[int(i)*size:], b[:size])
					have[i] = true
					found++
				}
			}
			b = b[size:]
		}
		return true
	})
	return found, err
}
