package host

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/state"
)

// journal keeps an appliance's records as documents.
type journal struct{ *state.Store }

func (j journal) AddJob(job appliance.Job) error { return j.Add("jobs", job.ID, job) }
func (j journal) PutJob(job appliance.Job) error { return j.Put("jobs", job.ID, job) }
func (j journal) DeleteJob(id string) error      { return j.Delete("jobs", id) }

func (j journal) Job(id string) (appliance.Job, error) {
	return state.Get[appliance.Job](j.Store, "jobs", id)
}

func (j journal) Jobs() ([]appliance.Job, error) {
	m, err := state.All[appliance.Job](j.Store, "jobs")
	return slices.Collect(maps.Values(m)), err
}

func (j journal) PutExport(s appliance.ExportSpec) error { return j.Put("exports", s.ID, s) }
func (j journal) DeleteExport(id string) error           { return j.Delete("exports", id) }

func (j journal) Exports() ([]appliance.ExportSpec, error) {
	m, err := state.All[appliance.ExportSpec](j.Store, "exports")
	return slices.Collect(maps.Values(m)), err
}

func (j journal) PutSession(s appliance.Session) error { return j.Put("sessions", s.ID, s) }
func (j journal) DeleteSession(id string) error        { return j.Delete("sessions", id) }

func (j journal) Sessions() ([]appliance.Session, error) {
	m, err := state.All[appliance.Session](j.Store, "sessions")
	return slices.Collect(maps.Values(m)), err
}

// memory is the journal of a host that cannot write beside its repository: it
// forgets everything when the process ends.
type memory struct {
	mu      sync.Mutex // guards the fields below
	jobs    map[string]appliance.Job
	exports map[string]appliance.ExportSpec
}

func newMemory() *memory {
	return &memory{jobs: map[string]appliance.Job{}, exports: map[string]appliance.ExportSpec{}}
}

func (m *memory) Owner() string             { return "this process" }
func (m *memory) Alive(owner string) bool   { return owner == m.Owner() }
func (m *memory) Close() error              { return nil }
func (m *memory) DeleteJob(id string) error { return locked(m, func() { delete(m.jobs, id) }) }

func (m *memory) AddJob(j appliance.Job) (err error) {
	return errors.Join(locked(m, func() {
		if _, taken := m.jobs[j.ID]; taken {
			err = fs.ErrExist
			return
		}
		m.jobs[j.ID] = j
	}), err)
}

func (m *memory) PutJob(j appliance.Job) error {
	return locked(m, func() { m.jobs[j.ID] = j })
}

func (m *memory) Job(id string) (j appliance.Job, err error) {
	return j, errors.Join(locked(m, func() {
		var ok bool
		if j, ok = m.jobs[id]; !ok {
			err = fs.ErrNotExist
		}
	}), err)
}

func (m *memory) Jobs() (out []appliance.Job, err error) {
	return out, locked(m, func() { out = slices.Collect(maps.Values(m.jobs)) })
}

func (m *memory) PutExport(s appliance.ExportSpec) error {
	return locked(m, func() { m.exports[s.ID] = s })
}

func (m *memory) DeleteExport(id string) error { return locked(m, func() { delete(m.exports, id) }) }

func (m *memory) Exports() (out []appliance.ExportSpec, err error) {
	return out, locked(m, func() { out = slices.Collect(maps.Values(m.exports)) })
}

// Sessions outlive the process or are none.

func (m *memory) PutSession(appliance.Session) error     { return errors.ErrUnsupported }
func (m *memory) DeleteSession(string) error             { return errors.ErrUnsupported }
func (m *memory) Sessions() ([]appliance.Session, error) { return nil, nil }

func locked(m *memory, fn func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn()
	return nil
}
