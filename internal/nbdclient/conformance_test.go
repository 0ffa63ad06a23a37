package nbdclient_test

import (
	"testing"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/nbdclient"
)

func TestTheDeviceKeepsTheContract(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
	}{
		{"over a server that can do everything", []string{"memory", "5000000"}},
		{"over a server with small requests", []string{"--filter=blocksize-policy", "memory", "5000000",
			"blocksize-minimum=1", "blocksize-preferred=4096", "blocksize-maximum=65536", "blocksize-error-policy=error"}},
		{"over a read-only server", []string{"-r", "memory", "5000000"}},
		{"over a server that can only read and write", []string{"--no-sr", "--filter=nozero", "--filter=noextents", "memory", "5000000"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			blocktest.Run(t, func(t *testing.T) blocktest.Subject {
				uri := nbdkit(t, c.args...)
				d := open(t, uri, nbdclient.Options{})
				return blocktest.Subject{Device: d, Reopen: func() (block.Device, error) {
					if err := d.Close(); err != nil {
						return nil, err
					}
					return open(t, uri, nbdclient.Options{}), nil
				}}
			})
		})
	}
}
