package appliance

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"

	"github.com/sendense/sendense/internal/guestfs"
)

// keyrings are the passphrases that clients have given, in memory only. Each is
// known by an ID that nobody can guess and that is told to nobody but its client.
type keyrings struct {
	mu     sync.Mutex // guards the fields below
	byID   map[string]*keyring
	closed bool
}

// keyring unlocks encrypted volumes for whoever knows its ID.
type keyring struct {
	id    string
	keys  *guestfs.Keys
	users int // the client, and mounts; guarded by keyrings.mu
	end   sync.Once
	done  chan struct{} // closed when the passphrases are gone
}

// maxKeyrings is how many clients may have given passphrases at a time.
const maxKeyrings = 256

// AddKeyring keeps passphrases, which are the appliance's from then on, for requests
// that name the ID it returns, until remove is called or the appliance is closed;
// then done is closed.
func (a *Appliance) AddKeyring(passphrases [][]byte) (id string, done <-chan struct{}, remove func(), err error) {
	if len(passphrases) == 0 {
		return "", nil, nil, &Error{Code: CodeInvalid, Msg: "There is no passphrase.", Hint: "Give one or more."}
	}
	k := &keyring{id: rand.Text(), keys: guestfs.NewKeys(passphrases), users: 1, done: make(chan struct{})}
	r := &a.keyrings
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		err = errShutdown
	case len(r.byID) >= maxKeyrings:
		err = &Error{Code: CodeBusy, Msg: "Too many clients have given passphrases.", Hint: "Try again when others have ended."}
	}
	if err != nil {
		k.keys.Clear()
		return "", nil, nil, err
	}
	if r.byID == nil {
		r.byID = map[string]*keyring{}
	}
	r.byID[k.id] = k
	return k.id, k.done, func() { a.dropKeyring(k) }, nil
}

// errKeyring is what a request gets whose passphrases are gone.
var errKeyring = &Error{Code: CodeNotFound, Msg: "The passphrases that the request names are not there any more.",
	Hint: "They are kept for as long as the request that gave them is open. Give them again."}

// keyring returns the keyring with an ID; nil for none.
func (a *Appliance) keyring(id string) (*keyring, error) {
	if id == "" {
		return nil, nil
	}
	a.keyrings.mu.Lock()
	defer a.keyrings.mu.Unlock()
	if k := a.keyrings.byID[id]; k != nil {
		return k, nil
	}
	return nil, errKeyring
}

// shareKeyring is keyring for somebody who keeps it until dropKeyring.
func (a *Appliance) shareKeyring(id string) (*keyring, error) {
	k, err := a.keyring(id)
	if k == nil {
		return nil, err
	}
	a.keyrings.mu.Lock()
	defer a.keyrings.mu.Unlock()
	if k.users == 0 {
		return nil, errKeyring
	}
	k.users++
	return k, nil
}

// dropKeyring ends one use of k. With the last one the passphrases are overwritten,
// and what they unlocked is closed.
func (a *Appliance) dropKeyring(k *keyring) {
	if k == nil {
		return
	}
	a.keyrings.mu.Lock()
	k.users--
	last := k.users == 0
	if last {
		delete(a.keyrings.byID, k.id)
	}
	a.keyrings.mu.Unlock()
	if last {
		a.endKeyring(k)
	}
}

func (a *Appliance) endKeyring(k *keyring) {
	k.end.Do(func() {
		k.keys.Clear()
		a.guests.closeOf(k.id)
		close(k.done)
	})
}

// closeKeyrings forgets all passphrases.
func (a *Appliance) closeKeyrings() {
	a.keyrings.mu.Lock()
	a.keyrings.closed = true
	list := a.keyrings.byID
	a.keyrings.byID = nil
	a.keyrings.mu.Unlock()
	for _, k := range list {
		a.endKeyring(k)
	}
}

// guestOptions are those for opening disks with a keyring.
func (a *Appliance) guestOptions(id string) (guestfs.Options, error) {
	o := guestfs.Options{Unlocking: a.guests.unlocking}
	k, err := a.keyring(id)
	if k != nil {
		o.Keys = k.keys
	}
	return o, err
}

// isLocked reports that something is encrypted and was not unlocked.
func isLocked(err error) bool { return errors.Is(err, guestfs.ErrLocked) }

// mountKeys are the passphrases of a mount, and the points of machines that they are
// not for.
type mountKeys struct {
	ring *keyring

	mu    sync.Mutex // guards the field below
	unfit map[guestKey]bool
}

// get opens a point with the passphrases of the mount; without if they do not fit.
func (m *mount) get(ctx context.Context, p Point) (*openGuest, error) {
	k := &m.keys
	if k.ring == nil {
		return m.a.guests.get(ctx, p, m.Verified, "")
	}
	key := guestKey{vm: p.VM, point: p.ID}
	k.mu.Lock()
	unfit := k.unfit[key]
	k.mu.Unlock()
	if !unfit {
		o, err := m.a.guests.get(ctx, p, m.Verified, k.ring.id)
		if !isLocked(err) {
			return o, err
		}
		k.mu.Lock()
		k.unfit[key] = true
		k.mu.Unlock()
	}
	return m.a.guests.get(ctx, p, m.Verified, "")
}
