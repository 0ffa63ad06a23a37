package client

import (
	"context"
	"net/url"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
)

// Mounts lists what is mounted.
func (c *Client) Mounts(ctx context.Context) ([]appliance.MountSpec, error) {
	return get[[]appliance.MountSpec](ctx, c, "GET", "/v1/mounts", nil)
}

// Mount shows every point as a tree at a folder. The mount keeps the keyring with an
// ID for as long as it lasts; "": none.
func (c *Client) Mount(ctx context.Context, r api.MountRequest, keyring string) (appliance.MountSpec, error) {
	return getWith[appliance.MountSpec](ctx, c, keyring, "POST", "/v1/mounts", r)
}

// Unmount takes a mount away.
func (c *Client) Unmount(ctx context.Context, dir string) error {
	return c.call(ctx, "DELETE", "/v1/mounts?"+url.Values{"dir": {dir}}.Encode(), nil, nil)
}
