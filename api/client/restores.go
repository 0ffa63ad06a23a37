package client

import (
	"context"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/restore"
)

// PlanRestore says what a restore would do.
func (c *Client) PlanRestore(ctx context.Context, r appliance.RestoreRequest) (restore.Plan, error) {
	return getWith[restore.Plan](ctx, c, r.Keyring, "POST", "/v1/restores/plan", r)
}

// Restore starts a job that writes disks of a point.
func (c *Client) Restore(ctx context.Context, r appliance.RestoreRequest) (appliance.Job, error) {
	return getWith[appliance.Job](ctx, c, r.Keyring, "POST", "/v1/restores", r)
}
