package tree

import "strings"

// OS says what runs on a machine, as far as its disks tell.
type OS struct {
	Family   string `cbor:"1,keyasint" json:"family,omitempty"` // linux, windows, freebsd; empty: not known
	ID       string `cbor:"2,keyasint" json:"id,omitempty"`     // of os-release: debian
	Name     string `cbor:"3,keyasint" json:"name,omitempty"`   // for people: Debian GNU/Linux 12 (bookworm)
	Version  string `cbor:"4,keyasint" json:"version,omitempty"`
	Hostname string `cbor:"5,keyasint" json:"hostname,omitempty"`
	// Kernels are the versions whose modules are installed.
	Kernels []string `cbor:"6,keyasint" json:"kernels,omitempty"`
	// Notes say what could not be assembled, each in a sentence.
	Notes []string `cbor:"7,keyasint" json:"notes,omitempty"`
	// Edition and Installation are what Windows calls these: Professional, Client.
	Edition      string `cbor:"8,keyasint" json:"edition,omitempty"`
	Installation string `cbor:"9,keyasint" json:"installation,omitempty"`
}

// maxNames is how many kernels are told of, and names that a crypttab has for one volume.
const maxNames = 32

// detect fills in what runs on the machine.
func (s *System) detect() {
	for _, p := range []string{"etc/os-release", "usr/lib/os-release"} {
		text, err := s.config(p)
		if err != nil {
			continue
		}
		release := parseOSRelease(text)
		s.os.ID, s.os.Version = release["ID"], release["VERSION_ID"]
		s.os.Name = orElse(release["PRETTY_NAME"], release["NAME"])
		s.os.Family = "linux"
		if s.os.ID == "freebsd" {
			s.os.Family = "freebsd"
		}
		break
	}
	if s.os.Family == "" {
		s.detectOther()
	}
	if name, err := s.config("etc/hostname"); err == nil {
		s.os.Hostname = clean(name)
	}
	for _, dir := range []string{"lib/modules", "usr/lib/modules"} {
		n, err := s.below(s.root, dir)
		if err != nil {
			continue
		}
		entries, _ := s.ReadDir(n) // as far as they can be read
		for _, e := range entries[:min(len(entries), maxNames)] {
			s.os.Kernels = append(s.os.Kernels, clean(e.Name))
		}
		break
	}
}

// detectOther knows systems without os-release.
func (s *System) detectOther() {
	if dir, ok := s.configDir(s.root); ok {
		s.windows(dir)
		return
	}
	for file, name := range map[string]string{"etc/redhat-release": "redhat", "etc/alpine-release": "alpine", "etc/debian_version": "debian"} {
		if text, err := s.config(file); err == nil {
			s.os.Family, s.os.ID, s.os.Name, s.os.Version = "linux", name, clean(text), clean(text)
			return
		}
	}
}

// parseOSRelease reads the assignments of an os-release(5).
func parseOSRelease(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(k, "#") || len(m) >= 100 {
			continue
		}
		if len(v) >= 2 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0] {
			v = strings.NewReplacer(`\"`, `"`, `\$`, `$`, `\\`, `\`, "\\`", "`").Replace(v[1 : len(v)-1])
		}
		m[k] = clean(v)
	}
	return m
}

// clean makes a line that a guest wrote fit for a terminal.
func clean(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	return s[:min(len(s), 200)]
}
