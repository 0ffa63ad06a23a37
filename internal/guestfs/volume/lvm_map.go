package volume

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// maxNesting is how many logical volumes may be made of one another.
const maxNesting = 16

// resolver makes volumes of the metadata of a group.
type resolver struct {
	*group
	physical  map[string]fsys.Volume // by identifier; those that are there
	done      map[string]resolved
	notes     map[string][]string // by logical volume
	snapshots map[string]snapshot // by the volume that keeps their exceptions
	merging   map[string]bool     // origins that a snapshot is being merged into
	pools     map[string]*thinPool
	depth     int
	doubtful  int             // how often a part was on a physical volume that counts as missing
	stale     map[string]bool // volumes that have such parts
}

type resolved struct {
	vol fsys.Volume
	err error
}

// snapshot is one of the old kind: exceptions from an origin.
type snapshot struct {
	origin string
	chunk  int64 // bytes
}

// errLoop says that a logical volume is made of itself.
var errLoop = errors.New("it is made of itself")

func newResolver(g *group, physical map[string]fsys.Volume) *resolver {
	r := &resolver{
		group: g, physical: physical, done: map[string]resolved{}, notes: map[string][]string{},
		snapshots: map[string]snapshot{}, merging: map[string]bool{}, pools: map[string]*thinPool{}, stale: map[string]bool{},
	}
	for _, l := range g.logicals {
		if l.kind() != "snapshot" {
			continue
		}
		s := l.segments[0]
		chunk, _ := s.number("chunk_size")
		if cow := s.text("merging_store"); cow != "" {
			r.snapshots[cow] = snapshot{s.text("origin"), chunk * 512}
			r.merging[s.text("origin")] = true
		} else {
			r.snapshots[s.text("cow_store")] = snapshot{s.text("origin"), chunk * 512}
		}
	}
	return r
}

// volume returns a logical volume as a guest sees it.
func (r *resolver) volume(name string) (fsys.Volume, error) {
	if s, ok := r.snapshots[name]; ok {
		return r.once(name+"/snapshot", func() (fsys.Volume, error) { return r.snapshot(name, s) })
	}
	if r.merging[name] {
		return nil, errors.New("a snapshot is being merged into it")
	}
	return r.plain(name)
}

// plain returns a logical volume by its own segments.
func (r *resolver) plain(name string) (fsys.Volume, error) {
	l := r.byName[name]
	if l == nil {
		return nil, fmt.Errorf("there is no logical volume %.100q", name)
	}
	return r.once(name, func() (fsys.Volume, error) { return r.build(l) })
}

// once makes each volume once, and none of itself.
func (r *resolver) once(name string, build func() (fsys.Volume, error)) (fsys.Volume, error) {
	if d, ok := r.done[name]; ok {
		if r.stale[name] {
			r.doubtful++
		}
		return d.vol, d.err
	}
	if r.depth == maxNesting {
		return nil, errors.New("it is made of too many volumes within one another")
	}
	r.done[name] = resolved{nil, errLoop}
	before := r.doubtful
	r.depth++
	vol, err := build()
	r.depth--
	r.done[name], r.stale[name] = resolved{vol, err}, r.doubtful > before
	return vol, err
}

func (r *resolver) build(l *logical) (fsys.Volume, error) {
	if len(l.segments) == 0 {
		return nil, errors.New("it has no segments")
	}
	var all concatenation
	for _, s := range l.segments {
		lay, err := r.segment(l, s)
		if err != nil {
			return nil, err
		}
		all = append(all, segment{s.start * r.extent, s.count * r.extent, lay})
	}
	return newVolume(all, l.extents*r.extent), nil
}

// segment returns the layout of a segment. Types are those of lvmraid(7),
// lvmthin(7) and lvs(8); a type may be followed by flags.
func (r *resolver) segment(l *logical, s lvSegment) (layout, error) {
	switch s.kind {
	case "striped", "linear":
		return r.striped(s)
	case "mirror":
		return r.mirror(l, s)
	case "raid1":
		return r.raid1(l, s)
	case "raid0", "raid0_meta":
		return r.raid0(s)
	case "thin":
		return r.thin(l, s)
	case "zero":
		return zeroes{}, nil
	case "":
		return nil, errors.New("a segment has no type")
	}
	kind, _, _ := strings.Cut(s.kind, "+") // the flags of a type
	if !validName(kind) {
		kind = fmt.Sprintf("%.40q", kind)
	}
	return nil, fmt.Errorf("segments of type %s are not read", kind)
}

// at returns where n bytes of an area lie.
func (r *resolver) at(a area, n int64) (part, error) {
	if a.at > maxBytes/r.extent/2 {
		return part{}, fmt.Errorf("a segment lies past the end of %.100q", a.name)
	}
	if pv := r.byPV[a.name]; pv != nil {
		vol := r.physical[pv.id]
		if pv.missing {
			r.doubtful++
		}
		if vol == nil {
			return part{}, fmt.Errorf("physical volume %s is missing", pv)
		}
		if a.at*r.extent+n > pv.count*r.extent || pv.start+a.at*r.extent+n > vol.Size() {
			return part{}, fmt.Errorf("a segment lies past the end of physical volume %s", pv)
		}
		return part{vol, pv.start + a.at*r.extent}, nil
	}
	vol, err := r.plain(a.name)
	if err != nil {
		return part{}, err
	}
	if a.at*r.extent > vol.Size()-n {
		return part{}, fmt.Errorf("a segment lies past the end of logical volume %s", a.name)
	}
	return part{vol, a.at * r.extent}, nil
}

func (r *resolver) striped(s lvSegment) (layout, error) {
	areas, err := s.areas("stripes")
	if err != nil {
		return nil, err
	}
	return r.stripe(s, areas)
}

// stripe lays a segment out over areas of equal size.
func (r *resolver) stripe(s lvSegment, areas []area) (layout, error) {
	n := int64(len(areas))
	if s.count%n != 0 {
		return nil, fmt.Errorf("%d extents do not go onto %d stripes", s.count, n)
	}
	st := stripes{chunk: s.count * r.extent}
	if n > 1 {
		sectors, _ := s.number("stripe_size")
		if sectors <= 0 || sectors > r.extent/512 || r.extent/512%sectors != 0 {
			return nil, fmt.Errorf("stripes of %d sectors", sectors)
		}
		st.chunk = sectors * 512
	}
	for _, a := range areas {
		p, err := r.at(a, s.count/n*r.extent)
		if err != nil {
			return nil, err
		}
		st.vols = append(st.vols, p)
	}
	if n == 1 {
		return st.vols[0], nil
	}
	return st, nil
}

// mirror reads the first leg of a mirror, which is always in step.
func (r *resolver) mirror(l *logical, s lvSegment) (layout, error) {
	areas, err := s.areas("mirrors")
	if err != nil {
		return nil, err
	}
	p, err := r.at(areas[0], s.count*r.extent)
	if err == nil {
		r.notes[l.name] = append(r.notes[l.name], fmt.Sprintf("It is a mirror, of whose %d legs the first is read.", len(areas)))
	}
	return p, err
}

// thin returns the layout of a thin volume.
func (r *resolver) thin(l *logical, s lvSegment) (layout, error) {
	pool, err := r.pool(s.text("thin_pool"))
	if err != nil {
		return nil, err
	}
	id, ok := s.number("device_id")
	if !ok || len(l.segments) != 1 {
		return nil, errors.New("it is no valid thin volume")
	}
	if s.text("merge") != "" {
		r.notes[l.name] = append(r.notes[l.name], fmt.Sprintf("It is to be merged into %.100q when that is activated next.", s.text("merge")))
	}
	root, err := pool.device(uint64(id))
	if err != nil {
		return nil, err
	}
	t := &thinDevice{pool: pool, root: root}
	if origin := s.text("external_origin"); origin != "" {
		if t.origin, err = r.volume(origin); err != nil {
			return nil, fmt.Errorf("its origin %.100q: %w", origin, err)
		}
	}
	return t, nil
}

// pool opens a thin pool.
func (r *resolver) pool(name string) (*thinPool, error) {
	if p := r.pools[name]; p != nil {
		if r.stale[name] {
			r.doubtful++
		}
		return p, nil
	}
	before := r.doubtful
	l := r.byName[name]
	if l == nil || l.kind() != "thin-pool" || len(l.segments) != 1 {
		return nil, fmt.Errorf("there is no thin pool %.100q", name)
	}
	s := l.segments[0]
	meta, err := r.plain(s.text("metadata"))
	if err != nil {
		return nil, fmt.Errorf("metadata of its pool: %w", err)
	}
	data, err := r.plain(s.text("pool"))
	if err != nil {
		return nil, fmt.Errorf("data of its pool: %w", err)
	}
	p, err := openThinPool(meta, data)
	if err != nil {
		return nil, err
	}
	if chunk, _ := s.number("chunk_size"); chunk*512 != p.block {
		return nil, fmt.Errorf("its pool has blocks of %d bytes, the volume group says %d", p.block, chunk*512)
	}
	if id, _ := s.number("transaction_id"); uint64(id) != p.transaction {
		p.notes = append(p.notes, fmt.Sprintf("The pool is at transaction %d, the volume group at %d: one of them is older than the other.", p.transaction, id))
	}
	r.pools[name], r.stale[name] = p, r.doubtful > before
	return p, nil
}

// snapshot returns a snapshot of the old kind.
func (r *resolver) snapshot(name string, s snapshot) (fsys.Volume, error) {
	cow, err := r.plain(name)
	if err != nil {
		return nil, err
	}
	origin, err := r.plain(s.origin)
	if err != nil {
		return nil, fmt.Errorf("its origin %.100q: %w", s.origin, err)
	}
	c, err := openCOW(cow, origin, s.chunk)
	if err != nil {
		return nil, err
	}
	return newVolume(c, origin.Size()), nil
}
