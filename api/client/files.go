package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
)

func filesPath(r appliance.FilesRequest, what string, more url.Values) string {
	return vmPath(r.VM) + "/points/" + url.PathEscape(r.Point) + what + "?" + filesQuery(r, more)
}

func filesQuery(r appliance.FilesRequest, more url.Values) string {
	q := url.Values{"path": {r.Path}}
	if r.Verified {
		q.Set("verified", "true")
	}
	for k, v := range more {
		q[k] = v
	}
	return q.Encode()
}

// Contents tells what runs on a machine, and what file systems it has. It does not
// regard the path.
func (c *Client) Contents(ctx context.Context, r appliance.FilesRequest) (appliance.Contents, error) {
	r.Path = ""
	return getWith[appliance.Contents](ctx, c, r.Keyring, "GET", filesPath(r, "/contents", nil), nil)
}

// Stat tells of one file, with its extended attributes.
func (c *Client) Stat(ctx context.Context, r appliance.FilesRequest, follow bool) (appliance.File, error) {
	return getWith[appliance.File](ctx, c, r.Keyring, "GET", filesPath(r, "/files/stat", url.Values{"follow": {strconv.FormatBool(follow)}}), nil)
}

// List calls yield for a place, and then for each entry if it is a directory.
func (c *Client) List(ctx context.Context, r appliance.FilesRequest, yield func(appliance.File) error) error {
	return c.lines(ctx, r.Keyring, filesPath(r, "/files/list", nil), func(l api.FileLine) error { return fileOf(l, yield) })
}

// Find calls yield for each file at or below a place that r chooses.
func (c *Client) Find(ctx context.Context, r appliance.FindRequest, yield func(appliance.File) error) error {
	q := url.Values{"name": {r.Name}, "type": {r.Type}, "fold_case": {strconv.FormatBool(r.FoldCase)}, "xattrs": {strconv.FormatBool(r.Xattrs)}}
	for name, v := range map[string]int64{"min_size": r.MinSize, "after": r.After, "before": r.Before, "depth": int64(r.Shallow)} {
		q.Set(name, strconv.FormatInt(v, 10))
	}
	if r.MaxSize != nil {
		q.Set("max_size", strconv.FormatInt(*r.MaxSize, 10))
	}
	return c.lines(ctx, r.Keyring, filesPath(r.FilesRequest, "/files/find", q), func(l api.FileLine) error { return fileOf(l, yield) })
}

func fileOf(l api.FileLine, yield func(appliance.File) error) error {
	if l.File == nil {
		return fmt.Errorf("a line without a file")
	}
	return yield(*l.File)
}

// Diff calls yield for each path at or below r.Path that differs in a newer point.
func (c *Client) Diff(ctx context.Context, r appliance.FilesRequest, newer string, yield func(appliance.FileChange) error) error {
	return c.lines(ctx, r.Keyring, filesPath(r, "/files/diff", url.Values{"newer": {newer}}), func(l api.FileLine) error {
		if l.Change == nil {
			return fmt.Errorf("a line without a change")
		}
		return yield(*l.Change)
	})
}

// Versions tells what a path was in each point of a machine. It does not regard the
// point.
func (c *Client) Versions(ctx context.Context, r appliance.FilesRequest) ([]appliance.FileVersion, error) {
	return getWith[[]appliance.FileVersion](ctx, c, r.Keyring, "GET", vmPath(r.VM)+"/versions?"+filesQuery(r, nil), nil)
}

// Places calls take for each place of a file's content, in order. What the places
// name can be opened until this returns.
func (c *Client) Places(ctx context.Context, r appliance.FilesRequest, take func(api.FilePlace) error) error {
	return c.lines(ctx, r.Keyring, filesPath(r, "/files/places", nil), func(l api.FileLine) error {
		for _, p := range l.Places {
			if err := take(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// lines calls take for each line of an answer.
func (c *Client) lines(ctx context.Context, keyring, path string, take func(api.FileLine) error) error {
	resp, err := c.sendWith(ctx, keyring, "GET", path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(bufio.NewReaderSize(resp.Body, 256<<10))
	for {
		var l api.FileLine
		if err := d.Decode(&l); err != nil {
			return c.unreachable(ctx, fmt.Errorf("read answer: %w", err))
		}
		switch {
		case l.Done:
			return nil
		case l.Problem != nil:
			return l.Problem.Err()
		}
		if err := take(l); err != nil {
			return err
		}
	}
}
