// Command sendense-control is the control plane's command line: what there is in a
// repository, what to do with it, and tools for images and NBD exports.
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
	p := cli.New("sendense-control", "Look after VM backups: points, exports, images", version)
	p.Root.AddCommand(serviceCommands(p)...)
	p.Root.AddCommand(fileCommands(p)...)
	p.Root.AddCommand(imageCommands(p), nbdCommands(p))
	os.Exit(p.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
