// Command sendense-capture is the Capture Agent: it reads the disks of virtual
// machines at their source and pushes what changed into a control plane.
package main

import (
	"context"
	"os"

	"github.com/sendense/sendense/internal/cli"
)

var version = "unknown" // set by the linker

func main() {
	p := cli.New("sendense-capture", "Capture VM disks into points", version)
	p.Root.AddCommand(backupCommand(p), sourcesCommand(p), benchCommand(p), thawGuardCommand())
	os.Exit(p.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
