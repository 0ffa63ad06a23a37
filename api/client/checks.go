package client

import (
	"context"
	"fmt"
	"io"
	"net/url"

	"github.com/sendense/sendense/appliance"
)

func checkPath(vm, point string) string {
	return "/v1/vms/" + url.PathEscape(vm) + "/points/" + url.PathEscape(point) + "/check"
}

// Check starts the job that proves that a point boots.
func (c *Client) Check(ctx context.Context, r appliance.CheckRequest) (appliance.Job, error) {
	return get[appliance.Job](ctx, c, "POST", "/v1/checks", r)
}

// LastCheck returns what the last check of a point found.
func (c *Client) LastCheck(ctx context.Context, vm, point string) (appliance.BootCheck, error) {
	return get[appliance.BootCheck](ctx, c, "GET", checkPath(vm, point), nil)
}

// CheckScreen returns the picture of the screen at the end of that check, as PNG.
func (c *Client) CheckScreen(ctx context.Context, vm, point string) ([]byte, error) {
	resp, err := c.send(ctx, "GET", checkPath(vm, point)+"/screen", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, c.unreachable(ctx, fmt.Errorf("read answer: %w", err))
	}
	return b, nil
}
