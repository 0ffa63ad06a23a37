package machine

// observe gives a machine what it is watched by, where it has none of it: a screen,
// a serial port, and the channel of the guest agent.
func (c *carrier) observe(d *node) {
	devices := d.child("devices")
	if devices == nil {
		return
	}
	if video := devices.child("video"); video == nil || video.child("model").attr("type") == "none" {
		devices.drop("video")
		video := element("video")
		video.children = []*node{element("model", "type", "vga")}
		devices.children = append(devices.children, video)
		c.note("It has no screen; it gets one, to be looked at.")
	}
	if devices.child("serial") == nil {
		devices.children = append(devices.children, element("serial", "type", "pty"))
		c.note("It has no serial port; it gets one, to be listened to.")
	}
	for _, n := range devices.children {
		if n.name == "channel" && n.child("target").attr("name") == agentChannel {
			return
		}
	}
	channel := element("channel", "type", "unix")
	channel.children = []*node{element("target", "type", "virtio", "name", agentChannel)}
	devices.children = append(devices.children, channel)
	c.note("It has no channel for a guest agent; it gets one, should there be an agent.")
}

const agentChannel = "org.qemu.guest_agent.0"
