package archive

import (
	"context"
	"errors"
	"strconv"
)

// run is a part of a file.
type run struct{ from, to int64 }

const (
	// minHole is what a hole has to have for it to be left out, and the unit in which
	// that is done, in bytes. GNU tar reads each part from a block of its own: all but
	// the last have to be whole blocks.
	minHole = 4 << 10
	// maxRuns is how many parts of a file are told apart. In one with more, the
	// smallest holes are filled.
	maxRuns = 1 << 16
)

var errRuns = errors.New("the parts of the file do not follow each other")

// dataRuns returns the parts of a file that are not holes, in units.
func dataRuns(ctx context.Context, c Content, size int64) ([]run, error) {
	var runs []run
	hole := int64(minHole)
	for off := int64(0); off < size; {
		from, to, err := c.Data(ctx, off)
		if err != nil {
			return nil, err
		}
		if from < off || to < from || to > size || from == to && to != size {
			return nil, errRuns
		}
		off = to
		if from == to {
			break
		}
		runs = appendRun(runs, run{from &^ (minHole - 1), min((to+minHole-1)&^(minHole-1), size)}, hole)
		for len(runs) > maxRuns {
			hole *= 2
			joined := runs[:0]
			for _, r := range runs {
				joined = appendRun(joined, r, hole)
			}
			runs = joined
		}
	}
	if n := len(runs); n > 0 && size-runs[n-1].to < hole {
		runs[n-1].to = size
	}
	return runs, nil
}

// appendRun adds a run behind others, or to the last one if what is between is
// less than a hole.
func appendRun(runs []run, r run, hole int64) []run {
	end := int64(0)
	if n := len(runs); n > 0 {
		end = runs[n-1].to
	}
	switch n := len(runs); {
	case r.from-end >= hole:
		return append(runs, r)
	case n > 0:
		runs[n-1].to = max(runs[n-1].to, r.to)
		return runs
	}
	return append(runs, run{0, r.to})
}

// sparseMap writes where the parts of a file belong, as GNU's format 1.0 has it:
// how many they are, then offset and length of each, in lines. A hole at the end is
// told by a part of no length.
func sparseMap(runs []run, size int64) []byte {
	if n := len(runs); n == 0 || runs[n-1].to < size {
		runs = append(runs[:n:n], run{size, size})
	}
	b := append(strconv.AppendInt(nil, int64(len(runs)), 10), '\n')
	for _, r := range runs {
		b = append(strconv.AppendInt(b, r.from, 10), '\n')
		b = append(strconv.AppendInt(b, r.to-r.from, 10), '\n')
	}
	for len(b)%blockBytes != 0 {
		b = append(b, 0)
	}
	return b
}
