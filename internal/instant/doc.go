// Package instant is what a machine needs to run from a point: disks that take
// writes over the point and outlive the process that serves them ([Overlay]), and
// the machine itself on a hypervisor ([Hypervisor]).
//
// It knows nothing of repositories, sessions and HTTP.
package instant
