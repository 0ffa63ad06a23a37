package capturetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/capture"
)

// Source is a [capture.Source] with one machine in memory, whose tracker marks
// changes in units of Granularity.
type Source struct {
	// Granularity of the tracker in bytes, default 64 KiB.
	Granularity int64

	t       testing.TB
	vm      capture.VM
	mu      sync.Mutex // guards the fields below
	disks   []*memoryDisk
	open    *instant // the instant being held, nil for none
	commits int
}

type memoryDisk struct {
	key     string
	content []byte
	since   map[string]*tracker // by token
}

// tracker knows what was written since its token, as far as the disk went then.
type tracker struct {
	size  int64
	dirty map[int64]bool // by granule
}

// NewSource returns a source whose machine has no disk yet. When the test ends
// no instant must be open any more.
func NewSource(t testing.TB, name string) *Source {
	s := &Source{
		Granularity: 64 << 10, t: t,
		vm: capture.VM{Name: name, UUID: fmt.Sprintf("00000000-0000-4000-8000-%012x", []byte(name)[:min(6, len(name))])},
	}
	t.Cleanup(func() {
		if s.open != nil {
			t.Error("an instant was not closed")
		}
	})
	return s
}

// Add gives the machine another disk.
func (s *Source) Add(key string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks = append(s.disks, &memoryDisk{key: key, content: make([]byte, size), since: map[string]*tracker{}})
}

// Remove takes a disk away.
func (s *Source) Remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks = slices.DeleteFunc(s.disks, func(d *memoryDisk) bool { return d.key == key })
}

// Resize cuts a disk or lets it grow. The tracker tells nothing of what was not
// there when its token was made.
func (s *Source) Resize(key string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.disk(key)
	grown := make([]byte, size)
	copy(grown, d.content)
	d.content = grown
}

// Write changes a disk as its guest would.
func (s *Source) Write(key string, p []byte, off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.disk(key)
	copy(d.content[off:off+int64(len(p))], p)
	for _, since := range d.since {
		for g := off / s.Granularity; g*s.Granularity < min(off+int64(len(p)), since.size); g++ {
			since.dirty[g] = true
		}
	}
}

// Content returns what each disk holds now.
func (s *Source) Content() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string][]byte{}
	for _, d := range s.disks {
		all[d.key] = bytes.Clone(d.content)
	}
	return all
}

// LoseTokens makes the tracker forget everything.
func (s *Source) LoseTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.disks {
		d.since = map[string]*tracker{}
	}
}

// Disturb makes the instant that is held cease to be one.
func (s *Source) Disturb() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != nil {
		s.open.why = fmt.Errorf("machine %s was stopped: %w", s.vm.Name, capture.ErrVMChanged)
	}
}

// Clean returns an error if a capture left something behind: an instant held, or
// more than one token for a disk.
func (s *Source) Clean() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != nil {
		return errors.New("an instant is held")
	}
	for _, d := range s.disks {
		if len(d.since) > 1 {
			return fmt.Errorf("disk %s has %d tokens", d.key, len(d.since))
		}
	}
	return nil
}

// Commits returns how many instants were committed.
func (s *Source) Commits() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits
}

func (s *Source) disk(key string) *memoryDisk {
	i := slices.IndexFunc(s.disks, func(d *memoryDisk) bool { return d.key == key })
	if i < 0 {
		s.t.Fatalf("machine has no disk %s", key)
	}
	return s.disks[i]
}

// Machine returns the machine with its levers, for the suite.
func (s *Source) Machine() Machine {
	return Machine{
		Source:     func() capture.Source { return s },
		Name:       s.vm.Name,
		Content:    func(testing.TB) map[string][]byte { return s.Content() },
		Write:      func(_ testing.TB, key string, p []byte, off int64) { s.Write(key, p, off) },
		Resize:     func(_ testing.TB, key string, size int64) { s.Resize(key, size) },
		Add:        func(_ testing.TB, key string, size int64) { s.Add(key, size) },
		Remove:     func(_ testing.TB, key string) { s.Remove(key) },
		LoseTokens: func(testing.TB) { s.LoseTokens() },
		Disturb:    func(testing.TB) { s.Disturb() },
		Clean:      func(testing.TB) error { return s.Clean() },
		Frozen:     true,
	}
}

// Resolve implements [capture.Source].
func (s *Source) Resolve(_ context.Context, nameOrUUID string) (capture.VM, error) {
	if nameOrUUID != s.vm.Name && !strings.EqualFold(nameOrUUID, s.vm.UUID) {
		return capture.VM{}, capture.ErrNoVM
	}
	return s.vm, nil
}

// Begin implements [capture.Source].
func (s *Source) Begin(_ context.Context, vm capture.VM, r capture.Request) (capture.Instant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if vm.UUID != s.vm.UUID {
		return nil, capture.ErrNoVM
	}
	if s.open != nil {
		return nil, errors.New("an instant is held already")
	}
	s.open = &instant{source: s, token: r.Token}
	for _, d := range s.disks {
		snap := &snapshot{content: bytes.Clone(d.content), granularity: s.Granularity}
		out := capture.Disk{Key: d.key, Device: snap, Token: r.Token}
		if since := r.Since[d.key]; since != "" {
			known := d.since[since]
			if out.Tracked = known != nil; out.Tracked {
				snap.since, snap.dirty = since, maps.Clone(known.dirty)
			} else {
				out.Untracked = "token " + since + " is not known"
			}
			for token := range d.since { // left behind by an interrupted capture
				if token != since {
					delete(d.since, token)
				}
			}
		}
		d.since[r.Token] = &tracker{size: int64(len(d.content)), dirty: map[int64]bool{}}
		s.open.disks = append(s.open.disks, out)
	}
	return s.open, nil
}

type instant struct {
	source    *Source
	token     string
	disks     []capture.Disk
	why       error // guarded by source.mu
	committed bool
}

// Disks implements [capture.Instant].
func (i *instant) Disks() []capture.Disk { return i.disks }

// Config implements [capture.Instant].
func (i *instant) Config() capture.Config {
	return capture.Config{Source: "memory", Running: true, Consistency: "crash"}
}

// Commit implements [capture.Instant].
func (i *instant) Commit(context.Context) error {
	i.source.mu.Lock()
	defer i.source.mu.Unlock()
	i.committed = true
	i.source.commits++
	i.forget(func(token string) bool { return token != i.token })
	return nil
}

// Close implements [capture.Instant].
func (i *instant) Close() error {
	i.source.mu.Lock()
	defer i.source.mu.Unlock()
	i.source.open = nil
	if !i.committed {
		i.forget(func(token string) bool { return token == i.token })
	}
	return nil
}

func (i *instant) forget(which func(token string) bool) {
	for _, d := range i.source.disks {
		for token := range d.since {
			if which(token) {
				delete(d.since, token)
			}
		}
	}
}

// Err implements [capture.Instant].
func (i *instant) Err() error {
	i.source.mu.Lock()
	defer i.source.mu.Unlock()
	return i.why
}

// snapshot is a disk at one moment.
type snapshot struct {
	content     []byte
	granularity int64
	since       string
	dirty       map[int64]bool
}

// Size implements [block.Device].
func (s *snapshot) Size() int64 { return int64(len(s.content)) }

// ReadAt implements [block.Device].
func (s *snapshot) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(s.Size(), off, int64(len(p))); err != nil {
		return err
	}
	copy(p, s.content[off:])
	return ctx.Err()
}

// Map calls pages of 4 KiB that hold only zeroes holes, 256 at a time.
func (s *snapshot) Map(_ context.Context, off, n int64) ([]block.Extent, error) {
	if err := block.CheckRange(s.Size(), off, n); err != nil || n == 0 {
		return nil, err
	}
	var zero [4096]byte
	var exts []block.Extent
	for end := off + n; off < end && len(exts) < 256; {
		l := min(4096-off%4096, end-off)
		e := block.Extent{Off: off, Len: l, Kind: block.Data}
		if bytes.Equal(s.content[off:off+l], zero[:l]) {
			e.Kind = block.Hole
		}
		exts = append(exts, e)
		off += l
	}
	return exts, nil
}

// Changed implements [block.Changer].
func (s *snapshot) Changed(_ context.Context, since string, off, n int64) ([]block.Range, error) {
	if since != s.since || since == "" {
		return nil, fmt.Errorf("token %q is not the one asked for", since)
	}
	var out []block.Range
	for end := off + n; off < end; {
		l := min(s.granularity-off%s.granularity, end-off)
		if s.dirty[off/s.granularity] {
			out = append(out, block.Range{Off: off, Len: l})
		}
		off += l
	}
	return out, nil
}
