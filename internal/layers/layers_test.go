// Package layers holds the rule of who may import whom: packages stand on
// levels, imports point to lower levels only, and siblings never meet.
package layers

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/sendense/sendense/"

// levels gives each package's level by the longest matching prefix. A package
// imports only from levels below its own, and from inside its own prefix.
var levels = map[string]int{
	"block":               0,
	"zfs":                 0,
	"tunnel":              0,
	"image":               1,
	"nbdserver":           1,
	"fusemount":           1,
	"internal/guestfs":    1,
	"internal/machine":    1,
	"internal/archive":    1,
	"internal/nbdclient":  1,
	"internal/state":      1,
	"capture":             2,
	"internal/repository": 2,
	"internal/restore":    2,
	"internal/instant":    2,
	"appliance":           3,
	"api":                 4,
	"internal/cli":        4,
	"internal/host":       5,
	"cmd":                 6,
	"internal/demo":       7,
	"internal/bench":      7,
}

// anywhere holds what any package may import: test support and leaf helpers.
var anywhere = []string{"internal/requires", "internal/guest", "block/blocktest", "capture/capturetest"}

func TestImportsPointDown(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module)
		if !strings.HasPrefix(fields[0], module) || isAnywhere(pkg) || pkg == "internal/layers" {
			continue
		}
		prefix, level := levelOf(pkg)
		if prefix == "" {
			t.Errorf("%s: has no level; give it one in this test and in docs/ARCHITECTURE.md", pkg)
			continue
		}
		for _, imp := range fields[1:] {
			dep := strings.TrimPrefix(imp, module)
			if dep == imp || isAnywhere(dep) {
				continue
			}
			depPrefix, depLevel := levelOf(dep)
			if depPrefix != prefix && depLevel >= level {
				t.Errorf("%s (level %d) imports %s (level %d)", pkg, level, dep, depLevel)
			}
		}
	}
}

func levelOf(pkg string) (prefix string, level int) {
	for p, l := range levels {
		if (pkg == p || strings.HasPrefix(pkg, p+"/")) && len(p) > len(prefix) {
			prefix, level = p, l
		}
	}
	return prefix, level
}

func isAnywhere(pkg string) bool {
	for _, a := range anywhere {
		if pkg == a || strings.HasPrefix(pkg, a+"/") {
			return true
		}
	}
	return false
}
