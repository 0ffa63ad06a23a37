package appliance

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"sync"

	"github.com/sendense/sendense/internal/archive"
	"github.com/sendense/sendense/internal/guestfs"
)

const (
	// itemsAhead is how many files are fetched before it is their turn.
	itemsAhead = 64
	// fetchers is how many of them are fetched at a time.
	fetchers = 8
	// smallFile is what is fetched as a whole, in bytes.
	smallFile = 128 << 10
	// maxLinked bounds what is kept of files that more links may follow of, in bytes.
	maxLinked = 64 << 20
)

// item is a file on its way into an archive.
type item struct {
	archive.Entry
	node    guestfs.Node
	file    *guestfs.File // of a regular one
	content archive.Content
	first   *linked  // links may follow
	link    *linked  // it is one
	changed []string // what it is in the archive, other than in the point
	err     error    // why it cannot be had
	ready   chan struct{}
}

// linked is a file with several names.
type linked struct {
	left uint32 // links that may follow; the gatherer's
	kept int    // about what it takes, in bytes; the gatherer's

	name    string // the one that it has in the archive; the packer's, once it is sent
	written bool   // it is there; the packer's
}

// kind tells what a file is by its mode.
func kind(m fs.FileMode) string {
	if t := types[m.Type()]; t != "" {
		return "it is of type " + t
	}
	return "it cannot be told what it is"
}

// gatherer walks, and fetches what it finds.
type gatherer struct {
	x      *Archive
	items  chan *item // in the order of the archive
	links  map[guestfs.Node]*linked
	kept   int  // bytes, of links
	copies bool // not all links are known
}

// walk sends all files and waits for those who fetch them.
func (r *gatherer) walk(ctx context.Context) error {
	r.links = map[guestfs.Node]*linked{}
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, fetchers)
	want := guestfs.Wanted{Xattrs: r.x.format == archive.Tar, Files: true}
	for _, top := range r.x.tops {
		err := r.x.b.guest.WalkFull(ctx, top.Node, guestfs.Match{}, want, func(e guestfs.FullEntry) error {
			it := r.item(path.Join(top.Name, e.Name), &e)
			select {
			case r.items <- it:
			case <-ctx.Done():
				return ctx.Err()
			}
			if !it.wants() {
				close(it.ready)
				return nil
			}
			slots <- struct{}{} // fetching ends when the context does
			wg.Go(func() {
				it.fetch(ctx)
				close(it.ready)
				<-slots
			})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// item returns what a file is to be in the archive.
func (r *gatherer) item(name string, e *guestfs.FullEntry) *item {
	a := &e.Attr
	it := &item{node: e.Node, file: e.File, err: e.Err, ready: make(chan struct{}), Entry: archive.Entry{Name: name, Mode: a.Mode,
		UID: a.UID, GID: a.GID, Modified: a.Modified, Major: a.Major, Minor: a.Minor, Target: e.Target}}
	if it.err != nil {
		return it
	}
	if a.Mode.IsRegular() {
		it.Size = a.Size
	}
	it.takeXattrs(e)
	if r.x.format == archive.Tar && a.Links > 1 && !a.Mode.IsDir() {
		r.join(it, a.Links)
	}
	return it
}

// takeXattrs takes extended attributes. A file whose own cannot be read goes without.
func (it *item) takeXattrs(e *guestfs.FullEntry) {
	switch {
	case e.XattrsErr != nil && !guestfs.OwnFault(e.XattrsErr):
		it.err = e.XattrsErr
		return
	case e.XattrsErr != nil:
		it.changed = append(it.changed, "its extended attributes cannot be read: "+e.XattrsErr.Error())
	}
	for _, x := range e.Xattrs {
		it.Xattrs = append(it.Xattrs, archive.Xattr{Name: x.Name, Value: x.Value})
	}
	for _, name := range it.CutXattrs() {
		it.changed = append(it.changed, fmt.Sprintf("it lacks the extended attribute %q, which a tar cannot have", name))
	}
}

// join finds out whether a file was there before under another name.
func (r *gatherer) join(it *item, links uint32) {
	l := r.links[it.node]
	switch {
	case l != nil:
		it.link = l
		if l.left--; l.left == 0 {
			delete(r.links, it.node)
			r.kept -= l.kept
		}
	case r.kept > maxLinked:
		r.copies = true
	default:
		it.first = &linked{name: it.Name, left: links - 1, kept: len(it.Name) + 200}
		r.links[it.node] = it.first
		r.kept += it.first.kept
	}
}

// wants reports whether there is content to fetch.
func (it *item) wants() bool { return it.err == nil && it.link == nil && it.file != nil && it.Size > 0 }

// fetch reads what is in a small file, and lets a larger one be read.
func (it *item) fetch(ctx context.Context) {
	it.content = it.file
	if it.Size > smallFile {
		return
	}
	m := inMemory{make([]byte, it.Size), it.file}
	if it.err = it.file.ReadAt(ctx, m.b, 0); it.err == nil {
		it.content = m
	}
}

// inMemory is a file that was read.
type inMemory struct {
	b    []byte
	file *guestfs.File // knows its holes; nil: there are none
}

func (m inMemory) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, m.b[off:])
	return nil
}

func (m inMemory) Data(ctx context.Context, off int64) (from, to int64, err error) {
	if m.file == nil {
		return off, int64(len(m.b)), nil
	}
	return m.file.Data(ctx, off)
}
