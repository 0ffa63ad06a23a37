package client

import (
	"context"
	"net/url"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
)

func sessionPath(id string) string { return "/v1/sessions/" + url.PathEscape(id) }

// Sessions lists the sessions, oldest first.
func (c *Client) Sessions(ctx context.Context) ([]appliance.Session, error) {
	return get[[]appliance.Session](ctx, c, "GET", "/v1/sessions", nil)
}

// Session returns one session, with its machine as it is now.
func (c *Client) Session(ctx context.Context, id string) (appliance.Session, error) {
	return get[appliance.Session](ctx, c, "GET", sessionPath(id), nil)
}

// Boot begins a session.
func (c *Client) Boot(ctx context.Context, s appliance.SessionSpec) (appliance.Session, error) {
	return get[appliance.Session](ctx, c, "POST", "/v1/sessions", s)
}

// StartSession starts the machine of a session again.
func (c *Client) StartSession(ctx context.Context, id string, r appliance.SessionStart) (appliance.Session, error) {
	return get[appliance.Session](ctx, c, "POST", sessionPath(id)+"/start", r)
}

// ResumeSession has the machine of a session go on.
func (c *Client) ResumeSession(ctx context.Context, id string, r api.SessionResume) (appliance.Session, error) {
	return get[appliance.Session](ctx, c, "POST", sessionPath(id)+"/resume", r)
}

// Migrate starts the job that moves the disks of a session to files.
func (c *Client) Migrate(ctx context.Context, id string, r appliance.MigrateRequest) (appliance.Job, error) {
	return get[appliance.Job](ctx, c, "POST", sessionPath(id)+"/migrate", r)
}

// Keep starts the job that makes a session a point.
func (c *Client) Keep(ctx context.Context, id string, e api.SessionEnd) (appliance.Job, error) {
	return get[appliance.Job](ctx, c, "POST", sessionPath(id)+"/keep", e)
}

// Discard ends a session and throws away what was written in it.
func (c *Client) Discard(ctx context.Context, id string, e api.SessionEnd) error {
	return c.call(ctx, "POST", sessionPath(id)+"/discard", e, nil)
}
