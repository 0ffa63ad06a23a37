package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/sendense/sendense/api"
)

// Keyring is the ID of passphrases that an appliance keeps. They are gone when it is
// closed, or when this process ends.
type Keyring struct {
	ID    string
	lease io.Closer
	stop  context.CancelFunc
}

// AddKeyring gives passphrases to the appliance, and overwrites them. The caller
// closes the keyring.
func (c *Client) AddKeyring(ctx context.Context, passphrases [][]byte) (*Keyring, error) {
	ctx, stop := context.WithCancel(ctx)
	resp, err := c.send(ctx, "POST", "/v1/keyrings", api.KeyringRequest{Passphrases: passphrases})
	for _, p := range passphrases {
		clear(p)
	}
	if err != nil {
		stop()
		return nil, err
	}
	var k api.Keyring
	if err := json.NewDecoder(resp.Body).Decode(&k); err != nil {
		stop()
		resp.Body.Close()
		return nil, c.unreachable(ctx, fmt.Errorf("read keyring: %w", err))
	}
	return &Keyring{ID: k.ID, lease: resp.Body, stop: stop}, nil
}

// Close has the appliance forget the passphrases.
func (k *Keyring) Close() {
	k.stop()
	_ = k.lease.Close() // it was stopped
}
