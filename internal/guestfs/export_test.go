package guestfs

// PID returns the process ID of the confined process.
func (g *Guest) PID() int { return g.c.process.PID() }
