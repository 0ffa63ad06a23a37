package dir

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/sendense/sendense/internal/repository"
)

// Names of files. Those that begin with a dot are not part of what is stored.
const (
	metadataName  = "metadata.json"
	chainName     = "chain.json"
	draftName     = "draft.json"
	lockName      = ".lock"
	vmLocksName   = ".locks"
	reserveName   = ".reserve"
	imageSuffix   = ".qcow2"
	digestsSuffix = ".digests"
	partialSuffix = ".partial"
	maxNameBytes  = 64
)

// diskDir returns the folder of a disk inside that of its machine.
func diskDir(index int) string { return "disk-" + strconv.Itoa(index) }

// diskDirs matches the folders of disks.
var diskDirs = regexp.MustCompile(`^disk-(0|[1-9][0-9]{0,5})$`)

// sanitize makes a machine's name fit for file names: ASCII letters, digits, dot,
// hyphen and underscore, not beginning with a dot or a hyphen, and not long.
func sanitize(name string) string {
	var b strings.Builder
	gap := false
	for _, r := range name {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
		if !ok || b.Len() == 0 && (r == '.' || r == '-') {
			gap = b.Len() > 0
			continue
		}
		if gap {
			b.WriteByte('-')
			gap = false
		}
		b.WriteRune(r)
		if b.Len() >= maxNameBytes {
			break
		}
	}
	if b.Len() == 0 {
		return "vm"
	}
	return b.String()[:min(b.Len(), maxNameBytes)]
}

// stem returns the name of a disk's files at a point, without suffix, inside the
// machine's folder.
func stem(name string, index int, kind string, point repository.PointID) string {
	mark := ""
	if index > 0 {
		mark = fmt.Sprintf("-disk%d", index)
	}
	return path.Join(diskDir(index), fmt.Sprintf("%s%s-%s-%s", sanitize(name), mark, kind, point))
}

// pointFile is what the name of a file tells.
type pointFile struct {
	kind    string
	point   repository.PointID
	digests bool
	partial bool
}

// parsePointFile takes the base name of a file of a point, or of one in the making,
// apart: {name}-full-{point}.qcow2, -incr-, .digests, .partial. It returns false if
// it is none of ours. Records have thousands of such names.
func parsePointFile(base string) (f pointFile, ok bool) {
	rest, partial := strings.CutSuffix(base, partialSuffix)
	rest, image := strings.CutSuffix(rest, imageSuffix)
	digests := false
	if !image {
		if rest, digests = strings.CutSuffix(rest, digestsSuffix); !digests {
			return f, false
		}
	}
	at := len(rest) - len("yyyymmdd-hhmmss")
	if at < 0 {
		return f, false
	}
	id, err := repository.ParsePointID(rest[at:])
	if err != nil {
		return f, false
	}
	name := rest[:at]
	for _, kind := range []string{repository.Full, repository.Incremental} {
		if stem, ok := strings.CutSuffix(name, "-"+kind+"-"); ok {
			return pointFile{kind, id, digests, partial}, isStem(stem)
		}
	}
	return f, false
}

// isStem reports whether the name of a file may begin so: with a letter, a digit or
// an underscore, of which 95 may follow, and dots and hyphens among them.
func isStem(s string) bool {
	if s == "" || len(s) > 96 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-') {
			return false
		}
	}
	return true
}

// checkStored returns an error unless name, inside a machine's folder, is that of a
// file of the point's disk with an index.
func checkStored(name string, index int, kind string, point repository.PointID, digests bool) error {
	folder, base := path.Split(name)
	f, ok := parsePointFile(base)
	if !ok || folder != diskDir(index)+"/" || f.partial || f.digests != digests || f.kind != kind || f.point != point {
		return fmt.Errorf("file %q is not that of disk %d in %s point %s", name, index, kind, point)
	}
	return nil
}
