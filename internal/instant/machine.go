package instant

import "github.com/sendense/sendense/internal/machine"

// Isolated is the network of a machine whose interfaces are connected to nothing.
const Isolated = machine.Isolated

// Disk is a disk of a machine: an NBD export on a unix socket.
type Disk struct {
	Key    string // the target's name in the definition
	Socket string
	Export string // name
}

// Machine says what machine runs from a point.
type Machine struct {
	Name       string
	UUID       string
	Format     string // of Definition; another than machine.LibvirtXML gives a machine of the usual kind
	Definition string // as it was captured
	Disks      []Disk
	Network    string // name of a libvirt network, or Isolated
	// Observed has it have a screen, a serial port and an agent's channel, and has it
	// wait for Resume before it runs.
	Observed bool
}

// Describe returns the description of the machine for libvirt, accelerated by KVM or
// not.
func (m *Machine) Describe(kvm bool) (machine.Description, error) {
	s := machine.Spec{Captured: machine.Captured{Format: m.Format, Definition: m.Definition}, Name: m.Name, UUID: m.UUID, Network: m.Network,
		Observed: m.Observed}
	for _, d := range m.Disks {
		s.Disks = append(s.Disks, machine.Disk{Key: d.Key, Socket: d.Socket, Export: d.Export})
	}
	return machine.Transient(s, kvm)
}
