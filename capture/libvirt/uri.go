package libvirt

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// defaultSockets are where the daemons of a system listen: the one for
// everything, and the modular one for QEMU.
var defaultSockets = []string{"/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"}

// socketOf returns the path of the socket that a libvirt URI means: qemu:///system,
// qemu+unix:///system?socket=PATH, or a path.
func socketOf(uri string) (string, error) {
	if strings.HasPrefix(uri, "/") {
		return uri, nil
	}
	if uri == "" {
		uri = "qemu:///system"
	}
	u, err := url.Parse(uri)
	if err != nil {
		return "", fmt.Errorf("libvirt URI: %w", err)
	}
	driver, transport, _ := strings.Cut(u.Scheme, "+")
	if driver != "qemu" {
		return "", fmt.Errorf("libvirt URI %q: only QEMU machines can be captured; use qemu:///system", uri)
	}
	if u.Host != "" || transport != "" && transport != "unix" {
		return "", fmt.Errorf("libvirt URI %q: the disks of a remote host cannot be read over libvirt's own connection; "+
			"run the capture agent on that host, with qemu:///system", uri)
	}
	if u.Path != "/system" {
		return "", fmt.Errorf("libvirt URI %q: only the system's machines can be captured; use qemu:///system, "+
			"or qemu+unix:///system?socket=PATH for a daemon that listens elsewhere", uri)
	}
	if s := u.Query().Get("socket"); s != "" {
		return s, nil
	}
	for _, s := range defaultSockets {
		if _, err := os.Stat(s); !errors.Is(err, os.ErrNotExist) {
			return s, nil
		}
	}
	return defaultSockets[0], nil
}
