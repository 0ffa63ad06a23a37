package machine

import "slices"

// replaceNIC connects an interface to the network that all have, under an address
// of its own; or to none, with the address that the guest knows.
func replaceNIC(c *carrier, n *node) bool {
	mac := n.child("mac").attr("address")
	n.attrs = nil
	n.drop("source", "target", "virtualport", "vlan", "filterref", "bandwidth", "port", "backend", "driver", "ip", "route", "script", "link", "teaming", "actual", "portForward")
	if c.spec.Network == Isolated {
		c.disconnect(n, mac)
		return true
	}
	n.set("type", "network")
	n.drop("mac")
	n.children = append([]*node{element("source", "network", c.spec.Network)}, n.children...)
	return true
}

// disconnect connects an interface to nothing: nothing goes through a link that is
// down, whatever it is connected to. libvirt refuses what such a link cannot do.
func (c *carrier) disconnect(n *node, mac string) {
	n.set("type", "user")
	n.drop("mtu", "coalesce", "portForward")
	n.children = append(n.children, element("link", "state", "down"))
	c.note("Network interface %s is connected to nothing.", mac)
}

// keepNIC keeps an interface as far as the host has what it is connected to.
func (c *carrier) keepNIC(n *node) bool {
	mac := n.child("mac").attr("address")
	switch c.spec.Network {
	case "":
		if !c.connected(n, mac) {
			return false
		}
	case Isolated:
		n.attrs = nil
		n.drop("source", "virtualport", "vlan", "filterref", "bandwidth", "link")
		c.disconnect(n, mac)
	default:
		n.attrs = nil
		n.set("type", "network")
		n.drop("source", "virtualport", "vlan")
		n.children = append([]*node{element("source", "network", c.spec.Network)}, n.children...)
		if !c.connected(n, mac) {
			return false
		}
	}
	if !c.spec.KeepAddresses {
		n.drop("mac")
	}
	n.drop("target", "port", "backend", "ip", "route", "script", "actual")
	n.child("driver").unset("name") // vhost, which not every host has
	if n.drop("teaming") {
		c.note("The network interface %s was paired with another for its migration; it stands alone.", mac)
	}
	if filter := n.child("filterref").attr("filter"); filter != "" && !slices.Contains(c.host.Filters, filter) {
		n.drop("filterref")
		c.note("The filter %s of the network interface %s is left out: this host has none of that name. Its traffic is not filtered.", filter, mac)
	}
	if port := n.child("virtualport"); port != nil && !c.spec.KeepAddresses {
		port.drop("parameters") // they are as unique as the address
	}
	return true
}

// connected reports whether the host has what an interface is connected to. What
// is known there of a running one goes.
func (c *carrier) connected(n *node, mac string) bool {
	source := n.child("source")
	kind, name, has := n.attr("type"), "", false
	switch kind {
	case "user":
		return true
	case "network":
		name = source.attr("network")
		active, known := c.host.Networks[name]
		has = known
		if known && !active && !slices.Contains(c.idle, name) {
			c.idle = append(c.idle, name)
			c.note("The network %s is not active. Before the machine starts: virsh net-start %s.", name, name)
		}
	case "bridge":
		name = source.attr("bridge")
		has = slices.Contains(c.host.Interfaces, name)
	case "direct":
		name = source.attr("dev")
		has = slices.Contains(c.host.Interfaces, name)
	default:
		c.note("Network interface %s is left out: it was of type %s, which belongs to its host.", mac, kind)
		return false
	}
	if !has {
		c.note("Network interface %s is left out: it was connected to %s, and this host has no %s of that name.", mac, name, kindOfLink[kind])
		return false
	}
	source.keep(partsOfLink[kind]...)
	return true
}

// partsOfLink are the attributes of sources that do not belong to a running
// machine.
var partsOfLink = map[string][]string{"network": {"network", "portgroup"}, "bridge": {"bridge"}, "direct": {"dev", "mode"}}

var kindOfLink = map[string]string{"network": "network", "bridge": "bridge", "direct": "network device"}
