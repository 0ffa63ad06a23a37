package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/block"
)

// FilePlace is a run of a file's content, and where its bytes lie.
type FilePlace struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	// Path leads to the file that holds the bytes, for processes of the appliance's
	// machine, and only until the answer is given up by who asked; empty: zeroes.
	Path string `json:"path,omitempty"`
	At   int64  `json:"at,omitempty"` // where in that file
	// ID is the FileID of that file. Anything else at its path is not it.
	ID string `json:"id,omitempty"`
}

// FileID returns what tells a file from all others of a machine.
func FileID(st *unix.Stat_t) string { return fmt.Sprintf("%d:%d", st.Dev, st.Ino) }

const (
	// placesAhead is how much of a file is located at a time, in bytes.
	placesAhead = 64 << 20
	// placesInLine is how many places go into a line of an answer.
	placesInLine = 256
)

// filePlaces tells where the content of a file lies, for those who copy it without
// having it sent. Its files stay open until they have gone.
func (s *server) filePlaces(w http.ResponseWriter, r *http.Request) error {
	req, err := filesRequest(r)
	if err != nil {
		return err
	}
	if req.Verified {
		return &appliance.Error{Code: appliance.CodeInvalid, Msg: "What is to be compared with digests has to be sent.", Hint: "Ask for the content."}
	}
	c, err := s.a.OpenFile(r.Context(), req)
	if err != nil {
		return err
	}
	defer c.Close()
	err = s.lines(w, func(yield func(FileLine) error) error { return eachPlaces(r.Context(), c, yield) })
	if err != nil {
		return err
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return nil //nolint:nilerr // who asked has gone
	}
	<-r.Context().Done()
	return nil
}

// eachPlaces calls yield for the places of all content.
func eachPlaces(ctx context.Context, c *appliance.Content, yield func(FileLine) error) error {
	files := map[*os.File]FilePlace{}
	for off := int64(0); off < c.Size(); {
		n := min(placesAhead, c.Size()-off)
		locs, err := c.Locate(ctx, nil, off, n)
		if err != nil {
			return err
		}
		line := FileLine{}
		for _, l := range locs {
			p, err := placeOf(l, files)
			if err != nil {
				return err
			}
			p.Offset, p.Length = off, l.Len
			off += l.Len
			line.Places = append(line.Places, p)
			if len(line.Places) == placesInLine {
				if err := gonePast(ctx, yield(line)); err != nil {
					return err
				}
				line.Places = nil
			}
		}
		if len(line.Places) > 0 {
			if err := gonePast(ctx, yield(line)); err != nil {
				return err
			}
		}
	}
	return nil
}

// placeOf returns the place of a location; files are those that are known by now.
func placeOf(l block.Location, files map[*os.File]FilePlace) (FilePlace, error) {
	switch l.Kind {
	case block.InNothing:
		return FilePlace{}, nil
	case block.InFile:
	default:
		return FilePlace{}, &appliance.Error{Code: appliance.CodeInvalid, Msg: "The content is not stored as it is.", Hint: "Ask for the content."}
	}
	p, ok := files[l.File]
	if !ok {
		raw, err := l.File.SyscallConn()
		if err != nil {
			return p, err
		}
		var st unix.Stat_t
		var statErr error
		err = raw.Control(func(fd uintptr) {
			statErr = unix.Fstat(int(fd), &st)
			p = FilePlace{Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), ID: FileID(&st)}
		})
		if err := errors.Join(err, statErr); err != nil {
			return p, fmt.Errorf("look at %s: %w", l.File.Name(), err)
		}
		files[l.File] = p
	}
	p.At = l.Off
	return p, nil
}
