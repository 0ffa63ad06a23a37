package guestfs

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/internal/guestfs/proto"
)

// Walk calls visit for n and what is below it, as far as m chooses it, in the order
// of names; names are paths from n, which is ".". An error of an entry is what
// kept it, or what is in it, from being read.
func (g *Guest) Walk(ctx context.Context, n Node, m Match, visit func(Entry) error) error {
	return g.walk(ctx, proto.Request{Node: n, Match: m}, func(e *proto.Entry) error { return visit(unpack(e)) })
}

func unpack(e *proto.Entry) Entry { return Entry{e.Name, e.Node, e.Attr.Unpack(), e.Err.Unpack()} }

func (g *Guest) walk(ctx context.Context, r proto.Request, visit func(*proto.Entry) error) error {
	r.Op = proto.Walk
	begun, err := g.call(ctx, r)
	if err != nil {
		return err
	}
	return g.stream(ctx, begun.Stream, func(r proto.Reply) error {
		for i := range r.Entries {
			if !relative(r.Entries[i].Name) {
				return errProtocol
			}
			if err := visit(&r.Entries[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// FullEntry is an entry with what it takes to copy it.
type FullEntry struct {
	Entry
	Target    string // of a symbolic link
	Xattrs    []Xattr
	XattrsErr error
	File      *File // of a regular file
}

// Wanted says what a FullEntry is to have: all of them have their target.
type Wanted struct{ Xattrs, Files bool }

// WalkFull is Walk with what it takes to copy, which is told all at once.
func (g *Guest) WalkFull(ctx context.Context, n Node, m Match, w Wanted, visit func(FullEntry) error) error {
	r := proto.Request{Node: n, Match: m, More: proto.Targets}
	if w.Xattrs {
		r.More |= proto.AllXattrs
	}
	if w.Files {
		r.More |= proto.Places
	}
	return g.walk(ctx, r, func(e *proto.Entry) error {
		x := FullEntry{Entry: unpack(e), Target: e.Target, Xattrs: e.Xattrs, XattrsErr: e.XattrsErr.Unpack()}
		if w.Files && x.Err == nil && x.Attr.Mode.IsRegular() {
			f, err := g.OpenFile(x.Entry)
			if err != nil {
				return err
			}
			if err := f.know(e); err != nil {
				return err
			}
			x.File = f
		}
		return visit(x)
	})
}

// relative reports whether a path leads down and nowhere else.
func relative(p string) bool {
	return p != "" && p[0] != '/' && path.Clean(p) == p && p != ".." && !strings.HasPrefix(p, "../") && !strings.Contains(p, "\x00")
}

// patience is how long the process waits for more of a stream before it says that there
// is nothing yet: that one finds little does not mean that it hangs.
const patience = 2 * time.Second

// stream fetches a stream to its end, or stops it.
func (g *Guest) stream(ctx context.Context, id uint64, take func(proto.Reply) error) error {
	for {
		r, err := g.call(ctx, proto.Request{Op: proto.Next, Stream: id, N: min(patience, g.c.timeout/4).Milliseconds()})
		if err == nil && r.Done {
			return nil
		}
		if err == nil && r.Later {
			continue // it is at work
		}
		if err == nil && len(r.Entries)+len(r.Changes) == 0 {
			err = errProtocol
		}
		if err == nil {
			err = take(r)
		}
		if err != nil {
			// It ends there whether or not this is heard.
			_, _ = g.call(context.WithoutCancel(ctx), proto.Request{Op: proto.Stop, Stream: id})
			return err
		}
	}
}

// Change is what differs between two states of a machine.
type Change struct {
	Path     string // below where the comparison began
	What     What
	Old, New Attr   // of what was added or removed only one
	Err      string // why it could not be compared
}

// Dirty are the ranges in which each disk, by index, differs between two states.
type Dirty map[int][]block.Range

// Diff calls visit for each path at or below a and b that differs, a being of
// older, in the order of names. Both come from one [OpenTwo]. Where dirty tells
// what differs on all disks, inodes that lie elsewhere are not even read.
func Diff(ctx context.Context, older *Guest, a Node, newer *Guest, b Node, dirty Dirty, visit func(Change) error) error {
	for index, list := range dirty {
		if err := older.tell(ctx, index, list); err != nil {
			return err
		}
	}
	begun, err := older.call(ctx, proto.Request{Op: proto.Diff, Node: a, Other: b})
	if err != nil {
		return err
	}
	return older.stream(ctx, begun.Stream, func(r proto.Reply) error {
		for _, c := range r.Changes {
			if !relative(c.Path) {
				return errProtocol
			}
			if err := visit(Change{c.Path, c.What, c.Old.Unpack(), c.New.Unpack(), c.Err}); err != nil {
				return err
			}
		}
		return nil
	})
}

// tell says which ranges of a disk differ.
func (g *Guest) tell(ctx context.Context, index int, list []block.Range) error {
	for first := true; first || len(list) > 0; first = false {
		n := min(len(list), 20_000)
		r := proto.Request{Op: proto.Dirty, N: int64(index)}
		for _, x := range list[:n] {
			r.Ranges = append(r.Ranges, [2]int64{x.Off, x.Len})
		}
		if _, err := g.call(ctx, r); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}
