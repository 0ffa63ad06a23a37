package ntfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/sendense/sendense/internal/guestfs/fsys"
)

// Tags of reparse points ([MS-FSCC] 2.1.2.1).
const (
	tagMountPoint  = 0xa0000003
	tagSymlink     = 0xa000000c
	tagDedup       = 0x80000013
	tagWOF         = 0x80000017
	tagStorageSync = 0x8000001e
	tagAppExecLink = 0x8000001b
	tagLinuxLink   = 0xa000001d
	tagUnixSocket  = 0x80000023
	tagLinuxPipe   = 0x80000024
	tagLinuxChar   = 0x80000025
	tagLinuxBlock  = 0x80000026
	tagOneDrive    = 0x80000021
	tagCloud       = 0x9000001a
	cloudVariants  = 0x0000f000 // bits in which tags of the cloud differ
)

// maxReparse is the most that a reparse point holds, in bytes.
const maxReparse = 16 << 10

// kindOf returns the kind of a file with a tag, which would be kind without.
func kindOf(tag uint32, kind fs.FileMode) fs.FileMode {
	switch tag {
	case tagSymlink, tagMountPoint, tagLinuxLink:
		return fs.ModeSymlink
	case tagUnixSocket:
		return fs.ModeSocket
	case tagLinuxPipe:
		return fs.ModeNamedPipe
	case tagLinuxChar:
		return fs.ModeDevice | fs.ModeCharDevice
	case tagLinuxBlock:
		return fs.ModeDevice
	}
	return kind
}

// tagName says what a reparse point is for; 0 stands for none.
func tagName(tag uint32) string {
	switch tag {
	case 0:
		return "no reparse point"
	case tagMountPoint:
		return "junction"
	case tagSymlink, tagLinuxLink:
		return "symbolic link"
	case tagDedup:
		return "deduplicated"
	case tagWOF:
		return "compressed by WOF"
	case tagStorageSync:
		return "storage sync"
	case tagAppExecLink:
		return "app execution alias"
	}
	if tag&^cloudVariants == tagCloud || tag == tagOneDrive {
		return "cloud file"
	}
	return fmt.Sprintf("reparse point %#x", tag)
}

// holdsContent says whether the content of a file with a tag is in its data, or
// can be made from what is there.
func holdsContent(tag uint32) bool {
	return tag == tagWOF || tag == tagStorageSync || tag == tagAppExecLink || tag == tagOneDrive || tag&^cloudVariants == tagCloud
}

// readReparse reads a reparse point: a tag, the length of the data, two bytes that
// are reserved, and the data.
func (f *fileSystem) readReparse(n *node) error {
	b, err := f.value(n.in, typeReparsePoint, nil, maxReparse)
	if errors.Is(err, errNoAttribute) {
		return nil
	}
	if err != nil || len(b) < 8 || int(binary.LittleEndian.Uint16(b[4:])) > len(b)-8 {
		return errors.Join(corruptf("read its reparse point: %d bytes", len(b)), err)
	}
	n.tag = binary.LittleEndian.Uint32(b)
	n.reparse = b[8 : 8+int(binary.LittleEndian.Uint16(b[4:]))]
	n.kind = kindOf(n.tag, n.kind)
	return nil
}

// Readlink implements fsys.FileSystem. What Windows keeps as a path of its own
// becomes one that leads to the same place from where the link is: backslashes
// turn to slashes, and a drive whose path exists on this volume is taken for it.
// What is elsewhere starts with a slash and the name of the drive or volume, or
// two slashes and that of the server.
func (f *fileSystem) Readlink(id fsys.ID) (string, error) {
	n, err := f.node(id)
	if err != nil {
		return "", err
	}
	if n.kind != fs.ModeSymlink {
		return "", fmt.Errorf("read MFT record %d as a link: it is none: %w", n.in.base.number, fs.ErrInvalid)
	}
	target, err := f.linkTarget(n)
	if err != nil {
		return "", fmt.Errorf("read the link of MFT record %d: %w", n.in.base.number, err)
	}
	return target, nil
}

// linkTarget returns where a link leads.
func (f *fileSystem) linkTarget(n *node) (string, error) {
	switch n.tag {
	case 0:
		return n.target, nil
	case tagLinuxLink:
		// A version, and UTF-8.
		if len(n.reparse) <= 4 || binary.LittleEndian.Uint32(n.reparse) != 2 {
			return "", corruptf("read its target: %d bytes", len(n.reparse))
		}
		return checkTarget(string(n.reparse[4:]))
	}
	path, relative, err := parseLink(n.tag, n.reparse)
	if err != nil {
		return "", err
	}
	target, err := f.translate(n.in, path, relative)
	if err != nil {
		return "", err
	}
	return checkTarget(target)
}

func checkTarget(target string) (string, error) {
	if target == "" || strings.Contains(target, "\x00") {
		return "", corruptf("read its target: it is %q", target)
	}
	return target, nil
}

// parseLink returns the path that a symbolic link or a junction holds ([MS-FSCC]
// 2.1.2.4, 2.1.2.5): two names, given by offset and length; the first is meant for
// the system, the second for people. Links have flags besides.
func parseLink(tag uint32, b []byte) (path string, relative bool, err error) {
	head := 8
	if tag == tagSymlink {
		head = 12
	}
	if len(b) < head {
		return "", false, corruptf("read its target: %d bytes", len(b))
	}
	off, n := int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))
	if n == 0 || n%2 != 0 || off+n > len(b)-head {
		return "", false, corruptf("read its target: %d bytes at %d of %d", n, off, len(b)-head)
	}
	relative = tag == tagSymlink && binary.LittleEndian.Uint32(b[8:])&1 != 0
	return decodeName(b[head+off : head+off+n]), relative, nil
}

// translate makes the path of a link one of slashes.
func (f *fileSystem) translate(in *inode, path string, relative bool) (string, error) {
	slashed := strings.ReplaceAll(path, `\`, "/")
	if relative {
		if !strings.HasPrefix(slashed, "/") {
			return slashed, nil
		}
		return f.fromLink(in, strings.Split(slashed, "/"))
	}
	rest := strings.TrimPrefix(slashed, "/??/")
	if share, ok := strings.CutPrefix(rest, "UNC/"); ok && rest != slashed {
		return "//" + share, nil
	}
	if len(rest) < 2 || rest[1] != ':' {
		return "/" + strings.TrimPrefix(rest, "/"), nil
	}
	steps := strings.Split(rest[2:], "/")
	if !f.exists(steps) {
		return "/" + rest, nil
	}
	return f.fromLink(in, steps)
}

// exists says whether a path from the root leads somewhere on this volume, as far
// as can be read. Behind another link it is not followed.
func (f *fileSystem) exists(steps []string) bool {
	at := f.root
	for _, step := range steps {
		if step == "" {
			continue
		}
		n, err := f.node(at)
		if err != nil || n.kind == fs.ModeSymlink {
			return err == nil
		}
		if at, err = f.Lookup(at, step); err != nil {
			return false
		}
	}
	return true
}

// fromLink makes a path from the root one from the directory that a link is in.
func (f *fileSystem) fromLink(in *inode, steps []string) (string, error) {
	depth, err := f.depth(in)
	if err != nil {
		return "", err
	}
	path := make([]string, depth, depth+len(steps))
	for i := range path {
		path[i] = ".."
	}
	for _, step := range steps {
		if step != "" {
			path = append(path, step)
		}
	}
	if len(path) == 0 {
		return ".", nil
	}
	return strings.Join(path, "/"), nil
}

// maxPath is how many directories a path is followed through.
const maxPath = 1 << 12

// depth returns how many directories a file is below the root, by its first name.
func (f *fileSystem) depth(in *inode) (int, error) {
	for depth := range maxPath {
		parent, err := f.parent(in)
		if err != nil {
			return 0, err
		}
		if numberOf(parent) == recordRoot {
			return depth, nil
		}
		if in, err = f.inode(parent); err != nil {
			return 0, err
		}
	}
	return 0, corruptf("find the way to the root: it leads in a circle, or through more than %d directories", maxPath)
}

// parent returns the directory that the first long name of a file is in.
func (f *fileSystem) parent(in *inode) (fsys.ID, error) {
	names, err := f.attributes(in, typeFileName)
	if err != nil {
		return 0, err
	}
	for _, a := range names {
		key, err := fileName(a.value, len(a.value))
		if err != nil {
			return 0, err
		}
		if key[0x41] != spaceDOS {
			return fsys.ID(binary.LittleEndian.Uint64(key)), nil
		}
	}
	return 0, corruptf("find the directory of MFT record %d: it has no name", in.base.number)
}
