package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/archive"
	"github.com/sendense/sendense/internal/guestfs"
)

// ArchiveRequest says what of a point goes into an archive.
type ArchiveRequest struct {
	VM, Point string
	Paths     []string // as in a FilesRequest; none: all there is
	Format    string   // tar or zip; default tar
	Verified  bool     // compare what is read with its digests
	Keyring   string   // as in a FilesRequest
}

// ArchiveSummary tells what is in an archive that was written.
type ArchiveSummary struct {
	Files   int64 `json:"files"` // also directories, links and whatever else
	Bytes   int64 `json:"bytes"` // of content
	LeftOut int64 `json:"left_out_files"`
	Special int64 `json:"special_files"` // of those: devices, pipes and sockets, which there cannot be
	Changed int64 `json:"changed_files"` // have another name than in the point, or lack attributes
	// Remarks is the entry that names the files which were left out or changed, with
	// the reasons. More of the kind are numbered.
	Remarks string `json:"remarks,omitempty"`
}

// Incomplete reports whether something is left out that could have been there.
func (s ArchiveSummary) Incomplete() bool { return s.LeftOut > s.Special }

// Archive is one to be written.
type Archive struct {
	b      *browsed
	format archive.Format
	tops   []guestfs.Entry // where walks begin, under the names that they have in the archive
	asked  []guestfs.Entry // the same, under their own
}

// OpenArchive finds what goes into an archive. The caller closes it.
func (a *Appliance) OpenArchive(ctx context.Context, r ArchiveRequest) (*Archive, error) {
	if r.Format == "" {
		r.Format = string(archive.Tar)
	}
	if f := archive.Format(r.Format); f != archive.Tar && f != archive.Zip {
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("There is no archive format %q.", r.Format), Hint: "Give tar or zip."}
	}
	if len(r.Paths) == 0 {
		r.Paths = []string{""}
	}
	b, err := a.browse(ctx, FilesRequest{VM: r.VM, Point: r.Point, Path: r.Paths[0], Verified: r.Verified, Keyring: r.Keyring}, false)
	if err != nil {
		return nil, err
	}
	x := &Archive{b: b, format: archive.Format(r.Format)}
	for i, p := range r.Paths {
		e := b.entry
		if i > 0 {
			if e, err = b.guest.Resolve(ctx, p, false); err != nil {
				x.Close()
				return nil, filesError(b.point, p, err)
			}
		}
		if err := x.begin(e); err != nil {
			x.Close()
			return nil, err
		}
	}
	return x, nil
}

// begin adds a place at which a walk begins.
func (x *Archive) begin(e guestfs.Entry) error {
	top := e
	if top.Name = path.Base(path.Clean("/" + e.Name)); top.Name == "/" {
		top.Name = string(x.b.point.ID)
	}
	if slices.ContainsFunc(x.tops, func(other guestfs.Entry) bool { return other.Name == top.Name }) {
		return &Error{Code: CodeInvalid, Msg: fmt.Sprintf("Two of the paths end in %s, and one would be in the place of the other.", Visible(top.Name)),
			Hint: "Ask for one after the other, or for a directory that both are in."}
	}
	x.asked, x.tops = append(x.asked, e), append(x.tops, top)
	return nil
}

// Close gives the point back.
func (x *Archive) Close() { x.b.close() }

// Name returns a name for the archive.
func (x *Archive) Name() string {
	return strings.ReplaceAll(x.b.vm.Name, "/", "_") + "-" + string(x.b.point.ID) + "." + string(x.format)
}

// Write writes the archive. What the guest's file systems do not yield is left out,
// and named in an entry at the end. Any other error ends it: what was written until
// then is no whole archive.
func (x *Archive) Write(ctx context.Context, w io.Writer) (ArchiveSummary, error) {
	out, err := archive.New(w, x.format)
	if err != nil {
		return ArchiveSummary{}, err
	}
	p := &packer{x: x, w: out}
	r := &gatherer{x: x, items: make(chan *item, itemsAhead)}
	working, cancel := context.WithCancel(ctx)
	walked := make(chan error, 1)
	go func() {
		defer close(r.items)
		walked <- r.walk(working)
	}()
	for it := range r.items {
		<-it.ready
		if err == nil {
			if err = p.put(working, it); err != nil {
				cancel()
			}
		}
	}
	cancel()
	if walkErr := <-walked; err == nil {
		err = walkErr
	}
	if err == nil {
		err = p.finish(ctx, r.copies)
	}
	if err != nil {
		_ = out.Spoil() // if it cannot even be told that this is no archive, less of it arrives
	}
	return p.sum, x.b.error(err)
}

// packer puts files into an archive, one after another.
type packer struct {
	x       *Archive
	w       *archive.Writer
	sum     ArchiveSummary
	remarks strings.Builder
	lists   int // of remarks, in the archive already
}

// put writes one file.
func (p *packer) put(ctx context.Context, it *item) error {
	if it.err == nil && it.link != nil && !it.link.written {
		// The one that it is a link of is not in the archive.
		it.link.name, it.link, it.first = it.Name, nil, it.link
		if it.wants() {
			it.fetch(ctx)
		}
	}
	if it.err != nil {
		what := fmt.Sprintf("%q", it.Name)
		if it.Mode.IsDir() { // it is in the archive already
			what = "some or all of what is in " + what
		}
		return p.leaveOut(ctx, what, it.err)
	}
	if it.link != nil {
		it.Link = it.link.name
	}
	if err := p.w.Add(ctx, &it.Entry, it.content); err != nil {
		return p.refused(ctx, it, err)
	}
	p.sum.Files++
	if it.first != nil {
		it.first.written = true
	}
	if it.link == nil && it.Mode.IsRegular() {
		p.sum.Bytes += it.Size
	}
	changed := it.changed
	if is := p.w.Renamed(it.Name); path.Base(is) != path.Base(it.Name) { // else its directory is
		changed = append(changed, fmt.Sprintf("it is called %+q here", is))
	}
	if len(changed) > 0 {
		p.sum.Changed++
		return p.remark(ctx, fmt.Sprintf("changed: %q: %s", it.Name, strings.Join(changed, "; ")))
	}
	return nil
}

// refused notes a file that the archive did not take. An error that ended the
// archive is returned instead.
func (p *packer) refused(ctx context.Context, it *item, err error) error {
	var refused *archive.RefusedError
	if !errors.As(err, &refused) {
		return err
	}
	why := refused.Err.Error()
	switch {
	case errors.Is(err, archive.ErrType):
		why = fmt.Sprintf("a %s cannot have it: %s", p.x.format, kind(it.Mode))
		if types[it.Mode.Type()] != "" {
			p.sum.Special++
		}
	case !archive.IsReason(refused.Err):
		return p.leaveOut(ctx, fmt.Sprintf("%q", it.Name), refused.Err)
	}
	p.sum.LeftOut++
	return p.remark(ctx, fmt.Sprintf("left out: %q: %s", it.Name, why))
}

// leaveOut notes what cannot be read. Where that is not the guest's own doing the
// error is returned instead.
func (p *packer) leaveOut(ctx context.Context, what string, err error) error {
	if !guestfs.OwnFault(err) {
		return err
	}
	p.sum.LeftOut++
	return p.remark(ctx, fmt.Sprintf("left out: %s: %v", what, err))
}

// maxRemarks is how much text of remarks is kept before it is written, in bytes.
const maxRemarks = 1 << 20

// remark adds a line to the remarks.
func (p *packer) remark(ctx context.Context, line string) error {
	p.remarks.WriteString(strings.ReplaceAll(line, "\n", " ") + "\n")
	if p.remarks.Len() < maxRemarks {
		return nil
	}
	return p.flush(ctx)
}

// flush writes the remarks to the archive.
func (p *packer) flush(ctx context.Context) error {
	name := "sendense-remarks.txt"
	for p.w.Has(name) || p.x.has(name) {
		p.lists++
		name = fmt.Sprintf("sendense-remarks-%d.txt", p.lists+1)
	}
	if p.sum.Remarks == "" {
		p.sum.Remarks = name
	}
	text := []byte(p.remarks.String())
	p.remarks.Reset()
	e := archive.Entry{Name: name, Mode: 0o644, Size: int64(len(text)), Modified: p.x.b.point.Created}
	return p.w.Add(ctx, &e, inMemory{b: text})
}

// has reports whether a topmost name is one of those asked for.
func (x *Archive) has(name string) bool {
	return slices.ContainsFunc(x.tops, func(e guestfs.Entry) bool { return e.Name == name })
}

// finish adds what is known of the whole, and ends the archive.
func (p *packer) finish(ctx context.Context, copies bool) error {
	if copies {
		p.sum.Changed++
		p.remarks.WriteString("changed: of the files with several names, some are in the archive once for each name\n")
	}
	if err := p.unreadable(ctx); err != nil {
		return err
	}
	if p.remarks.Len() > 0 {
		if err := p.flush(ctx); err != nil {
			return err
		}
	}
	return p.w.Close()
}

// unreadable tells of file systems that cannot be read, where the archive would
// have them.
func (p *packer) unreadable(ctx context.Context) error {
	var volumes []guestfs.Volume
	for _, e := range p.x.asked {
		if e.Name == "/" {
			for _, note := range p.x.b.guest.OS().Notes {
				p.remarks.WriteString("note: " + note + "\n")
			}
		}
		if e.Node.FS != 0 {
			continue
		}
		if volumes == nil {
			var err error
			if volumes, err = p.x.b.guest.Volumes(ctx); err != nil {
				return err
			}
		}
		for _, v := range volumes {
			if v.Refusal != "" && (e.Name == "" || strings.HasPrefix(v.Path, e.Name+"/")) {
				p.sum.LeftOut++
				fmt.Fprintf(&p.remarks, "left out: %q: %s\n", v.Path, v.Refusal)
			}
		}
	}
	return nil
}
