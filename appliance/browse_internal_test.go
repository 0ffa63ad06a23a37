package appliance

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/repository"
)

// slow is a repository, or a disk, that answers once its gate is open.
type slow struct {
	repository.Repository
	repository.Disk
	gate  chan struct{}
	begun chan struct{}
}

var errSlow = errors.New("there is no disk after all")

func (s slow) OpenDisk(ctx context.Context, _ repository.VMID, _ repository.PointID, _ int, _ repository.OpenOptions) (repository.Disk, error) {
	s.begun <- struct{}{}
	select {
	case <-s.gate:
		return nil, errSlow
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s slow) Close() error {
	s.begun <- struct{}{}
	<-s.gate
	s.begun <- struct{}{}
	return nil
}

func newSlow() (slow, *guests) {
	s := slow{gate: make(chan struct{}), begun: make(chan struct{}, 10)}
	a := &Appliance{opts: Options{Now: time.Now}, repo: s} //permit:time.Now: what is tested does not depend on it
	a.guests = &guests{a: a, open: map[guestKey]*openGuest{}}
	return s, a.guests
}

// usersOf returns how many wait for a point, or use it.
func (g *guests) usersOf(key guestKey) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if o := g.open[key]; o != nil {
		return o.users
	}
	return 0
}

func TestWhoStopsWaitingForAPointStopsNobodyElse(t *testing.T) {
	s, g := newSlow()
	p := Point{ID: "p", Disks: []PointDisk{{}}}
	get := func(ctx context.Context) chan error {
		failed := make(chan error, 1)
		go func() {
			_, err := g.get(ctx, p, false, "")
			failed <- err
		}()
		return failed
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := get(ctx)
	<-s.begun
	second := get(t.Context())
	for g.usersOf(guestKey{point: "p"}) < 2 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: got %v, want context.Canceled", err)
	}
	close(s.gate)
	if err := <-second; !errors.Is(err, errSlow) {
		t.Errorf("who waits: got %v, want what became of it", err)
	}
	g.closeIdle()
}

func TestAPointThatNobodyWaitsForIsNotOpened(t *testing.T) {
	s, g := newSlow()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-s.begun
		cancel()
	}()
	if _, err := g.get(ctx, Point{ID: "p", Disks: []PointDisk{{}}}, false, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	g.closeIdle() // which waits for the opening to end: the gate stays shut
}

func TestNobodyWaitsForAPointThatIsBeingClosed(t *testing.T) {
	ring := guestKey{point: "slow", keyring: "ring"}
	for name, begin := range map[string]func(*guests, slow){
		"dropped by its last user": func(g *guests, s slow) {
			o := g.add(ring, 1, s)
			g.forget(o)
			g.release(o)
		},
		"dropped for being idle": func(g *guests, s slow) { g.expire(g.add(ring, 0, s)) },
		"dropped as one of too many": func(g *guests, s slow) {
			g.add(ring, 0, s)
			for i := range maxGuests {
				g.release(g.add(guestKey{point: repository.PointID(rune('a' + i))}, 1))
			}
		},
		"locked again":         func(g *guests, s slow) { g.add(ring, 0, s); go g.closeOf("ring") },
		"unused when all ends": func(g *guests, s slow) { g.add(ring, 0, s); go g.closeIdle() },
		"released after the end": func(g *guests, s slow) {
			o := g.add(ring, 1, s)
			g.closeIdle()
			go g.release(o)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, g := newSlow()
			begin(g, s)
			<-s.begun // it is being closed, which takes long
			g.usersOf(ring)
			close(s.gate)
			g.closeIdle()
			if strings.HasPrefix(name, "dropped") && len(s.begun) == 0 {
				t.Error("the end did not wait until it was closed")
			}
			<-s.begun
		})
	}
}

// add adds a point that is open.
func (g *guests) add(key guestKey, users int, disks ...repository.Disk) *openGuest {
	g.mu.Lock()
	defer g.mu.Unlock()
	o := &openGuest{key: key, giveUp: func() {}, ready: make(chan struct{}), disks: disks, users: users}
	close(o.ready)
	g.open[key] = o
	return o
}
