package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
)

// ReadFile returns the content of a file, and how much that is. Whatever keeps it
// from being read to its end is an error of reading, and says why. The caller closes
// it.
func (c *Client) ReadFile(ctx context.Context, r appliance.FilesRequest) (io.ReadCloser, int64, error) {
	resp, err := c.content(ctx, r, 0)
	if err != nil {
		return nil, 0, err
	}
	return &content{ctx: ctx, c: c, r: r, body: resp.Body, size: resp.ContentLength}, resp.ContentLength, nil
}

// content asks for the content of a file from a byte on.
func (c *Client) content(ctx context.Context, r appliance.FilesRequest, from int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://control"+filesPath(r, "/files/content", nil), nil)
	if err != nil {
		return nil, err
	}
	if r.Keyring != "" {
		req.Header.Set(api.KeyringHeader, r.Keyring)
	}
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, decodeProblem(resp)
	}
	return resp, nil
}

// content is that of a file on its way.
type content struct {
	ctx  context.Context // of who asked for it
	c    *Client
	r    appliance.FilesRequest
	body io.ReadCloser
	at   int64
	size int64
}

func (x *content) Close() error { return x.body.Close() }

func (x *content) Read(p []byte) (int, error) {
	n, err := x.body.Read(p)
	x.at += int64(n)
	if err == nil || errors.Is(err, io.EOF) && x.at == x.size {
		return n, err
	}
	return n, x.why(err)
}

// why finds out why content broke off: who cannot be sent the rest of it is told.
func (x *content) why(err error) error {
	if x.ctx.Err() != nil {
		return context.Cause(x.ctx)
	}
	resp, told := x.c.content(x.ctx, x.r, x.at)
	if told == nil {
		resp.Body.Close()
		told = &appliance.Error{Code: appliance.CodeInterrupted}
	}
	e := *appliance.AsError(told)
	if e.Code == appliance.CodeInterrupted || e.Code == appliance.CodeUnreachable {
		return &appliance.Error{Code: appliance.CodeInterrupted, Msg: fmt.Sprintf("%s broke off behind byte %d of %d: %v.", appliance.Visible(x.r.Path), x.at, x.size, err),
			Hint: "Read it again when the control plane runs."}
	}
	e.Msg = fmt.Sprintf("%s cannot be read behind byte %d of %d: %s", appliance.Visible(x.r.Path), x.at, x.size, e.Msg)
	return &e
}
