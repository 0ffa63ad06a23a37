package volume_test

import (
	_ "embed"
	"fmt"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
	"github.com/sendense/sendense/internal/guestfs/volume"
)

//go:embed testdata/mirrors.sh
var mirrorsScript string

// one returns the only array.
func one(t *testing.T, nodes []*volume.Node) *volume.Node {
	t.Helper()
	var found []*volume.Node
	volume.Walk(nodes, func(n *volume.Node) bool {
		if n.Kind == volume.KindArray {
			found = append(found, n)
		}
		return true
	})
	if len(found) != 1 || found[0].Volume == nil {
		t.Fatalf("want one array that can be read, got %s", show(nodes))
	}
	return found[0]
}

func TestMirrorsWhoseMembersDiffer(t *testing.T) {
	four := []partition{{mib: 9}, {mib: 9}, {mib: 9}, {}}
	var images []string
	for _, name := range []string{"vdc", "vdd", "vde", "vdf"} {
		images = append(images, partitioned(t, name, 40<<20, "gpt", four...))
	}
	for _, name := range []string{"vdg", "vdh"} {
		images = append(images, partitioned(t, name, 64<<20, ""))
	}
	out := fstest.InMachine(t, mirrorsScript, images...)
	all := disks(t, 'c', images...)
	part := func(disk, n int) volume.Disk {
		d := all[disk]
		nodes := volume.Scan([]volume.Disk{d}, volume.Options{})
		return volume.Disk{Index: disk, Key: d.Key, Volume: find(nodes, fmt.Sprintf("%s/p%d", d.Key, n)).Volume}
	}
	const c, d, e, f, g, h = 0, 1, 2, 3, 4, 5
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, "rebuilt "); ok {
			rebuilt(t, []volume.Disk{all[g], all[h]}, strings.TrimSpace(rest))
			continue
		}
		var n int
		var both, onC, onD string
		if _, err := fmt.Sscan(line, &n, &both, &onC, &onD); err != nil {
			t.Fatalf("output %q: %v", out, err)
		}
		for _, x := range []struct {
			what  string
			disks []int
			want  string
			array []string // what is told of the array
			other string   // … of the second member
		}{
			{"both in step", []int{e, f}, both, []string{"2 are here and in step"}, ""},
			{"one that was alone, and the other as it was", []int{c, f}, onC, []string{"1 are here and in step; vdc is read"}, "is not in step with its array"},
			{"the other way round", []int{f, c}, onC, []string{"1 are here and in step; vdc is read"}, ""},
			{"one as it was, and the other that was alone", []int{e, d}, onD, []string{"1 are here and in step; vdd is read"}, ""},
			{"both were alone", []int{c, d}, onD, []string{"vdd is read", "were written without each other"}, ""},
			{"both were alone, turned round", []int{d, c}, onD, []string{"vdd is read", "were written without each other"}, "is not in step with its array"},
			{"one that was alone", []int{c}, onC, []string{"1 are here and in step"}, ""},
			{"one as it was", []int{e}, both, []string{"1 are here and in step", "what is read may be older"}, ""},
			{"a member twice", []int{e, e}, both, []string{"1 are here and in step", "what is read may be older"}, "It is a copy of vde, which is read instead."},
			{"a member and its older copy", []int{c, e}, onC, []string{"1 are here and in step; vdc is read"}, "is not in step with its array"},
		} {
			var list []volume.Disk
			for i, disk := range x.disks {
				p := part(disk, n)
				if i == 1 && x.disks[0] == disk {
					p.Key += "-copy"
				}
				p.Index = i
				list = append(list, p)
			}
			nodes := volume.Scan(list, volume.Options{})
			a := one(t, nodes)
			if got := sum(t, a.Volume, 0, a.Size, list); got != x.want {
				t.Errorf("partition %d, %s: got %s, want %s (both %s, c %s, d %s)", n, x.what, got, x.want, both, onC, onD)
			}
			text := strings.Join(a.Notes, " ")
			for _, want := range x.array {
				if !strings.Contains(text, want) {
					t.Errorf("partition %d, %s: got notes %q, want %q", n, x.what, text, want)
				}
			}
			if strings.Contains(text, "may be older") != strings.Contains(strings.Join(x.array, ""), "may be older") {
				t.Errorf("partition %d, %s: got notes %q", n, x.what, text)
			}
			if len(nodes) > 1 && x.other != "" && !strings.Contains(strings.Join(nodes[1].Notes, " "), x.other) {
				t.Errorf("partition %d, %s: got notes %q of the other, want %q", n, x.what, nodes[1].Notes, x.other)
			}
		}
	}
}

// rebuilt checks a mirror whose second member is being rebuilt.
func rebuilt(t *testing.T, list []volume.Disk, want string) {
	t.Helper()
	for i := range list {
		list[i].Index = i
	}
	nodes := volume.Scan(list, volume.Options{})
	a := one(t, nodes)
	if got := sum(t, a.Volume, 0, a.Size, list); got != want {
		t.Errorf("mirror that is being rebuilt: got %s, want %s", got, want)
	}
	if text := strings.Join(nodes[1].Notes, " "); !strings.Contains(text, "It is being rebuilt") {
		t.Errorf("member that is being rebuilt: got notes %q", text)
	}
	// Without the other there is nothing to read.
	nodes = volume.Scan(list[1:], volume.Options{})
	volume.Walk(nodes, func(n *volume.Node) bool {
		if n.Kind == volume.KindArray && (n.Volume != nil || !strings.Contains(n.Refusal, "no member that is in step")) {
			t.Errorf("the member that is being rebuilt, alone: got %s", show(nodes))
		}
		return true
	})
}
