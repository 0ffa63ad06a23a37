package btrfs

import (
	"slices"
	"sort"
)

// delta holds the items of a tree that were changed in memory, in order: what a
// log adds to what was committed. The zero value is empty.
type delta struct {
	runs  [][]change // none empty
	bytes int64      // roughly what it takes
}

// change is an item that was written, or deleted where it has no data.
type change struct {
	k    key
	data []byte // nil: deleted
}

// maxRun is how many changes are moved at most to make room for one.
const maxRun = 512

// deltaPos is a place in a delta.
type deltaPos struct {
	d      *delta
	run, i int
}

func (p deltaPos) valid() bool  { return p.d != nil && p.run >= 0 && p.run < len(p.d.runs) }
func (p deltaPos) key() key     { return p.d.runs[p.run][p.i].k }
func (p deltaPos) data() []byte { return p.d.runs[p.run][p.i].data }

func (p deltaPos) next() deltaPos {
	if p.i++; p.i == len(p.d.runs[p.run]) {
		p.run, p.i = p.run+1, 0
	}
	return p
}

func (p deltaPos) prev() deltaPos {
	if p.i--; p.i < 0 {
		if p.run--; p.run >= 0 {
			p.i = len(p.d.runs[p.run]) - 1
		}
	}
	return p
}

// seek returns the first change that is not before k.
func (d *delta) seek(k key) deltaPos {
	run := sort.Search(len(d.runs), func(i int) bool {
		r := d.runs[i]
		return r[len(r)-1].k.compare(k) >= 0
	})
	if run == len(d.runs) {
		return deltaPos{d, run, 0}
	}
	r := d.runs[run]
	return deltaPos{d, run, sort.Search(len(r), func(i int) bool { return r[i].k.compare(k) >= 0 })}
}

// floor returns the last change that is not behind k.
func (d *delta) floor(k key) deltaPos {
	p := d.seek(k)
	if p.valid() && p.key() == k {
		return p
	}
	return p.prev()
}

// get returns the data of a change, nil for a deletion, and whether there is one.
func (d *delta) get(k key) ([]byte, bool) {
	if p := d.seek(k); p.valid() && p.key() == k {
		return p.data(), true
	}
	return nil, false
}

// set notes a change. It keeps data, which nil stands for a deletion.
func (d *delta) set(k key, data []byte) {
	d.bytes += int64(len(data))
	p := d.seek(k)
	if p.valid() && p.key() == k {
		d.bytes -= int64(len(p.data()))
		d.runs[p.run][p.i].data = data
		return
	}
	d.bytes += 64
	if len(d.runs) == 0 {
		d.runs = [][]change{{{k, data}}}
		return
	}
	if p.run == len(d.runs) {
		p.run--
		p.i = len(d.runs[p.run])
	}
	r := slices.Insert(d.runs[p.run], p.i, change{k, data})
	d.runs[p.run] = r
	if len(r) > maxRun {
		d.runs = slices.Insert(d.runs, p.run+1, slices.Clone(r[maxRun/2:]))
		clear(r[maxRun/2:])
		d.runs[p.run] = r[:maxRun/2]
	}
}
