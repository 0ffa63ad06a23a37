package repository

import "fmt"

// VerifyOptions choose what is verified.
type VerifyOptions struct {
	VM      VMID         // default: all machines
	Points  []PointID    // of VM, with all they build on; default: all
	Workers int          // that read and hash; default: one for each processor
	Report  func(Status) // told from time to time how far it is; from one goroutine at a time
}

// Status says how far a verification is.
type Status struct {
	File  string // at hand
	Done  int64  // bytes read, as the guest sees them
	Total int64  // bytes to read
}

// Report is the outcome of a verification.
type Report struct {
	VMs      int       `json:"vms"`
	Points   int       `json:"points"`
	Files    int       `json:"files"`    // layers, each read once
	Clusters int64     `json:"clusters"` // of data, read and compared
	Bytes    int64     `json:"bytes"`    // of data, as the guest sees them
	Problems []Problem `json:"problems"`
	// Omitted is how many more problems there are: of each file the first hundred
	// are told.
	Omitted int64 `json:"omitted,omitempty"`
	// Notes are things that a user should know and that put no data at risk: files
	// that belong to no point, a removal that is not finished, leaked clusters.
	Notes []string `json:"notes,omitempty"`
}

// OK reports whether no damage was found.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// Problem is one piece of damage.
type Problem struct {
	VM      VMID    `json:"vm"`
	Name    string  `json:"name"`            // of the machine, "" if unknown
	Point   PointID `json:"point,omitempty"` // that holds the damaged file
	Disk    string  `json:"disk,omitempty"`  // key
	File    string  `json:"file"`            // inside the machine's folder
	Cluster int64   `json:"cluster"`         // number; -1 if no cluster in particular
	Off     int64   `json:"offset"`          // of the cluster, guest bytes; -1
	What    string  `json:"what"`            // a lower-case clause
	// Affected are the points that read wrong for it: the one that holds it, and
	// those that build on it as far as they do not replace the cluster.
	Affected []PointID `json:"affected"`
	Hint     string    `json:"hint"` // what to do, a sentence
}

// String returns the problem as a line for people.
func (p Problem) String() string {
	s := fmt.Sprintf("VM %s", p.VM)
	if p.Name != "" {
		s += fmt.Sprintf(" (%s)", p.Name)
	}
	if p.Point != "" {
		s += fmt.Sprintf(", point %s", p.Point)
	}
	if p.Disk != "" {
		s += fmt.Sprintf(", disk %s", p.Disk)
	}
	if p.Cluster >= 0 {
		s += fmt.Sprintf(", cluster %d (offset %d)", p.Cluster, p.Off)
	}
	return s + ": " + p.What
}
