package archive

import (
	"encoding/binary"
	"strconv"
	"strings"
)

// Extended attributes that hold POSIX ACLs. Libarchive restores them from records
// of their own only.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

var aclRecords = map[string]string{aclAccess: "SCHILY.acl.access", aclDefault: "SCHILY.acl.default"}

// aclTags are the kinds of entries (linux/posix_acl.h), and whether they name
// somebody.
var aclTags = map[uint16]struct {
	text  string
	named bool
}{1: {"user", false}, 2: {"user", true}, 4: {"group", false}, 8: {"group", true}, 16: {"mask", false}, 32: {"other", false}}

// aclText returns the record for an extended attribute that holds an ACL
// (linux/posix_acl_xattr.h), in the text form of acl(5). One that makes no sense
// has none.
func aclText(x Xattr) (record, bool) {
	key, ok := aclRecords[x.Name]
	b := x.Value
	if !ok || len(b) < 4 || len(b)%8 != 4 || binary.LittleEndian.Uint32(b) != 2 {
		return record{}, false
	}
	var text []string
	for b = b[4:]; len(b) > 0; b = b[8:] {
		tag, known := aclTags[binary.LittleEndian.Uint16(b)]
		perm := binary.LittleEndian.Uint16(b[2:])
		if !known || perm > 7 {
			return record{}, false
		}
		who := ""
		if tag.named {
			who = strconv.FormatUint(uint64(binary.LittleEndian.Uint32(b[4:])), 10)
		}
		may := []byte("rwx")
		for i := range may {
			if perm&(4>>i) == 0 {
				may[i] = '-'
			}
		}
		text = append(text, tag.text+":"+who+":"+string(may))
	}
	return record{key, strings.Join(text, ",")}, true
}
