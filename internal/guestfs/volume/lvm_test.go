package volume_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/volume"
	"github.com/sendense/sendense/internal/requires"
)

// lvmDisks are disks that the lvm of this machine writes its metadata to. It
// activates nothing, and sees no other disks.
type lvmDisks struct {
	t     testing.TB
	dir   string
	paths []string // of images
	loops []string // of their devices; "" where there is none
}

// newLVMDisks makes n disks, the first of which have the letters a, b and so on.
func newLVMDisks(t testing.TB, n int) *lvmDisks {
	t.Helper()
	requires.Root(t)
	requires.Tool(t, "lvm", "losetup")
	d := &lvmDisks{t: t, dir: t.TempDir()}
	for i := range n {
		path := filepath.Join(d.dir, "disk-"+string(byte('a'+i)))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 16<<20); err != nil {
			t.Fatal(err)
		}
		d.paths, d.loops = append(d.paths, path), append(d.loops, "")
		d.plug(i)
	}
	t.Cleanup(func() {
		for i := range d.loops {
			d.unplug(i)
		}
	})
	return d
}

// plug attaches a disk to a device.
func (d *lvmDisks) plug(i int) {
	d.t.Helper()
	d.loops[i] = strings.TrimSpace(fstest.Run(d.t, "losetup", "-f", "--show", d.paths[i]))
}

// unplug takes the device of a disk away.
func (d *lvmDisks) unplug(i int) {
	if d.loops[i] != "" {
		fstest.Run(d.t, "losetup", "-d", d.loops[i])
		d.loops[i] = ""
	}
}

// run runs a command of lvm, in which {a} stands for the device of the first disk.
func (d *lvmDisks) run(line string) (string, error) {
	filter := ""
	for i, loop := range d.loops {
		if loop != "" {
			filter += fmt.Sprintf("%q, ", "a|^"+loop+"$|")
			line = strings.ReplaceAll(line, fmt.Sprintf("{%c}", 'a'+i), loop)
		}
	}
	config := fmt.Sprintf(`devices { use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source="none" hints="none" filter=[%s"r|.*|"] }
		global { activation=0 use_lvmpolld=0 locking_dir=%q } activation { monitoring=0 udev_sync=0 } backup { backup=0 archive=0 }`, filter, d.dir+"/lock")
	args := strings.Fields(line)
	cmd := exec.Command("lvm", append([]string{args[0], "--config", config}, args[1:]...)...)
	cmd.Env = append(os.Environ(), "LVM_SYSTEM_DIR="+d.dir+"/etc", "LVM_SUPPRESS_FD_WARNINGS=1")
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("lvm %s: %w\n%s%s", line, err, out.String(), errs.String())
	}
	return out.String(), nil
}

// lvm runs commands of lvm, a line each, and returns what the last one printed.
func (d *lvmDisks) lvm(script string) string {
	d.t.Helper()
	last := ""
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		out, err := d.run(line)
		if err != nil {
			d.t.Fatal(err)
		}
		last = strings.TrimSpace(out)
	}
	return last
}

// keep returns a copy of a disk as it is.
func (d *lvmDisks) keep(i int) string {
	d.t.Helper()
	path := filepath.Join(d.t.TempDir(), fmt.Sprintf("disk-%c", 'a'+i))
	fstest.Run(d.t, "sync", "-f", d.dir)
	if d.loops[i] != "" {
		fstest.Run(d.t, "blockdev", "--flushbufs", d.loops[i])
	}
	fstest.Run(d.t, "cp", "--sparse=always", d.paths[i], path)
	return path
}

// scan scans images.
func scan(t testing.TB, images ...string) []*volume.Node {
	t.Helper()
	return checkScan(t, disks(t, 'a', images...))
}

// names returns the names of a node's children in order.
func names(n *volume.Node) []string {
	var list []string
	for _, c := range n.Children {
		list = append(list, c.Name)
	}
	slices.Sort(list)
	return list
}

// said returns everything that is told of nodes.
func said(nodes []*volume.Node) string {
	var b strings.Builder
	volume.Walk(nodes, func(n *volume.Node) bool {
		for _, s := range append(n.Notes[:len(n.Notes):len(n.Notes)], n.Refusal) {
			if s != "" {
				fmt.Fprintf(&b, "%s: %s\n", n.Path, s)
			}
		}
		return true
	})
	return b.String()
}

func TestMetadataGoesAroundTheRing(t *testing.T) {
	d := newLVMDisks(t, 1)
	d.lvm(`pvcreate -qq --metadatasize 40k --dataalignment 64k {a}
		vgcreate -qq -s 64k vg {a}`)
	wrapped := 0
	for i := range 60 {
		d.lvm(fmt.Sprintf("lvcreate -qq -y -an -Zn -Wn -l 1 -n volume-%d vg", i))
		image := d.keep(0)
		want := strings.Fields(d.lvm("lvs --noheadings -o lv_name vg"))
		slices.Sort(want)
		nodes := scan(t, image)
		vg := find(nodes, "vg")
		if vg == nil || !slices.Equal(names(vg), want) {
			t.Fatalf("after %d changes: got %s, want %v", i, show(nodes), want)
		}
		if text := said(nodes); text != "" {
			t.Fatalf("after %d changes: %s", i, text)
		}
		// Where the text begins, and how long it and the area are.
		h := make([]byte, 64)
		if err := fstest.Open(t, image).ReadAt(h, 4096); err != nil {
			t.Fatal(err)
		}
		if off, n, size := le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint64(h[32:]); off+n > size {
			wrapped++
		}
	}
	if wrapped < 3 {
		t.Errorf("the metadata went around the end of its area %d times, want some", wrapped)
	}
}

func TestNewestMetadataCounts(t *testing.T) {
	d := newLVMDisks(t, 3)
	d.lvm(`vgcreate -qq -s 64k vg {a} {b}
		lvcreate -qq -y -an -Zn -Wn -l 4 -n old vg {a}
		lvcreate -qq -y -an -Zn -Wn -l 4 -n both vg {b}`)
	oldA, oldB := d.keep(0), d.keep(1)
	d.lvm(`lvrename -qq vg old renamed
		lvcreate -qq -y -an -Zn -Wn -l 4 -n new vg {b}
		vgextend -qq vg {c}`)
	a, b, c := d.keep(0), d.keep(1), d.keep(2)
	for _, x := range []struct {
		what   string
		images []string
		want   []string
		says   string
	}{
		{"all of them", []string{a, b, c}, []string{"both", "new", "renamed"}, ""},
		{"an older second", []string{a, oldB, c}, []string{"both", "new", "renamed"}, "vdb: Its metadata of LVM is older than that of its group (version 3, not 6)."},
		{"an older first", []string{oldA, b, c}, []string{"both", "new", "renamed"}, "vda: Its metadata of LVM is older than that of its group (version 3, not 6)."},
		{"all but one older, one missing", []string{oldA, b}, []string{"both", "new", "renamed"}, "vg: It lacks 1 of 3 physical volumes: "},
		{"all older", []string{oldA, oldB, c}, []string{"both", "new", "renamed"}, "older than that of its group"},
		{"before", []string{oldA, oldB}, []string{"both", "old"}, ""},
	} {
		nodes := scan(t, x.images...)
		vg := find(nodes, "vg")
		if vg == nil || !slices.Equal(names(vg), x.want) {
			t.Errorf("%s: got %s, want %v", x.what, show(nodes), x.want)
		}
		if text := said(nodes); !strings.Contains(text, x.says) || x.says == "" && text != "" {
			t.Errorf("%s: got %q, want %q", x.what, text, x.says)
		}
	}
}

func TestMissingPhysicalVolumeIsNamed(t *testing.T) {
	d := newLVMDisks(t, 2)
	d.lvm(`vgcreate -qq -s 64k vg {a} {b}
		lvcreate -qq -y -an -Zn -Wn -l 4 -n here vg {a}
		lvcreate -qq -y -an -Zn -Wn -l 4 -n there vg {b}
		lvcreate -qq -y -an -Zn -Wn -l 8 -i 2 -I 4k -n striped vg`)
	id := d.lvm("pvs --noheadings -o pv_uuid {b}")
	name := fmt.Sprintf("%s (%s)", d.loops[1], id)
	nodes := scan(t, d.keep(0))
	text := said(nodes)
	for _, want := range []string{"vg: It lacks 1 of 2 physical volumes: " + name + ".", "vg/there: It cannot be read: physical volume " + name + " is missing.",
		"vg/striped: It cannot be read: physical volume " + name + " is missing."} {
		if !strings.Contains(text, want) {
			t.Errorf("got %s, want %q", text, want)
		}
	}
	if n := find(nodes, "vg/here"); n == nil || n.Volume == nil || n.Refusal != "" || n.Disk != 0 {
		t.Errorf("a volume that is here: got %s", show(nodes))
	}
	// The other one alone: what it has is there.
	nodes = scan(t, d.keep(1))
	if n := find(nodes, "vg/there"); n == nil || n.Volume == nil {
		t.Errorf("a volume of the second disk alone: got %s", show(nodes))
	}
}

func TestPhysicalVolumeThatCameBack(t *testing.T) {
	d := newLVMDisks(t, 3)
	d.lvm(`vgcreate -qq -s 64k vg {a} {b} {c}
		lvcreate -qq -y -an -Zn -Wn -l 4 -n here vg {a}
		lvcreate -qq -y -an -Zn -Wn -l 4 -n there vg {b}
		lvcreate -qq -y -an -Zn -Wn -l 4 -n more vg {a}`)
	d.unplug(1)
	d.lvm("lvremove -qq -y vg/more")
	d.plug(1)
	if flags := d.lvm("pvs --noheadings -o pv_missing {b}"); flags != "missing" {
		t.Fatalf("the physical volume that came back: got %q, want it to be missing", flags)
	}
	nodes := scan(t, d.keep(0), d.keep(1), d.keep(2))
	text := said(nodes)
	if !strings.Contains(text, "vg/there: It lies on a physical volume that its group counts as missing") || strings.Contains(text, "vg/here: ") {
		t.Errorf("got %s", text)
	}
	// With the others lost, the group does not know that anything is missing.
	d.unplug(1)
	d.lvm("vgreduce -qq --removemissing --force vg")
	d.plug(1)
	nodes = scan(t, d.keep(0), d.keep(1), d.keep(2))
	if text := said(nodes); !strings.Contains(text, "vdb: Its metadata is outdated: the volume group vg does without it.") || find(nodes, "vg/there") != nil {
		t.Errorf("after it was given up: got %s", show(nodes))
	}
}

func TestGroupsAndDisksOfTheSameName(t *testing.T) {
	first, second := newLVMDisks(t, 2), newLVMDisks(t, 1)
	for i, d := range []*lvmDisks{first, second} {
		d.lvm(fmt.Sprintf("vgcreate -qq -s 64k vg {a}\nlvcreate -qq -y -an -Zn -Wn -l %d -n root vg", 4+i))
	}
	nodes := scan(t, first.keep(0), second.keep(0))
	id := strings.ReplaceAll(second.lvm("vgs --noheadings -o vg_uuid vg"), "-", "")[:6]
	a, b := find(nodes, "vg/root"), find(nodes, "vg@"+id+"/root")
	if a == nil || b == nil || a.Size != 4*64<<10 || b.Size != 5*64<<10 || b.Disk != 1 {
		t.Fatalf("two groups of the same name: got %s", show(nodes))
	}
	// A disk and its copy: both say that they are the same.
	first.lvm("vgextend -qq vg {b}\nlvcreate -qq -y -an -Zn -Wn -l 4 -n old vg {a}")
	a1, b1 := first.keep(0), first.keep(1)
	first.lvm("lvrename -qq vg old new")
	a2, b2 := first.keep(0), first.keep(1)
	for _, x := range []struct {
		what   string
		images []string
		want   []string
		says   []string
	}{
		{"the same twice", []string{a2, b2, a2, b2}, []string{"new", "root"}, []string{"vdc: It is a copy of the physical volume vda, which is used instead.", "vdd: It is a copy of"}},
		{"older copies behind", []string{a2, b2, a1, b1}, []string{"new", "root"}, []string{"vdc: It is a copy of the physical volume vda,", "vdd: It is a copy of the physical volume vdb,"}},
		{"older copies in front", []string{a1, b1, a2, b2}, []string{"new", "root"}, []string{"vda: It is an older copy of the physical volume vdc,", "vdb: It is an older copy of the physical volume vdd,"}},
	} {
		nodes := scan(t, x.images...)
		if vg := find(nodes, "vg"); vg == nil || !slices.Equal(names(vg), x.want) {
			t.Errorf("%s: got %s, want %v", x.what, show(nodes), x.want)
		}
		for _, want := range x.says {
			if text := said(nodes); !strings.Contains(text, want) {
				t.Errorf("%s: got %q, want %q", x.what, text, want)
			}
		}
	}
}
