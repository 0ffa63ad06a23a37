package libvirt

import (
	"strings"
	"testing"
)

func TestDisksThatAreNoPartOfABackup(t *testing.T) {
	for _, c := range []struct {
		name, disk string
		note       string // in the note on the disk, "" for none
		in         bool
	}{
		{"a file", `<disk type='file' device='disk'><driver type='qcow2'/><source file='/a'/>`, "", true},
		{"a file without the attributes that have defaults", `<disk type='file'><source file='/a'/>`, "", true},
		{"a block device", `<disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/a'/>`, "", true},
		{"a network disk", `<disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/i'/>`, "", true},
		{"a volume of a pool", `<disk type='volume' device='disk'><driver type='qcow2'/><source pool='p' volume='v'/>`, "", true},
		{"a CD", `<disk type='file' device='cdrom'><source file='/a.iso'/><readonly/>`, "it is a cdrom", false},
		{"an empty drive", `<disk type='file' device='cdrom'><readonly/>`, "", false},
		{"a floppy", `<disk type='file' device='floppy'><source file='/a'/>`, "it is a floppy", false},
		{"a LUN", `<disk type='block' device='lun'><source dev='/dev/sg0'/>`, "it is a lun", false},
		{"a read-only disk", `<disk type='file' device='disk'><source file='/a'/><readonly/>`, "it is read-only", false},
		{"a shared disk", `<disk type='file' device='disk'><source file='/a'/><shareable/>`, "it is shared", false},
		{"a transient disk", `<disk type='file' device='disk'><source file='/a'/><transient/>`, "it is transient", false},
		{"a vhost-user disk", `<disk type='vhostuser' device='disk'><source type='unix' path='/s'/>`, "type vhostuser", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := parseDomain("<domain><devices>" + c.disk + "<target dev='vda'/></disk></devices></domain>")
			if err != nil {
				t.Fatal(err)
			}
			in, notes := d.disks()
			if (len(in) == 1) != c.in {
				t.Errorf("part of the backup: got %v, want %v", len(in) == 1, c.in)
			}
			note := strings.Join(notes, " ")
			if (note == "") != (c.note == "") || !strings.Contains(note, c.note) {
				t.Errorf("note: got %q, want %q in it", note, c.note)
			}
		})
	}
}

func TestAgentAndOwnerAreReadFromTheDescription(t *testing.T) {
	const channel = `<devices><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'%s/></channel></devices>`
	for _, c := range []struct {
		name, description string
		why               string // in the reason why the agent cannot be asked
		uid, gid          int
		owned             bool
	}{
		{"an agent that is connected", strings.Replace(channel, "%s", " state='connected'", 1), "", 0, 0, false},
		{"a channel of unknown state", strings.Replace(channel, "%s", "", 1), "", 0, 0, false},
		{"an agent that does not run", strings.Replace(channel, "%s", " state='disconnected'", 1), "install and start qemu-guest-agent", 0, 0, false},
		{"no channel", "", "no channel for the guest agent", 0, 0, false},
		{"a QEMU with a user of its own", "<seclabel type='dynamic' model='dac'><label>+64055:+108</label></seclabel>", "no channel", 64055, 108, true},
		{"another security model", "<seclabel type='dynamic' model='apparmor'><label>libvirt-x</label></seclabel>", "no channel", 0, 0, false},
		{"a user by name", "<seclabel type='static' model='dac'><label>qemu:qemu</label></seclabel>", "no channel", 0, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := parseDomain("<domain>" + c.description + "</domain>")
			if err != nil {
				t.Fatal(err)
			}
			if why := d.agent(); (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
				t.Errorf("agent: got %q, want %q in it", why, c.why)
			}
			if uid, gid, ok := d.owner(); uid != c.uid || gid != c.gid || ok != c.owned {
				t.Errorf("owner: got %d, %d, %v, want %d, %d, %v", uid, gid, ok, c.uid, c.gid, c.owned)
			}
		})
	}
}
