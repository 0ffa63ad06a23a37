package appliance

import (
	"testing"

	"github.com/sendense/sendense/internal/repository"
)

func TestChoosePoint(t *testing.T) {
	var points []Point
	for _, id := range []repository.PointID{"20251001-120000", "20251002-120000", "20251003-120000"} {
		points = append(points, Point{ID: id})
	}
	for _, c := range []struct {
		name string
		of   []Point
		ref  string
		want repository.PointID
		code Code
	}{
		{"a timestamp is that point", points, "20251002-120000", "20251002-120000", ""},
		{"latest is the newest", points, "latest", "20251003-120000", ""},
		{"latest~0 is the newest too", points, "latest~0", "20251003-120000", ""},
		{"latest~1 is the one before", points, "latest~1", "20251002-120000", ""},
		{"latest~2 is the oldest of three", points, "latest~2", "20251001-120000", ""},
		{"there is nothing before the oldest", points, "latest~3", "", CodeNotFound},
		{"a large count is not wrapped around", points, "latest~999999999", "", CodeNotFound},
		{"a count beyond all bounds makes no sense", points, "latest~99999999999999999999", "", CodeInvalid},
		{"a count may not be negative", points, "latest~-1", "", CodeInvalid},
		{"a count has to be there", points, "latest~", "", CodeInvalid},
		{"no machine without points has a latest", nil, "latest", "", CodeNotFound},
		{"a timestamp that is not there is not found", points, "20251004-120000", "", CodeNotFound},
		{"a day that no month has makes no sense", points, "20251340-120000", "", CodeInvalid},
		{"a part of a timestamp makes no sense", points, "20251002", "", CodeInvalid},
		{"nothing makes no sense", points, "", "", CodeInvalid},
		{"a path makes no sense", points, "../20251002-120000", "", CodeInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := choosePoint(c.of, c.ref)
			var code Code
			if err != nil {
				code = AsError(err).Code
			}
			if p.ID != c.want || code != c.code {
				t.Errorf("point: got %q and %q (%v), want %q and %q", p.ID, code, err, c.want, c.code)
			}
		})
	}
}
