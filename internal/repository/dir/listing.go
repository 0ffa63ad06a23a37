package dir

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/sendense/sendense/internal/repository"
)

// listings remember what records say for those who list machines and points: a
// mount does so with each path that is looked up. Whoever opens, writes or verifies
// points reads the record itself.
type listings struct {
	mu    sync.Mutex // guards the fields below
	known map[repository.VMID]*listing
	bytes int64 // lengths of the records that are kept
}

// listing is what a record said when it was in a file. Nobody changes it.
type listing struct {
	file identity
	vm   repository.VM
	rec  *record // nil: it is not kept
}

// identity tells files, and states of one, apart.
type identity struct {
	dev, ino          uint64
	size              int64
	modified, changed syscall.Timespec
}

const (
	// maxListings bounds the records that are kept, by the lengths of their files.
	maxListings = 64 << 20
	// settled is how long ago a file has to have changed for its next change to show
	// in its times, however coarse these are.
	settled = 2 * time.Second
)

// list returns what the record of a machine says; nil if it has no points. The
// record itself comes with it if it is wanted.
func (r *Repository) list(v *vmFolder, wanted bool) (*listing, error) {
	f, err := os.Open(v.metadata())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of VM %s: %w", v.id, err)
	}
	defer f.Close()
	file, known := identify(f)
	if l := r.listings.get(v.id); known && l != nil && l.file == file && (l.rec != nil || !wanted) {
		return l, nil
	}
	b, err := readBoundedFile(f, maxMetadata)
	if err != nil {
		return nil, fmt.Errorf("read record of VM %s: %w", v.id, err)
	}
	rec, err := decodeRecord(f.Name(), b, v.id)
	if err != nil || len(rec.Points) == 0 {
		return nil, err
	}
	l := &listing{file: file, vm: rec.vm(), rec: rec}
	if age := r.now().Sub(time.Unix(file.changed.Unix())); known && age > settled {
		r.listings.keep(v.id, l)
	}
	return l, nil
}

// identify returns the identity of a file; false where the system tells none.
func identify(f *os.File) (identity, bool) {
	st, err := f.Stat()
	if err != nil {
		return identity{}, false
	}
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, false
	}
	return identity{s.Dev, s.Ino, s.Size, s.Mtim, s.Ctim}, true
}

func (l *listings) get(id repository.VMID) *listing {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known[id]
}

// keep remembers a listing. Where that is too much, the records of others are given
// up: what they say of their machines stays.
func (l *listings) keep(id repository.VMID, x *listing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		l.known = map[repository.VMID]*listing{}
	}
	if old := l.known[id]; old != nil && old.rec != nil {
		l.bytes -= old.file.size
	}
	if l.bytes += x.file.size; l.bytes > maxListings {
		for other, old := range l.known {
			l.known[other] = &listing{file: old.file, vm: old.vm}
		}
		l.bytes = x.file.size
	}
	l.known[id] = x
}

// drop forgets machines that are not there any more.
func (l *listings) drop(there map[repository.VMID]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, x := range l.known {
		if there[id] {
			continue
		}
		if x.rec != nil {
			l.bytes -= x.file.size
		}
		delete(l.known, id)
	}
}
