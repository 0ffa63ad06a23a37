// Package drivers reads, from the file systems of a guest, what hardware the guest
// can run on: which drivers are in its kernels and initial RAM disks, and which
// names and addresses of hardware its configuration has. It judges nothing.
//
// It takes nothing that it reads for granted, and reads bounded amounts of it. It
// runs where the readers of the file systems do.
package drivers

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"unicode"

	"github.com/sendense/sendense/internal/guestfs/tree"
)

// Guest is what the disks of a machine tell.
type Guest struct {
	// RootDisk is the index of the disk with the root of the machine's tree; -1: none
	// was found.
	RootDisk int      `cbor:"1,keyasint"`
	Kernels  []Kernel `cbor:"2,keyasint"`
	// Tool is what makes initial RAM disks there: initramfs-tools, dracut, mkinitcpio;
	// empty if that is not known.
	Tool     string    `cbor:"3,keyasint"`
	Names    []Name    `cbor:"4,keyasint"`
	Links    []Link    `cbor:"5,keyasint"`
	EFI      EFI       `cbor:"6,keyasint"`
	Services []Service `cbor:"7,keyasint"` // of Windows
}

// Kernel is a kernel of Linux, with the known drivers that it has.
type Kernel struct {
	Version   string `cbor:"1,keyasint"`
	Image     string `cbor:"2,keyasint"` // path
	Initramfs string `cbor:"3,keyasint"` // path; empty if there is none
	// Unread says why the initial RAM disk could not be read to its end.
	Unread  string   `cbor:"4,keyasint"`
	BuiltIn []string `cbor:"5,keyasint"`
	Early   []string `cbor:"6,keyasint"` // in the initial RAM disk
	Late    []string `cbor:"7,keyasint"` // on the root, for when that is mounted
	// Modules says that its modules are on the root at all.
	Modules bool `cbor:"8,keyasint"`
}

// Name is a name of a disk that depends on what the disk is behind.
type Name struct {
	File     string `cbor:"1,keyasint"` // where it is written
	Device   string `cbor:"2,keyasint"` // as /dev/vda1
	For      string `cbor:"3,keyasint"` // where it is mounted, or "root", "swap", "resume" and the like
	Optional bool   `cbor:"4,keyasint"` // the guest boots without it
}

// Link is a name or an address of a network interface.
type Link struct {
	File string `cbor:"1,keyasint"`
	MAC  string `cbor:"2,keyasint"` // in lower case; empty if it is a name
	Name string `cbor:"3,keyasint"`
}

// EFI is what a UEFI firmware can start.
type EFI struct {
	Systems []string `cbor:"1,keyasint"` // folders of boot loaders: debian, Microsoft
	// Fallback is the boot loader that is started without any settings.
	Fallback bool `cbor:"2,keyasint"`
}

// Service is a driver of Windows.
type Service struct {
	Name string `cbor:"1,keyasint"` // in lower case
	File bool   `cbor:"2,keyasint"` // its program is there
	// Start is when it starts: 0 at boot, 3 on demand, 4 never; -1: not known.
	Start int `cbor:"3,keyasint"`
}

// Limits of what is looked at.
const (
	maxText    = 8 << 20 // bytes of a text file
	maxEntries = 20_000  // of a folder
	maxKernels = 16
	maxFound   = 200 // names, or links
)

// Clean makes what a guest wrote fit for a terminal, and short.
func (g *Guest) Clean() {
	g.Kernels, g.Names, g.Links = g.Kernels[:min(len(g.Kernels), maxKernels)], g.Names[:min(len(g.Names), maxFound)], g.Links[:min(len(g.Links), maxFound)]
	g.Services, g.EFI.Systems = g.Services[:min(len(g.Services), maxFound)], g.EFI.Systems[:min(len(g.EFI.Systems), maxKernels)]
	texts := []*string{&g.Tool}
	for i := range g.Kernels {
		k := &g.Kernels[i]
		texts = append(texts, &k.Version, &k.Image, &k.Initramfs, &k.Unread)
	}
	for i := range g.Names {
		texts = append(texts, &g.Names[i].File, &g.Names[i].Device, &g.Names[i].For)
	}
	for i := range g.Links {
		texts = append(texts, &g.Links[i].File, &g.Links[i].MAC, &g.Links[i].Name)
	}
	for i := range g.Services {
		texts = append(texts, &g.Services[i].Name)
	}
	for i := range g.EFI.Systems {
		texts = append(texts, &g.EFI.Systems[i])
	}
	for _, t := range texts {
		*t = clean(*t)
	}
}

func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) { // such as what turns text around
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return strings.ToValidUTF8(s[:min(len(s), 300)], "")
}

// inspector looks at one machine.
type inspector struct {
	s *tree.System
	g Guest
}

// Inspect looks at a machine.
func Inspect(s *tree.System) Guest {
	i := &inspector{s: s, g: Guest{RootDisk: -1}}
	for _, v := range s.Volumes() {
		if v.Mounted == "/" {
			i.g.RootDisk = diskOf(v.Path)
		}
	}
	i.efi()
	switch s.OS().Family {
	case "windows":
		i.windows()
	case "linux":
		i.kernels()
		i.tool()
		i.names()
		i.links()
	}
	return i.g
}

// diskOf returns the index of the disk in a path by position.
func diskOf(p string) int {
	first, _, _ := strings.Cut(p, "/")
	n, err := strconv.Atoi(strings.TrimPrefix(first, "disk-"))
	if err != nil {
		return -1
	}
	return n
}

// file finds a regular file.
func (i *inspector) file(p string) (n tree.Node, size int64, err error) {
	n, _, err = i.s.Resolve(p, true)
	if err != nil {
		return n, 0, err
	}
	a, err := i.s.Stat(n)
	if err == nil && !a.Mode.IsRegular() {
		err = fmt.Errorf("%s is no file", p)
	}
	return n, a.Size, err
}

// there reports whether there is something of that name.
func (i *inspector) there(p string) bool {
	_, _, err := i.s.Resolve(p, true)
	return err == nil
}

// text reads a file.
func (i *inspector) text(p string) (string, error) {
	n, size, err := i.file(p)
	if err != nil {
		return "", err
	}
	if size > maxText {
		return "", fmt.Errorf("%s has %d bytes", p, size)
	}
	b, err := io.ReadAll(io.LimitReader(&reader{s: i.s, node: n}, maxText))
	return string(b), err
}

// reader reads a file from its beginning.
type reader struct {
	s    *tree.System
	node tree.Node
	at   int64
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.s.ReadAt(r.node, p, r.at)
	r.at += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		return n, nil
	}
	if n == 0 && err == nil && len(p) > 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// list returns the entries of a folder, none if it cannot be read.
func (i *inspector) list(dir string) []tree.Entry {
	n, _, err := i.s.Resolve(dir, true)
	if err != nil {
		return nil
	}
	entries, _ := i.s.ReadDir(n) // as far as it can be read
	return entries[:min(len(entries), maxEntries)]
}

// glob returns the paths of the files of a folder whose names fit a pattern.
func (i *inspector) glob(pattern string) []string {
	dir, last := path.Split(pattern)
	var found []string
	for _, e := range i.list(dir) {
		if ok, err := path.Match(last, e.Name); ok && err == nil && (e.Type.IsRegular() || e.Type&fs.ModeSymlink != 0 || e.Type == fs.ModeIrregular) {
			found = append(found, dir+e.Name)
		}
	}
	return found
}

// efi looks for boot loaders on the FAT file systems.
func (i *inspector) efi() {
	for _, v := range i.s.Volumes() {
		if v.Type != "vfat" {
			continue
		}
		for _, e := range i.list(v.Path + "/EFI") {
			if name := e.Name; !strings.EqualFold(name, "BOOT") && len(i.g.EFI.Systems) < 20 {
				i.g.EFI.Systems = append(i.g.EFI.Systems, name)
			}
		}
		for _, name := range []string{"BOOTX64.EFI", "BOOTAA64.EFI", "BOOTIA32.EFI"} {
			i.g.EFI.Fallback = i.g.EFI.Fallback || i.there(v.Path+"/EFI/BOOT/"+name)
		}
	}
}
