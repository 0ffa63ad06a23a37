package libvirt

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
)

// Timeouts of the guest agent. They are given with each command, which is why
// the commands are sent as such and not by libvirt's own calls for freezing:
// those wait for ever.
const (
	pingTimeout = 3 * time.Second
	thawTimeout = 5 * time.Second
)

// States of guest-fsfreeze-status.
const (
	frozen = "frozen"
	thawed = "thawed"
)

// guestAgent talks to the agent in a machine.
type guestAgent struct {
	conn *libvirt.Libvirt
	dom  libvirt.Domain
}

// call sends a command without arguments and decodes what it returns.
func (g guestAgent) call(command string, timeout time.Duration, result any) error {
	seconds := max(1, int32(timeout.Round(time.Second)/time.Second))
	reply, err := g.conn.QEMUDomainAgentCommand(g.dom, fmt.Sprintf(`{"execute":%q}`, command), seconds, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	r := struct{ Return any }{result}
	if err := json.Unmarshal([]byte(strings.Join(reply, "")), &r); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// status returns frozen or thawed.
func (g guestAgent) status() (string, error) {
	var s string
	err := g.call("guest-fsfreeze-status", pingTimeout, &s)
	return s, err
}

// freeze returns how many file systems it froze.
func (g guestAgent) freeze(timeout time.Duration) (int, error) {
	var n int
	err := g.call("guest-fsfreeze-freeze", timeout, &n)
	return n, err
}

// thaw returns how many file systems it thawed: 0 if none was frozen.
func (g guestAgent) thaw() (int, error) {
	var n int
	err := g.call("guest-fsfreeze-thaw", thawTimeout, &n)
	return n, err
}

// thawUntil thaws until the agent says that nothing is frozen, or ctx ends. The
// agent may still be at freezing when the first command reaches it.
func (g guestAgent) thawUntil(ctx context.Context) (n int, err error) {
	for {
		var now int
		now, err = g.thaw()
		n += now
		if err == nil {
			var state string
			if state, err = g.status(); err == nil && state == thawed {
				return n, nil
			}
		}
		select {
		case <-ctx.Done():
			return n, fmt.Errorf("thaw the guest: %w: %w", ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
