package api

import (
	"bufio"
	"mime"
	"net/http"
	"strconv"

	"github.com/sendense/sendense/appliance"
)

// The trailers that an archive ends with, with the members of an ArchiveSummary.
const (
	TrailerFiles   = "Sendense-Files"
	TrailerBytes   = "Sendense-Bytes"
	TrailerLeftOut = "Sendense-Left-Out"
	TrailerSpecial = "Sendense-Special"
	TrailerChanged = "Sendense-Changed"
	TrailerRemarks = "Sendense-Remarks"
)

var archiveTypes = map[string]string{"": "application/x-tar", "tar": "application/x-tar", "zip": "application/zip"}

// archiveBuffer is how much of an archive is held back, in bytes: what goes wrong
// until then is told as a problem.
const archiveBuffer = 256 << 10

// archiveFiles streams files as an archive. What goes wrong in the middle breaks the
// connection, so that nobody takes a part for the whole.
func (s *server) archiveFiles(w http.ResponseWriter, r *http.Request) error {
	if !r.ProtoAtLeast(1, 1) {
		return &appliance.Error{Code: appliance.CodeInvalid, Msg: "In HTTP/1.0 nobody could tell a part of an archive from the whole.",
			Hint: "Ask with HTTP/1.1, and have proxies do so."}
	}
	one, err := filesRequest(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	req := appliance.ArchiveRequest{VM: one.VM, Point: one.Point, Paths: q["path"], Format: q.Get("format"), Verified: one.Verified, Keyring: one.Keyring}
	x, err := s.a.OpenArchive(r.Context(), req)
	if err != nil {
		return err
	}
	defer x.Close()
	started := &archiveStream{w: w, begin: func() {
		h := w.Header()
		h.Set("Content-Type", archiveTypes[req.Format])
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": x.Name()}))
		for _, name := range []string{TrailerFiles, TrailerBytes, TrailerLeftOut, TrailerSpecial, TrailerChanged, TrailerRemarks} {
			h.Add("Trailer", name)
		}
		w.WriteHeader(http.StatusOK)
	}}
	out := bufio.NewWriterSize(started, archiveBuffer)
	sum, err := x.Write(r.Context(), out)
	if err != nil && !started.begun {
		return err
	}
	if flushErr := out.Flush(); err == nil {
		err = flushErr
	}
	if err != nil {
		if r.Context().Err() == nil {
			s.log.Error("archive broken off", "vm", req.VM, "point", req.Point, "err", err)
		}
		_ = http.NewResponseController(w).Flush() // the connection ends either way
		panic(http.ErrAbortHandler)
	}
	for name, n := range map[string]int64{TrailerFiles: sum.Files, TrailerBytes: sum.Bytes, TrailerLeftOut: sum.LeftOut, TrailerSpecial: sum.Special,
		TrailerChanged: sum.Changed} {
		w.Header().Set(name, strconv.FormatInt(n, 10))
	}
	w.Header().Set(TrailerRemarks, sum.Remarks)
	return nil
}

// archiveStream begins an answer with the first byte of it.
type archiveStream struct {
	w     http.ResponseWriter
	begin func()
	begun bool
}

func (s *archiveStream) Write(p []byte) (int, error) {
	if !s.begun {
		s.begun = true
		s.begin()
	}
	return s.w.Write(p)
}
