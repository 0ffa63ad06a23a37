package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/sendense/sendense/appliance"
)

// contentPiece is how much content is read and sent at a time, in bytes.
const contentPiece = 256 << 10

// errRange says that a file has nothing in the range that was asked for.
var errRange = errors.New("range not satisfiable")

// fileContent sends the content of a file, or one range of it. If the first piece
// cannot be read the answer is a problem. If a later one cannot the transfer breaks
// off, and who asks for the rest is told why.
func (s *server) fileContent(w http.ResponseWriter, r *http.Request) error {
	req, err := filesRequest(r)
	if err != nil {
		return err
	}
	c, err := s.a.OpenFile(r.Context(), req)
	if err != nil {
		return err
	}
	defer c.Close()
	if strings.Contains(r.Header.Get("Range"), ",") {
		r.Header.Del("Range") // several are more than anybody needs: there is all of it
	}
	h := w.Header()
	before := h.Clone()
	// What it is called and what it seems to be are the guest's business: a browser
	// is not to show it.
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(c.Info.Path)}))
	in, out := &contentReader{ctx: r.Context(), c: c}, &contentAnswer{ResponseWriter: w}
	http.ServeContent(out, r, "", time.Time{}, in)
	switch {
	case out.begun && in.err != nil && r.Context().Err() == nil:
		s.log.Error("content broken off", "vm", req.VM, "point", req.Point, "path", req.Path, "bytes", in.at, "err", in.err)
	case out.begun:
	case in.err != nil, out.status == http.StatusRequestedRangeNotSatisfiable:
		clear(h)
		for name, v := range before {
			h[name] = v
		}
		if in.err != nil {
			return in.err
		}
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", c.Size()))
		return &appliance.Error{Code: appliance.CodeInvalid, Err: errRange, Msg: fmt.Sprintf("A file of %d bytes has nothing in the range %q.", c.Size(), r.Header.Get("Range")),
			Hint: "Ask for a range as bytes=FIRST-LAST that begins within the file."}
	case out.status != 0:
		w.WriteHeader(out.status)
	}
	return nil
}

// contentAnswer begins an answer with the first byte of content.
type contentAnswer struct {
	http.ResponseWriter
	status int
	begun  bool
}

// WriteHeader notes a status. What is written with that of an error is not sent.
func (a *contentAnswer) WriteHeader(status int) { a.status = status }

func (a *contentAnswer) Write(p []byte) (int, error) {
	if a.status >= http.StatusBadRequest {
		return len(p), nil
	}
	if !a.begun {
		a.begun = true
		a.ResponseWriter.WriteHeader(a.status)
	}
	return a.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom, in larger pieces than others would choose.
func (a *contentAnswer) ReadFrom(r io.Reader) (int64, error) {
	n := int64(contentPiece)
	if l, ok := r.(*io.LimitedReader); ok {
		n = max(min(n, l.N), 1)
	}
	return io.CopyBuffer(struct{ io.Writer }{a}, struct{ io.Reader }{r}, make([]byte, n))
}

// contentReader reads a file as a stream, and remembers what that ended with.
type contentReader struct {
	ctx context.Context
	c   *appliance.Content
	at  int64
	err error
}

func (c *contentReader) Read(p []byte) (int, error) {
	n := min(int64(len(p)), c.c.Size()-c.at)
	if n <= 0 {
		return 0, io.EOF
	}
	if c.err = c.c.ReadAt(c.ctx, p[:n], c.at); c.err != nil {
		return 0, c.err
	}
	c.at += n
	return int(n), nil
}

func (c *contentReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.at
	case io.SeekEnd:
		offset += c.c.Size()
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	c.at = offset
	return offset, nil
}
