package tree

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/hive"
)

// systemRoots are the folders in which Windows is installed: WINNT up to 2000.
var systemRoots = []string{"Windows", "WINNT"}

// configDir returns the folder of the registry's hives.
func (s *System) configDir(root Node) (string, bool) {
	for _, dir := range systemRoots {
		dir = path.Join(dir, "System32", "config")
		if _, err := s.below(root, dir+"/SOFTWARE"); err == nil {
			return dir, true
		}
	}
	return "", false
}

// windows learns from the registry what runs on the machine, and how its drives are
// called.
func (s *System) windows(dir string) {
	s.os.Family, s.os.ID, s.os.Name = "windows", "windows", "Windows"
	if h, err := s.hiveAt(dir + "/SOFTWARE"); err != nil {
		s.note("Its registry cannot be read: %v.", err)
	} else if err := s.windowsVersion(h); err != nil {
		s.note("Its registry does not tell its version: %v.", err)
	}
	h, err := s.hiveAt(dir + "/SYSTEM")
	if err == nil {
		var name hive.Value
		if name, err = registryValue(h, `CurrentControlSet\Control\ComputerName\ComputerName`, "ComputerName"); err == nil {
			s.os.Hostname = clean(name.String())
		}
	}
	if err != nil {
		s.note("Its registry does not tell its name: %v.", err)
	}
	if h != nil {
		s.driveLetters(h)
	}
}

// note says something once of what could not be assembled.
func (s *System) note(format string, args ...any) {
	if note := fmt.Sprintf(format, args...); len(s.os.Notes) < maxNotes && !slices.Contains(s.os.Notes, note) {
		s.os.Notes = append(s.os.Notes, note)
	}
}

// currentVersion is the key that says what is installed.
const currentVersion = `Microsoft\Windows NT\CurrentVersion`

// firstBuildOf11 is from which build on what calls itself Windows 10 is Windows 11.
const firstBuildOf11 = 22000

// windowsVersion fills in what Windows says of itself.
func (s *System) windowsVersion(h *hive.Hive) error {
	k, err := h.Key(currentVersion)
	if err != nil {
		return err
	}
	text := func(names ...string) string {
		for _, name := range names {
			if v, err := k.Value(name); err == nil && v.String() != "" {
				return clean(v.String())
			}
		}
		return ""
	}
	number := func(name string) (uint64, bool) {
		v, err := k.Value(name)
		if err != nil {
			return 0, false
		}
		return v.Uint()
	}
	name := orElse(text("ProductName"), "Windows")
	build := text("CurrentBuildNumber", "CurrentBuild")
	if n, err := strconv.Atoi(build); err == nil && n >= firstBuildOf11 {
		if rest, ok := strings.CutPrefix(name, "Windows 10"); ok {
			name = "Windows 11" + rest
		}
	}
	s.os.Name = strings.TrimSpace(name + " " + text("DisplayVersion", "ReleaseId", "CSDVersion"))
	s.os.Edition, s.os.Installation = text("EditionID"), text("InstallationType")

	version := text("CurrentVersion")
	if major, ok := number("CurrentMajorVersionNumber"); ok { // from Windows 10 on; the text stays at 6.3
		minor, _ := number("CurrentMinorVersionNumber")
		version = fmt.Sprintf("%d.%d", major, minor)
	}
	for _, part := range []string{build, func() string {
		if n, ok := number("UBR"); ok {
			return fmt.Sprint(n)
		}
		return ""
	}()} {
		if part != "" {
			version = strings.TrimPrefix(version+"."+part, ".")
		}
	}
	s.os.Version = version
	return nil
}
