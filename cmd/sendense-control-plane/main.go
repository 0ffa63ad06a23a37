// Command sendense-control-plane is the control plane: the daemon that owns a
// repository, receives drafts from capture agents and serves points.
package main

import (
	"context"
	"os"

	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/guestfs"
)

var version = "unknown" // set by the linker

func main() {
	guestfs.Main()
	p := cli.New("sendense-control-plane", "Own a repository of VM backups and serve it", version)
	serve(p)
	os.Exit(p.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
