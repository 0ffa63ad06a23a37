package ntfs

import "sort"

// run says that n clusters of an attribute, from vcn, lie on the volume from lcn;
// -1 stands for a hole.
type run struct{ vcn, n, lcn int64 }

func (r run) end() int64 { return r.vcn + r.n }

// runs decodes the runs of a piece of a non-resident attribute.
func (f *fileSystem) runs(a *attr) ([]run, error) {
	if a.resident {
		return nil, corruptf("decode its runs: it is resident")
	}
	return decodeRuns(a.pairs, a.lowest, a.highest+1, f.clusters)
}

// decodeRuns decodes mapping pairs that stand for the clusters from vcn to end of
// an attribute, on a volume of so many clusters. Each pair is a byte with the
// length of two numbers, then how many clusters, then by how much they are further
// on than those before; without the latter it is a hole.
func decodeRuns(pairs []byte, vcn, end, clusters int64) ([]run, error) {
	var runs []run
	lcn := int64(0)
	for len(pairs) > 0 && pairs[0] != 0 {
		count, delta := int(pairs[0]&15), int(pairs[0]>>4)
		if count > 8 || delta > 8 || 1+count+delta > len(pairs) {
			return nil, corruptf("decode its runs: numbers of %d and %d bytes", count, delta)
		}
		r := run{vcn, signed(pairs[1 : 1+count]), -1}
		if r.n <= 0 || r.n > end-vcn {
			return nil, corruptf("decode its runs: %d clusters from %d to %d", r.n, vcn, end)
		}
		if delta > 0 {
			// The sum may wrap around, to something that is refused as well.
			lcn += signed(pairs[1+count : 1+count+delta])
			if r.lcn = lcn; lcn < 0 || lcn > clusters-r.n {
				return nil, corruptf("decode its runs: %d clusters at %d of %d", r.n, lcn, clusters)
			}
		}
		if last := len(runs) - 1; last >= 0 && continues(runs[last], r) {
			runs[last].n += r.n
		} else {
			runs = append(runs, r)
		}
		vcn += r.n
		pairs = pairs[1+count+delta:]
	}
	if vcn != end {
		return nil, corruptf("decode its runs: they end at cluster %d, not %d", vcn, end)
	}
	return runs, nil
}

// continues says whether b goes on where a ends.
func continues(a, b run) bool {
	if a.lcn < 0 || b.lcn < 0 {
		return a.lcn == b.lcn
	}
	return a.lcn+a.n == b.lcn
}

// signed reads a number in two's complement.
func signed(b []byte) int64 {
	v := int64(0)
	for i := len(b) - 1; i >= 0; i-- {
		if i == len(b)-1 {
			v = int64(int8(b[i]))
			continue
		}
		v = v<<8 | int64(b[i])
	}
	return v
}

// mapped returns the cluster after the last one that runs tell of.
func mapped(runs []run) int64 {
	if len(runs) == 0 {
		return 0
	}
	return runs[len(runs)-1].end()
}

// runAt returns the index of the run that holds a cluster. There has to be one.
func runAt(runs []run, vcn int64) int {
	return sort.Search(len(runs), func(i int) bool { return runs[i].end() > vcn })
}
