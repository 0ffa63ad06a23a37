package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
)

// Archive writes files of a point to w as an archive. After an error, what was
// written is none.
func (c *Client) Archive(ctx context.Context, r appliance.ArchiveRequest, w io.Writer) (appliance.ArchiveSummary, error) {
	var sum appliance.ArchiveSummary
	q := url.Values{"path": r.Paths}
	if r.Format != "" {
		q.Set("format", r.Format)
	}
	if len(r.Paths) == 0 {
		q.Set("path", "")
	}
	one := appliance.FilesRequest{VM: r.VM, Point: r.Point, Verified: r.Verified}
	resp, err := c.sendWith(ctx, r.Keyring, "GET", filesPath(one, "/files/archive", q), nil)
	if err != nil {
		return sum, err
	}
	defer resp.Body.Close()
	body := &source{r: resp.Body}
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, body, make([]byte, 1<<20))
	if err != nil && body.err == nil {
		return sum, err // of writing
	}
	if err == nil {
		sum, err = summary(resp.Trailer)
	}
	if err != nil {
		if ctx.Err() != nil {
			return sum, context.Cause(ctx)
		}
		return sum, &appliance.Error{Code: appliance.CodeInterrupted, Err: err,
			Msg:  fmt.Sprintf("The archive broke off behind %d bytes: what was written is none.", n),
			Hint: fmt.Sprintf("Find out whether the point is sound with: sendense-control verify %s --point %s", r.VM, r.Point)}
	}
	return sum, nil
}

// source remembers whether it was reading that failed.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// summary reads what an archive ends with. It is there if all of the archive is.
func summary(t http.Header) (sum appliance.ArchiveSummary, err error) {
	for name, to := range map[string]*int64{api.TrailerFiles: &sum.Files, api.TrailerBytes: &sum.Bytes, api.TrailerLeftOut: &sum.LeftOut,
		api.TrailerSpecial: &sum.Special, api.TrailerChanged: &sum.Changed} {
		if *to, err = strconv.ParseInt(t.Get(name), 10, 64); err != nil {
			return sum, fmt.Errorf("trailer %s: %w", name, err)
		}
	}
	sum.Remarks = t.Get(api.TrailerRemarks)
	return sum, nil
}
