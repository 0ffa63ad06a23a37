// Package dir keeps points in folders of any file system, one for each machine:
//
//	{root}/{vm-uuid}/metadata.json      the commit record: what it does not name is not stored
//	{root}/{vm-uuid}/disk-N/            the QCOW2 files of disk N, each backed by the one before,
//	                                    their digests, and chain.json, which lists them
//
// A committed file is written again only to take in what a deleted point held, or
// to follow a new name of its backing file: its disk never reads otherwise than
// before. Everything else is new files under new names, and one atomic replacement
// of metadata.json.
//
// Locks are flocks and die with their process: one on the repository, shared by
// programs that embed it and taken alone by the control plane, and one for each
// machine, taken by who writes. Who takes a machine's lock first finishes or
// discards what a writer before it left. Readers open what metadata.json names, and
// look again if it changed meanwhile.
//
// The package knows nothing of jobs, policies and sources.
package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sendense/sendense/internal/repository"
)

// Options say how a repository is opened.
type Options struct {
	// Create makes the folder if it is missing. Its parent has to be there.
	Create bool
	// ReadOnly changes nothing and takes no lock. A folder that cannot be written
	// is opened so in any case, unless Exclusive is set.
	ReadOnly bool
	// Exclusive keeps all other programs from writing, and recovers all machines.
	Exclusive bool
	// Holder names the program in messages to others that it keeps out. Default:
	// the name of the executable.
	Holder string
	Log    *slog.Logger     // default: discard
	Now    func() time.Time // default: time.Now
}

// Repository is a folder of points.
type Repository struct {
	root     string
	log      *slog.Logger
	now      func() time.Time
	fs       filesystem
	readOnly error // why nothing can be written, or nil
	lock     *lock
	listings listings

	mu     sync.Mutex // guards the field below
	closed bool
}

var _ repository.Repository = (*Repository)(nil)

// Open opens the repository in a folder. With Exclusive, a machine that cannot be
// recovered is logged and does not keep the others from being used.
func Open(path string, o Options) (*Repository, error) {
	return open(path, o, disk{})
}

func open(path string, o Options, f filesystem) (*Repository, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now //permit:time.Now: the default of an injected clock
	}
	if o.Holder == "" {
		o.Holder = filepath.Base(os.Args[0])
	}
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", path, err)
	}
	r := &Repository{root: root, log: o.Log, now: o.Now, fs: f}
	if err := r.begin(o); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", path, err)
	}
	return r, nil
}

func (r *Repository) begin(o Options) error {
	if o.Create && !o.ReadOnly {
		if err := mkdir(r.fs, r.root); err != nil {
			return err
		}
	}
	st, err := os.Stat(r.root)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("it is not a folder")
	}
	if o.ReadOnly {
		if o.Exclusive {
			return errors.New("it cannot be read-only and exclusive")
		}
		r.readOnly = errors.New("it was opened for reading")
		return nil
	}
	err = os.Mkdir(filepath.Join(r.root, vmLocksName), 0o700)
	if err == nil || errors.Is(err, os.ErrExist) {
		r.lock, err = takeLock(filepath.Join(r.root, lockName), o.Exclusive, "repository "+r.root, o.Holder, r.now())
	}
	if cause := cannotWrite(err); cause != nil && !o.Exclusive {
		r.readOnly = cause
		return nil
	}
	if err != nil {
		return err
	}
	if o.Exclusive {
		if err := r.recoverAll(context.Background()); err != nil {
			return errors.Join(err, r.lock.release())
		}
	}
	r.keepReserve(minReserve)
	return nil
}

// cannotWrite returns the reason if err says that a folder can be read at most.
func cannotWrite(err error) error {
	for _, e := range []error{syscall.EROFS, syscall.EACCES, syscall.EPERM} {
		if errors.Is(err, e) {
			return e
		}
	}
	return nil
}

// Close gives up the lock of the repository.
func (r *Repository) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.lock == nil {
		return nil
	}
	r.closed = true
	return r.lock.release()
}

// ReadOnly returns why the repository cannot be written, nil if it can.
func (r *Repository) ReadOnly() error {
	if r.readOnly == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %w", repository.ErrReadOnly, r.root, r.readOnly)
}

// Root returns the folder of the repository.
func (r *Repository) Root() string { return r.root }

// vmFolder is the folder of one machine.
type vmFolder struct {
	id   repository.VMID
	path string
	fs   filesystem
}

// folder returns the folder of a machine, which need not be there.
func (r *Repository) folder(id repository.VMID) (*vmFolder, error) {
	id, err := repository.ParseVMID(string(id))
	if err != nil {
		return nil, err
	}
	return &vmFolder{id: id, path: filepath.Join(r.root, string(id)), fs: r.fs}, nil
}

func (v *vmFolder) metadata() string { return filepath.Join(v.path, metadataName) }

// file returns the path of a file that the record names.
func (v *vmFolder) file(name string) string { return filepath.Join(v.path, filepath.FromSlash(name)) }

// load reads the record; nil if the machine is not there.
func (v *vmFolder) load() (*record, error) {
	r, _, err := loadRecord(v.metadata(), v.id)
	return r, err
}

// folders lists the machines that have a folder.
func (r *Repository) folders() ([]*vmFolder, error) {
	entries, err := os.ReadDir(r.root)
	if err != nil {
		return nil, fmt.Errorf("list virtual machines: %w", err)
	}
	var list []*vmFolder
	for _, e := range entries {
		if id, err := repository.ParseVMID(e.Name()); err == nil && string(id) == e.Name() && e.IsDir() {
			list = append(list, &vmFolder{id: id, path: filepath.Join(r.root, e.Name()), fs: r.fs})
		}
	}
	return list, nil
}

// VMs implements repository.Repository.
func (r *Repository) VMs(ctx context.Context) ([]repository.VM, error) {
	folders, err := r.folders()
	if err != nil {
		return nil, err
	}
	var list []repository.VM
	var errs []error
	there := make(map[repository.VMID]bool, len(folders))
	for _, v := range folders {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		there[v.id] = true
		l, err := r.list(v, false)
		switch {
		case err != nil:
			errs = append(errs, err)
		case l != nil:
			list = append(list, l.vm)
		}
	}
	r.listings.drop(there)
	slices.SortFunc(list, func(a, b repository.VM) int {
		return strings.Compare(a.Name+"\x00"+string(a.ID), b.Name+"\x00"+string(b.ID))
	})
	return list, errors.Join(errs...)
}

func (r *record) vm() repository.VM {
	return repository.VM{ID: r.VM.UUID, Name: r.VM.Name, Created: r.VM.Created, Points: len(r.Points), Latest: r.latest().ID}
}

// VM implements repository.Repository.
func (r *Repository) VM(ctx context.Context, nameOrUUID string) (repository.VM, error) {
	if id, err := repository.ParseVMID(nameOrUUID); err == nil {
		l, err := r.listed(id, false)
		if err != nil {
			return repository.VM{}, err
		}
		return l.vm, nil
	}
	list, err := r.VMs(ctx)
	var found []repository.VM
	for _, v := range list {
		if v.Name == nameOrUUID {
			found = append(found, v)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return repository.VM{}, fmt.Errorf("%w: %q is %s and %s; give the UUID", repository.ErrAmbiguous, nameOrUUID, found[0].ID, found[1].ID)
	case err != nil: // it may be one of those that cannot be read
		return repository.VM{}, fmt.Errorf("find VM %q: %w", nameOrUUID, err)
	}
	return repository.VM{}, fmt.Errorf("%w: %q", repository.ErrNoVM, nameOrUUID)
}

// find returns the folder and the record of a machine that has points.
func (r *Repository) find(id repository.VMID) (*vmFolder, *record, error) {
	v, rec, _, err := r.findBytes(id)
	return v, rec, err
}

// findBytes is find, with the content of metadata.json.
func (r *Repository) findBytes(id repository.VMID) (*vmFolder, *record, []byte, error) {
	v, err := r.folder(id)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", repository.ErrNoVM, err)
	}
	rec, b, err := loadRecord(v.metadata(), v.id)
	if err != nil {
		return nil, nil, nil, err
	}
	if rec == nil || len(rec.Points) == 0 {
		return nil, nil, nil, fmt.Errorf("%w: %s", repository.ErrNoVM, id)
	}
	return v, rec, b, nil
}

// Points implements repository.Repository.
func (r *Repository) Points(_ context.Context, vm repository.VMID) ([]repository.Point, error) {
	l, err := r.listed(vm, true)
	if err != nil {
		return nil, err
	}
	list := make([]repository.Point, len(l.rec.Points))
	for i := range l.rec.Points {
		list[i] = l.rec.export(&l.rec.Points[i])
	}
	return list, nil
}

// listed returns what the record of a machine with points says.
func (r *Repository) listed(id repository.VMID, wanted bool) (*listing, error) {
	v, err := r.folder(id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", repository.ErrNoVM, err)
	}
	l, err := r.list(v, wanted)
	if err == nil && l == nil {
		err = fmt.Errorf("%w: %s", repository.ErrNoVM, id)
	}
	return l, err
}

// lockVM takes the writer lock of a machine and finishes or discards what the
// writer before left.
func (r *Repository) lockVM(ctx context.Context, v *vmFolder, name, who string) (*lock, error) {
	if err := r.ReadOnly(); err != nil {
		return nil, err
	}
	if name == "" {
		name = string(v.id)
		if rec, err := v.load(); err == nil && rec != nil {
			name = rec.VM.Name
		}
	}
	l, err := takeLock(filepath.Join(r.root, vmLocksName, string(v.id)), true, "VM "+name, who, r.now())
	if cause := cannotWrite(err); cause != nil {
		return nil, fmt.Errorf("%w: %w", repository.ErrReadOnly, err)
	}
	if err != nil {
		return nil, err
	}
	if err := r.recover(ctx, v); err != nil {
		return nil, errors.Join(err, l.release())
	}
	l.after = func() { r.keepReserve(v.reserveFor()) }
	return l, nil
}

// writeRecord puts a record in place, durably. Where that fails half-way the old
// one is put back; unsure then reports that it could not be, and the next to read
// finds one or the other.
func (v *vmFolder) writeRecord(r *record) (unsure bool, err error) {
	b, err := r.encode()
	if err != nil {
		return false, err
	}
	_, old, err := loadRecord(v.metadata(), v.id)
	if err != nil {
		return false, err
	}
	if bytes.Equal(old, b) {
		return false, nil
	}
	renamed, err := replaceFile(v.fs, v.metadata(), b)
	if err == nil || !renamed {
		return false, err
	}
	if old == nil {
		back := errors.Join(removeFile(v.fs, v.metadata()), v.fs.SyncDir(v.path))
		return back != nil, errors.Join(err, back)
	}
	_, back := replaceFile(v.fs, v.metadata(), old)
	return back != nil, errors.Join(err, back)
}
