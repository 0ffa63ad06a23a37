package appliance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sendense/sendense/fusemount"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
)

// MountSpec says what is mounted where.
type MountSpec struct {
	Dir string `json:"dir"` // an empty folder, as an absolute path
	// Writable shows disks as scratch copies: what is written is thrown away with
	// the mount.
	Writable bool `json:"writable,omitempty"`
	// Verified compares what is read with its digests.
	Verified bool `json:"verified,omitempty"`
	// AllowOther lets other users in than the one whose process serves: to files as
	// far as their modes in the guest let them, and not to the disks.
	AllowOther bool      `json:"allow_other,omitempty"`
	Created    time.Time `json:"created"`
}

// mount is a mount at work.
type mount struct {
	MountSpec
	a      *Appliance
	server *fusemount.Server
	stop   context.CancelFunc
	done   chan struct{}
	keys   mountKeys

	mu     sync.Mutex // guards the field below
	copies map[string]*scratchDisk
}

// Mount shows every point of every machine as a tree, until Unmount or Close. What is
// encrypted is shown as far as the keyring with an ID unlocks it; "": not at all.
func (a *Appliance) Mount(ctx context.Context, s MountSpec, keyring string) (MountSpec, error) {
	if !filepath.IsAbs(s.Dir) {
		return MountSpec{}, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%q is no absolute path.", s.Dir), Hint: "Give the whole path of an empty folder."}
	}
	s.Created = a.opts.Now().UTC()
	m := &mount{MountSpec: s, a: a, done: make(chan struct{}), copies: map[string]*scratchDisk{},
		keys: mountKeys{unfit: map[guestKey]bool{}}}
	// Who looks first is not to wait until all records have been read. What is wrong
	// with one is told to who looks.
	_, _ = a.repo.VMs(ctx)
	if err := ctx.Err(); err != nil { // nobody waits for it any more
		return MountSpec{}, err
	}
	var err error
	if m.keys.ring, err = a.shareKeyring(keyring); err != nil {
		return MountSpec{}, err
	}
	m.server, err = fusemount.Mount(s.Dir, mountRoot{m}, fusemount.Options{
		Writable: s.Writable, AllowOther: s.AllowOther, Lazy: true, Log: a.log})
	if err != nil {
		a.dropKeyring(m.keys.ring)
		return MountSpec{}, mountError(s.Dir, err)
	}
	m.MountSpec.Dir = m.server.Dir()
	serveCtx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	a.mu.Lock()
	closed := a.closed
	if !closed {
		a.mounts[m.MountSpec.Dir] = m
	}
	a.mu.Unlock()
	if closed {
		cancel()
		a.dropKeyring(m.keys.ring)
		return MountSpec{}, errors.Join(errShutdown, m.server.Unmount())
	}
	go m.serve(serveCtx) // closeMounts waits for it
	a.log.Info("mounted", "dir", m.Dir)
	return m.MountSpec, nil
}

// serve serves until the mount is gone.
func (m *mount) serve(ctx context.Context) {
	defer close(m.done)
	if err := m.server.Serve(ctx); err != nil {
		m.a.log.Error("mount ended", "dir", m.Dir, "err", err)
	}
	m.stop()
	m.forget()
	m.dropScratch()
	m.a.dropKeyring(m.keys.ring)
}

// Mounts lists what is mounted, by folder.
func (a *Appliance) Mounts() []MountSpec {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]MountSpec, 0, len(a.mounts))
	for _, m := range a.mounts {
		list = append(list, m.MountSpec)
	}
	slices.SortFunc(list, func(a, b MountSpec) int { return strings.Compare(a.Dir, b.Dir) })
	return list
}

// Unmount takes a mount away.
func (a *Appliance) Unmount(_ context.Context, dir string) error {
	at := filepath.Clean(dir)
	if resolved, err := fusemount.Resolve(dir); err == nil {
		at = resolved
	}
	a.mu.Lock()
	m := a.mounts[at]
	a.mu.Unlock()
	if m == nil {
		return &Error{Code: CodeNotFound, Msg: fmt.Sprintf("Nothing of ours is mounted at %s.", dir), Hint: "Take other mounts away with: umount " + dir}
	}
	if err := m.server.Unmount(); err != nil {
		return mountError(dir, err)
	}
	m.wait()
	return nil
}

// patience is how long it is waited for the kernel to take a mount away everywhere.
const patience = 3 * time.Second

// wait waits until nothing is served any more. A mount that is gone here may still
// be in the mount namespace of a container that was started meanwhile: it is served
// there for as long as that lives, and nobody waits for it.
func (m *mount) wait() {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-m.done:
	case <-t.C:
		m.a.log.Info("mount is gone here, and used in other mount namespaces", "dir", m.Dir)
		m.forget()
	}
}

// forget takes a mount off the list, where another one may be at its folder by now.
func (m *mount) forget() {
	m.a.mu.Lock()
	defer m.a.mu.Unlock()
	if m.a.mounts[m.Dir] == m {
		delete(m.a.mounts, m.Dir)
	}
}

// mountError says what a user can do about a mount that fails.
func mountError(dir string, err error) error {
	e := AsError(err)
	e = &Error{Code: e.Code, Msg: sentence(err.Error()), Hint: e.Hint, Err: err}
	switch {
	case errors.Is(err, fusemount.ErrBusy):
		e.Code, e.Hint = CodeBusy, "Close what uses it; find out with: fuser -vm "+dir
	case errors.Is(err, fusemount.ErrMounted):
		e.Code, e.Hint = CodeBusy, "Choose another folder, or unmount that first."
	case errors.Is(err, fusemount.ErrNoFUSE):
		e.Code, e.Hint = CodeInvalid, "Use the files without a mount: sendense-control ls, cat, cp."
	case e.Hint == "":
		e.Hint = "Give an empty folder that this user may mount on."
	}
	return e
}

// closeMounts takes all mounts away; those in use are detached.
func (a *Appliance) closeMounts() {
	a.mu.Lock()
	var list []*mount
	for _, m := range a.mounts {
		list = append(list, m)
	}
	a.mu.Unlock()
	for _, m := range list {
		m.stop()
		m.wait()
	}
}

// scratchDisk is a disk of a writable mount: what is written goes to a file that is
// gone with the mount.
type scratchDisk struct {
	*image.Writer
	disk repository.Disk
}

// Close does nothing: the copy is kept for as long as the mount.
func (*scratchDisk) Close() error { return nil }

// scratch returns the scratch copy of a disk.
func (m *mount) scratch(ctx context.Context, p Point, d repository.PointDisk) (*scratchDisk, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := fmt.Sprintf("%s-%s-%d", p.VM, p.ID, d.Index)
	if x := m.copies[key]; x != nil {
		return x, nil
	}
	disk, err := m.a.repo.OpenDisk(ctx, p.VM, p.ID, d.Index, repository.OpenOptions{Verified: m.Verified})
	if err != nil {
		return nil, err
	}
	w, err := m.a.newScratch(disk)
	if err != nil {
		return nil, errors.Join(err, disk.Close())
	}
	m.copies[key] = &scratchDisk{w, disk}
	return m.copies[key], nil
}

// newScratch makes a scratch copy of a disk. Its file has no name once it is open, so
// that nothing stays of it however this process ends.
func (a *Appliance) newScratch(disk repository.Disk) (*image.Writer, error) {
	dir := a.opts.ScratchDir
	err := os.MkdirAll(dir, 0o700)
	if dir == "" || errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		dir, err = a.opts.RunDir, nil
	}
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "scratch-"+rand.Text()+".qcow2")
	defer os.Remove(path)
	if err := image.Create(path, image.CreateOptions{Size: disk.Size()}); err != nil {
		return nil, err
	}
	return image.OpenWriter(path, image.WriterOptions{Backing: disk})
}

// dropScratch throws the scratch copies away.
func (m *mount) dropScratch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range m.copies {
		_ = errors.Join(x.Writer.Close(), x.disk.Close()) // nobody wants what they hold
	}
	m.copies = nil
}
