package repository

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// VMID is the UUID of a machine: lower case, with hyphens.
type VMID string

// ParseVMID returns s as a VMID, in lower case, or an error.
func ParseVMID(s string) (VMID, error) {
	s = strings.ToLower(s)
	ok := len(s) == 36
	for i := 0; ok && i < len(s); i++ {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			ok = s[i] == '-'
		} else {
			ok = strings.IndexByte("0123456789abcdef", s[i]) >= 0
		}
	}
	if !ok {
		return "", fmt.Errorf("%q is no UUID", s)
	}
	return VMID(s), nil
}

// PointID names a point of a machine by its time in UTC: yyyymmdd-hhmmss. Ids of
// one machine ascend, as strings too.
type PointID string

const pointLayout = "20060102-150405"

// newPointID returns the id for a time.
func newPointID(t time.Time) PointID { return PointID(t.UTC().Format(pointLayout)) }

// ParsePointID returns s as a PointID, or an error.
func ParsePointID(s string) (PointID, error) {
	t, err := time.Parse(pointLayout, s)
	if err != nil || t.Format(pointLayout) != s {
		return "", fmt.Errorf("%q is no point: want yyyymmdd-hhmmss", s)
	}
	return PointID(s), nil
}

// Time returns the time that the id stands for; zero if it is none.
func (p PointID) Time() time.Time {
	t, err := time.Parse(pointLayout, string(p))
	if err != nil {
		return time.Time{}
	}
	return t
}

// Next returns the id of the point after p made at time now: later than p even if
// the clock went back.
func (p PointID) Next(now time.Time) PointID {
	id := newPointID(now)
	if p != "" && id <= p {
		return newPointID(p.Time().Add(time.Second))
	}
	return id
}

// VM is the record of a machine.
type VM struct {
	ID      VMID      `json:"uuid"`
	Name    string    `json:"name"`    // as of the latest point
	Created time.Time `json:"created"` // UTC
	Points  int       `json:"points"`  // how many there are
	Latest  PointID   `json:"latest"`  // "" if there are none
}

// Kinds of a disk's file.
const (
	Full        = "full" // holds the whole disk
	Incremental = "incr" // holds what differs from its parent
)

// Point is the record of a point.
type Point struct {
	ID      PointID         `json:"id"`
	VM      VMID            `json:"vm"`
	Name    string          `json:"name"` // of the machine at that time
	Job     string          `json:"job,omitempty"`
	Source  string          `json:"source,omitempty"`
	Created time.Time       `json:"created"` // when it was committed, UTC
	Config  json.RawMessage `json:"config,omitempty"`
	Disks   []PointDisk     `json:"disks"` // in the order they were added
}

// Full reports whether the point builds on no other.
func (p *Point) Full() bool {
	for i := range p.Disks {
		if p.Disks[i].Kind != Full {
			return false
		}
	}
	return true
}

// Disk returns the disk with a key, or nil.
func (p *Point) Disk(key string) *PointDisk {
	for i := range p.Disks {
		if p.Disks[i].Key == key {
			return &p.Disks[i]
		}
	}
	return nil
}

// DiskAt returns the disk with an index, or nil.
func (p *Point) DiskAt(index int) *PointDisk {
	for i := range p.Disks {
		if p.Disks[i].Index == index {
			return &p.Disks[i]
		}
	}
	return nil
}

// PointDisk is the record of one disk of a point.
type PointDisk struct {
	Key         string `json:"key"`
	Index       int    `json:"index"` // in the machine, from 0; stays with the key
	Size        int64  `json:"size"`  // virtual, bytes
	Kind        string `json:"kind"`  // Full or Incremental
	File        string `json:"file"`  // inside the machine's folder
	Digests     string `json:"digests"`
	DigestsSum  string `json:"digests_sum"`      // BLAKE3-256 of the digests file without its last 32 bytes, in hex
	Parent      string `json:"parent,omitempty"` // File of the point it builds on
	ClusterSize int64  `json:"cluster_size"`     // bytes
	DataBytes   int64  `json:"data_bytes"`       // clusters of data, as the guest sees them
	ZeroBytes   int64  `json:"zero_bytes"`       // clusters of explicit zeroes
	StoredBytes int64  `json:"stored_bytes"`     // length of File
	Token       string `json:"token,omitempty"`
	Mode        string `json:"mode,omitempty"`
	Reason      string `json:"reason,omitempty"`
	Audit       *Audit `json:"audit,omitempty"`
}

// Audit is the outcome of checking a source's change tracking against samples.
type Audit struct {
	Unchanged     int64   `json:"unchanged"`
	Sampled       int64   `json:"sampled"`
	Missed        int64   `json:"missed"`
	MissRateBound float64 `json:"miss_rate_bound"`
	Healed        int64   `json:"healed"`
}
