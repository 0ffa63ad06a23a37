package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/repository"
)

// idleGuest is how long the disks of a point stay open after the last use.
const idleGuest = 30 * time.Second

// maxGuests is how many points are open for browsing at a time, if nobody uses
// them at the moment.
const maxGuests = 8

// guests keeps points open that are being browsed: opening one starts a process
// and looks for its file systems.
type guests struct {
	a         *Appliance
	unlocking chan struct{} // has room for one: deriving keys takes much memory

	closing sync.WaitGroup // of what nobody waits for but close

	mu     sync.Mutex // guards the fields below
	open   map[guestKey]*openGuest
	closed bool
}

type guestKey struct {
	vm       repository.VMID
	point    repository.PointID
	verified bool
	keyring  string // ID; empty: none
}

// openGuest is a point with its disks open.
type openGuest struct {
	key    guestKey
	giveUp context.CancelFunc // ends the opening
	ready  chan struct{}      // closed when the fields below are set
	guest  *guestfs.Guest
	disks  []repository.Disk
	err    error

	users int // guarded by guests.mu, as are the fields below
	used  time.Time
	timer *time.Timer
}

// get opens a point, or finds it open. The caller calls release.
func (g *guests) get(ctx context.Context, p Point, verified bool, keyring string) (*openGuest, error) {
	key := guestKey{p.VM, p.ID, verified, keyring}
	for {
		o, err := g.join(ctx, key, p)
		if err != nil {
			return nil, err
		}
		select {
		case <-o.ready:
		case <-ctx.Done():
			g.release(o)
			return nil, ctx.Err()
		}
		if o.err != nil {
			g.release(o)
			return nil, o.err
		}
		select {
		case <-o.guest.Done():
			// It died under somebody else's request.
			g.forget(o)
			g.release(o)
		default:
			return o, nil
		}
	}
}

// join begins to open a point, or finds it being opened or open. The opening ends
// before it is done when the last of those who wait for it leaves.
func (g *guests) join(ctx context.Context, key guestKey, p Point) (*openGuest, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errShutdown
	}
	if o := g.open[key]; o != nil {
		o.users++
		return o, nil
	}
	o := &openGuest{key: key, ready: make(chan struct{}), users: 1}
	ctx, o.giveUp = context.WithCancel(context.WithoutCancel(ctx))
	g.open[key] = o
	go func() { // close waits for it
		defer close(o.ready)
		o.guest, o.disks, o.err = g.a.openGuest(ctx, p, key.verified, key.keyring)
	}()
	return o, nil
}

// works reports whether a point is open.
func (o *openGuest) works() bool {
	select {
	case <-o.ready:
		return o.err == nil
	default:
		return false
	}
}

// forget lets the next one who asks open the point anew.
func (g *guests) forget(o *openGuest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[o.key] == o {
		delete(g.open, o.key)
	}
}

// release gives an open point back. It stays open for a while.
func (g *guests) release(o *openGuest) {
	g.mu.Lock()
	o.users--
	o.used = g.a.opts.Now()
	late := false
	switch {
	case o.users > 0:
	case g.closed: // nobody waits for what is begun from now on
		g.remove(o)
		late = true
	case g.open[o.key] == o && o.works():
		if o.timer == nil {
			o.timer = time.AfterFunc(idleGuest, func() { g.expire(o) })
		}
		g.evict()
	default:
		g.drop(o)
	}
	g.mu.Unlock()
	if late {
		o.close()
	}
}

// expire closes an open point that nobody has used for a while, or looks again
// later.
func (g *guests) expire(o *openGuest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[o.key] != o || g.closed {
		return
	}
	left := idleGuest - g.a.opts.Now().Sub(o.used)
	if o.users > 0 || left > 0 {
		o.timer.Reset(max(left, time.Second))
		return
	}
	g.drop(o)
}

// evict closes the point that has been idle for longest where there are too many.
func (g *guests) evict() {
	var idle *openGuest
	n := 0
	for _, o := range g.open {
		if o.users > 0 {
			continue
		}
		n++
		if idle == nil || o.used.Before(idle.used) {
			idle = o
		}
	}
	if n > maxGuests {
		g.drop(idle)
	}
}

// remove takes a point away that nobody uses. g.mu is held; the caller closes it
// once that is free, since a disk may take long to answer.
func (g *guests) remove(o *openGuest) {
	if g.open[o.key] == o {
		delete(g.open, o.key)
	}
	if o.timer != nil {
		o.timer.Stop()
	}
}

// drop removes a point and has it closed. g.mu is held, and g not closed.
func (g *guests) drop(o *openGuest) {
	g.remove(o)
	g.closing.Go(o.close)
}

// close gives up what was opened. It is called once, by who removed o.
func (o *openGuest) close() {
	o.giveUp()
	<-o.ready
	if o.guest != nil {
		o.guest.Close()
	}
	_ = closeAll(o.disks) // they were only read
	o.guest, o.disks = nil, nil
}

// closeIdle closes all that nobody uses, and the others when they are released.
func (g *guests) closeIdle() {
	g.mu.Lock()
	g.closed = true
	idle := g.removeIdle(func(guestKey) bool { return true })
	g.mu.Unlock()
	for _, o := range idle {
		o.close()
	}
	g.closing.Wait()
}

// closeOf closes what was opened with a keyring: now, or when it is released.
func (g *guests) closeOf(keyring string) {
	g.mu.Lock()
	idle := g.removeIdle(func(k guestKey) bool { return k.keyring == keyring })
	g.mu.Unlock()
	for _, o := range idle {
		o.close()
	}
}

// removeIdle lets nobody find the points chosen any more, and returns those that
// nobody uses. g.mu is held.
func (g *guests) removeIdle(chosen func(guestKey) bool) (idle []*openGuest) {
	for key, o := range g.open {
		if !chosen(key) {
			continue
		}
		delete(g.open, key)
		if o.users == 0 {
			g.remove(o)
			idle = append(idle, o)
		}
	}
	return idle
}

// openGuest opens the disks of a point and looks at what is on them.
func (a *Appliance) openGuest(ctx context.Context, p Point, verified bool, keyring string) (*guestfs.Guest, []repository.Disk, error) {
	opts, err := a.guestOptions(keyring)
	if err != nil {
		return nil, nil, err
	}
	disks, list, err := a.openDisks(ctx, p, verified)
	if err != nil {
		return nil, nil, err
	}
	g, err := guestfs.Open(ctx, list, opts)
	if err != nil {
		return nil, nil, errors.Join(filesError(p, "", err), closeAll(disks))
	}
	return g, disks, nil
}

// openDisks opens the disks of a point.
func (a *Appliance) openDisks(ctx context.Context, p Point, verified bool) ([]repository.Disk, []guestfs.Disk, error) {
	var disks []repository.Disk
	var list []guestfs.Disk
	for _, d := range p.Disks {
		x, err := a.repo.OpenDisk(ctx, p.VM, p.ID, d.Index, repository.OpenOptions{Verified: verified})
		if err != nil {
			return nil, nil, errors.Join(userError(err), closeAll(disks))
		}
		disks = append(disks, x)
		list = append(list, guestfs.Disk{Index: d.Index, Key: d.Key, Device: x})
	}
	return disks, list, nil
}

// filesError turns what a guest's file systems report into what a user is told.
func filesError(p Point, path string, err error) error {
	var at *guestfs.PathError
	isPath := errors.As(err, &at)
	if isPath {
		path = at.Path
	}
	e := &Error{Err: err, Hint: nearest(p, at), Guest: guestfs.OwnFault(err)}
	switch {
	case err == nil:
		return nil
	case isLocked(err):
		if isPath {
			err = at.Err
		}
		return &Error{Code: CodeDenied, Err: err, Msg: sentence(err.Error()),
			Hint: "Give the passphrase with --passphrase-file FILE, or - for standard input; one newline at its end is not part of it."}
	case errors.Is(err, guestfs.ErrNoRoot):
		e.Code, e.Msg = CodeNotFound, "No operating system was found on the disks, so there is no path that begins with a slash."
		e.Hint = fmt.Sprintf("Name the file system by its position, as disk-0/p1/…: sendense-control ls %s %s disk-0", p.VM, p.ID)
	case errors.Is(err, guestfs.ErrVolume):
		e.Code, e.Msg = CodeCorrupt, sentence(err.Error())
		e.Hint = fmt.Sprintf("Find out what is damaged with: sendense-control verify %s --point %s", p.VM, p.ID)
	case guestfs.OwnFault(err) && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, guestfs.ErrNotDir)):
		e.Code, e.Msg = CodeNotFound, fmt.Sprintf("There is no %s in point %s.", Visible(path), p.ID)
	case errors.Is(err, guestfs.ErrLinks):
		e.Code, e.Msg = CodeInvalid, fmt.Sprintf("%s leads through too many symbolic links.", Visible(path))
	case errors.Is(err, guestfs.ErrNoFS):
		e.Code, e.Msg = CodeInvalid, fmt.Sprintf("%s cannot be read: there is no file system that is known.", Visible(path))
	case errors.Is(err, guestfs.ErrUnsupported):
		e.Code, e.Msg = CodeInvalid, sentence(err.Error())
		e.Hint = "Export the disk and open it with a system that can read it: sendense-control export."
	case errors.Is(err, guestfs.ErrCorrupt):
		e.Code, e.Msg = CodeCorrupt, sentence("the guest's own file system: "+err.Error())
		e.Hint = fmt.Sprintf("It was so on the guest's disk if this finds nothing: sendense-control verify %s --point %s", p.VM, p.ID)
	case errors.Is(err, guestfs.ErrBusy):
		e.Code, e.Msg, e.Hint = CodeBusy, fmt.Sprintf("Too many walks through point %s are under way.", p.ID), "Try again when others have ended."
	case errors.Is(err, guestfs.ErrDied):
		e.Code, e.Msg = CodeCorrupt, sentence(err.Error())
		e.Hint = "What is on the disk may be damaged or hostile. Other points and exports are not affected."
	default:
		other := *AsError(userError(err))
		other.Guest = e.Guest
		return &other
	}
	return e
}

// nearest tells of what there is as far as a path could be followed.
func nearest(p Point, at *guestfs.PathError) string {
	list := fmt.Sprintf("sendense-control ls %s %s", p.VM, p.ID)
	switch {
	case at == nil || at.Nearest == "":
		return "List what there is with: " + list
	case at.Nearest == ".":
		return "The nearest that exists is where the disks are. List them with: " + list
	}
	hint := fmt.Sprintf("The nearest that exists is %s.", Visible(at.Nearest))
	if word := shellWord(at.Nearest); word != "" {
		hint += fmt.Sprintf(" List it with: %s %s", list, word)
	}
	return hint
}

// shellWord writes a name as a word for a shell; none if that takes more than
// quotes.
func shellWord(name string) string {
	if Visible(name) != name {
		return ""
	}
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@") == "" {
		return name
	}
	return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
}
