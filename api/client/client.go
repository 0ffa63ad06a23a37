// Package client speaks to an appliance over its REST interface.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/repository"
)

// maxLine bounds one event of a stream, in bytes.
const maxLine = 64 << 20

// Client is the other end of an appliance's REST interface. Its methods may be
// called concurrently. Errors are of type [*appliance.Error].
type Client struct {
	http *http.Client
	at   string // for messages
}

// New returns a client for the appliance at address: "unix:PATH".
func New(address string) (*Client, error) {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok || path == "" {
		return nil, &appliance.Error{Code: appliance.CodeInvalid, Msg: fmt.Sprintf("%q is no address of a control plane.", address),
			Hint: "Give the path of its socket, as unix:/run/sendense/control.sock."}
	}
	var d net.Dialer
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }
	return &Client{at: address, http: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 8}}}, nil
}

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// send makes a request. The caller closes the body of the response, which is one
// of success.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	return c.sendWith(ctx, "", method, path, in)
}

// sendWith is send for a request that names a keyring; "": none.
func (c *Client) sendWith(ctx context.Context, keyring, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if keyring != "" {
		req.Header.Set(api.KeyringHeader, keyring)
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

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	e := &appliance.Error{Code: appliance.CodeUnreachable, Err: err,
		Msg:  fmt.Sprintf("The control plane at %s does not answer: %v.", c.at, err),
		Hint: "Start sendense-control-plane, or leave --control out to work without it."}
	if known := appliance.AsError(err); known.Code == appliance.CodeDenied {
		e.Code, e.Hint = appliance.CodeDenied, "Run as root, or as a member of the group that owns the socket."
	}
	return e
}

func decodeProblem(resp *http.Response) error {
	return readProblem(io.LimitReader(resp.Body, 1<<20), "answered "+resp.Status)
}

// readProblem returns the problem that r holds as an error; if it holds none, one
// that says what the control plane did.
func readProblem(r io.Reader, did string) error {
	var p api.Problem
	if err := json.NewDecoder(r).Decode(&p); err != nil || p.Code == "" {
		return &appliance.Error{Code: appliance.CodeInternal, Msg: fmt.Sprintf("The control plane %s.", did), Hint: "See its log."}
	}
	return p.Err()
}

// call makes a request and decodes the answer into out, unless that is nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	return c.callWith(ctx, "", method, path, in, out)
}

// callWith is call for a request that names a keyring; "": none.
func (c *Client) callWith(ctx context.Context, keyring, method, path string, in, out any) error {
	resp, err := c.sendWith(ctx, keyring, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.unreachable(ctx, fmt.Errorf("read answer: %w", err))
	}
	return nil
}

// get is call for an answer of type T.
func get[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	return getWith[T](ctx, c, "", method, path, in)
}

// getWith is get for a request that names a keyring.
func getWith[T any](ctx context.Context, c *Client, keyring, method, path string, in any) (T, error) {
	var out T
	err := c.callWith(ctx, keyring, method, path, in, &out)
	return out, err
}

func vmPath(vm string) string { return "/v1/vms/" + url.PathEscape(vm) }

// Health tells which appliance answers.
func (c *Client) Health(ctx context.Context) (api.Health, error) {
	return get[api.Health](ctx, c, "GET", "/v1/health", nil)
}

// VMs lists the machines by name. If the records of some are damaged it returns
// the others together with an error of CodeCorrupt.
func (c *Client) VMs(ctx context.Context) ([]appliance.VM, error) {
	resp, err := c.send(ctx, "GET", "/v1/vms", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var vms []appliance.VM
	if err := json.NewDecoder(resp.Body).Decode(&vms); err != nil {
		return nil, c.unreachable(ctx, fmt.Errorf("read answer: %w", err))
	}
	if _, quoted, ok := strings.Cut(resp.Header.Get("Warning"), "199 - "); ok {
		text, err := strconv.Unquote(quoted)
		if err != nil {
			text = quoted
		}
		return vms, &appliance.Error{Code: appliance.CodeCorrupt, Msg: text,
			Hint: "The list is not complete. Find out what is damaged with: sendense-control verify"}
	}
	return vms, nil
}

// VM finds a machine by name or UUID.
func (c *Client) VM(ctx context.Context, vm string) (appliance.VM, error) {
	return get[appliance.VM](ctx, c, "GET", vmPath(vm), nil)
}

// Points lists the points of a machine, oldest first.
func (c *Client) Points(ctx context.Context, vm string) ([]appliance.Point, error) {
	return get[[]appliance.Point](ctx, c, "GET", vmPath(vm)+"/points", nil)
}

// Point finds a point by its timestamp, "latest" or "latest~N".
func (c *Client) Point(ctx context.Context, vm, point string) (api.VMPoint, error) {
	return get[api.VMPoint](ctx, c, "GET", vmPath(vm)+"/points/"+url.PathEscape(point), nil)
}

// Usage tells what the points of a machine take.
func (c *Client) Usage(ctx context.Context, vm string) (repository.Usage, error) {
	return get[repository.Usage](ctx, c, "GET", vmPath(vm)+"/usage", nil)
}

// Delete starts the job that removes a point.
func (c *Client) Delete(ctx context.Context, vm, point string) (appliance.Job, error) {
	return get[appliance.Job](ctx, c, "DELETE", vmPath(vm)+"/points/"+url.PathEscape(point), nil)
}

// Verify starts the job that verifies points.
func (c *Client) Verify(ctx context.Context, r appliance.VerifyRequest) (appliance.Job, error) {
	return get[appliance.Job](ctx, c, "POST", "/v1/verify", r)
}

// Export starts to serve a point over NBD.
func (c *Client) Export(ctx context.Context, s appliance.ExportSpec) (appliance.Export, error) {
	return get[appliance.Export](ctx, c, "POST", "/v1/exports", s)
}

// Exports lists the exports.
func (c *Client) Exports(ctx context.Context) ([]appliance.Export, error) {
	return get[[]appliance.Export](ctx, c, "GET", "/v1/exports", nil)
}

// Unexport ends an export.
func (c *Client) Unexport(ctx context.Context, id string) error {
	return c.call(ctx, "DELETE", "/v1/exports/"+url.PathEscape(id), nil, nil)
}

// Jobs lists the jobs, newest first.
func (c *Client) Jobs(ctx context.Context) ([]appliance.Job, error) {
	return get[[]appliance.Job](ctx, c, "GET", "/v1/jobs", nil)
}

// Job returns one job.
func (c *Client) Job(ctx context.Context, id string) (appliance.Job, error) {
	return get[appliance.Job](ctx, c, "GET", "/v1/jobs/"+url.PathEscape(id), nil)
}

// CancelJob asks a running job to stop.
func (c *Client) CancelJob(ctx context.Context, id string) error {
	return c.call(ctx, "POST", "/v1/jobs/"+url.PathEscape(id)+"/cancel", nil, nil)
}

// WatchJob calls fn, which may be nil, with the job whenever it has changed, and
// returns it when it is final. The job goes on if ctx ends before.
func (c *Client) WatchJob(ctx context.Context, id string, fn func(appliance.Job)) (appliance.Job, error) {
	resp, err := c.send(ctx, "GET", "/v1/jobs/"+url.PathEscape(id)+"/events", nil)
	if err != nil {
		return appliance.Job{}, err
	}
	defer resp.Body.Close()
	var last appliance.Job
	var event string
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		if name, ok := bytes.CutPrefix(lines.Bytes(), []byte("event: ")); ok {
			event = string(name)
		}
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		if event == "error" {
			return last, readProblem(bytes.NewReader(data), "told of an error that cannot be read")
		}
		last = appliance.Job{}
		if err := json.Unmarshal(data, &last); err != nil {
			return last, c.unreachable(ctx, fmt.Errorf("read event: %w", err))
		}
		if fn != nil {
			fn(last)
		}
	}
	if last.State == appliance.JobRunning || last.State == "" {
		err := lines.Err()
		if err == nil {
			err = errors.New("the connection was closed while the job ran")
		}
		return last, c.unreachable(ctx, err)
	}
	return last, nil
}

// endsWithin is how long Wait waits for a job that it has cancelled.
const endsWithin = 30 * time.Second

// Wait follows a job to its end and returns it; a job that did not succeed is
// also an error. If ctx ends the job is cancelled, which may be too late: it then
// is what it became all the same.
func (c *Client) Wait(ctx context.Context, id string, fn func(appliance.Job)) (appliance.Job, error) {
	j, err := c.WatchJob(ctx, id, fn)
	if err != nil && ctx.Err() != nil {
		j, err = c.giveUp(ctx, id)
	}
	if err != nil {
		return j, err
	}
	if j.Error != nil {
		return j, &appliance.Error{Code: j.Error.Code, Msg: j.Error.Msg, Hint: j.Error.Hint}
	}
	return j, nil
}

// giveUp cancels a job, which would go on unless it is told, and returns what became
// of it.
func (c *Client) giveUp(ctx context.Context, id string) (appliance.Job, error) {
	why := context.Cause(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endsWithin)
	defer cancel()
	cancelErr := c.CancelJob(ctx, id) // which fails, too, if it has ended by now
	j, err := c.WatchJob(ctx, id, nil)
	if err != nil {
		return j, errors.Join(fmt.Errorf("%s may still run: %w", id, why), cancelErr, err)
	}
	return j, nil
}
