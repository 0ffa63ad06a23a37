package tree

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/volume"
)

// ErrLocked says that a volume is encrypted and was not unlocked.
var ErrLocked = errors.New("locked")

// LockedError says which volumes are encrypted, and why they could not be unlocked.
type LockedError struct{ Text string }

func (e *LockedError) Error() string { return e.Text }

// Unwrap returns ErrLocked.
func (e *LockedError) Unwrap() error { return ErrLocked }

// maxTold is how many volumes are told of in one error.
const maxTold = 5

// NewLockedError returns an error about the volumes of a list that are locked; nil if
// none is.
func NewLockedError(list []Volume) error {
	var told []string
	n := 0
	for _, v := range list {
		// The refusal is a sentence that begins with "It".
		text := v.Path + strings.TrimSuffix(strings.TrimPrefix(v.Refusal, "It"), ".")
		if !v.Locked || slices.Contains(told, text) {
			continue
		}
		if n++; n <= maxTold {
			told = append(told, text)
		}
	}
	switch {
	case n == 0:
		return nil
	case n > maxTold:
		told = append(told, fmt.Sprintf("so are %d more", n-maxTold))
	}
	return &LockedError{strings.Join(told, "; ")}
}

// noRoot says why there is no path that begins with a slash.
func (s *System) noRoot() error {
	if s.lost != nil {
		return fmt.Errorf("the machine's own tree cannot be told: %w", s.lost)
	}
	if err := NewLockedError(s.Volumes()); err != nil {
		return &LockedError{"no operating system was found on what can be read, and " + err.Error()}
	}
	return ErrNoRoot
}

// cryptTable gives the insides of containers the names that the guest's crypttab(5)
// has for them.
func (s *System) cryptTable() {
	text, err := s.config("etc/crypttab")
	if err != nil {
		return
	}
	n := 0
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if n++; n > 1000 {
			return
		}
		at := s.byKernelName(f[1])
		for i := range s.volumes {
			if len(s.volumes[i].Devices) < maxNames && s.isContainer(i, f[1], at) {
				s.volumes[i].Devices = append(slices.Clip(s.volumes[i].Devices), "/dev/mapper/"+f[0])
			}
		}
	}
}

// isContainer says whether a crypttab means the container that a volume is, or is
// the inside of; at is its position, if the crypttab has a name of the kernel's.
func (s *System) isContainer(i int, spec, at string) bool {
	names := s.places[i].container
	return len(names) > 0 && (slices.Contains(names, strings.ToLower(strings.ReplaceAll(spec, `"`, ""))) ||
		at != "" && strings.TrimSuffix(s.volumes[i].Path, "/crypt") == strings.TrimSuffix(at, "/fs"))
}

// containerNames are those by which a crypttab may call a container, in lower case.
func containerNames(n *volume.Node) []string {
	names := []string{"uuid=" + n.UUID, "/dev/disk/by-uuid/" + n.UUID}
	if n.Partition != nil {
		names = append(names, "partuuid="+n.Partition.UUID, "/dev/disk/by-partuuid/"+n.Partition.UUID)
	}
	names = append(names, devices(n)...)
	for i, name := range names {
		names[i] = strings.ToLower(name)
	}
	return names
}
