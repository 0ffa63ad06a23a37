package appliance

import (
	"errors"
	"fmt"
	"io/fs"
)

// A job that runs here may be one that the journal does not take, for want of room
// say. It is remembered for as long as the process lives, and recorded as soon as
// that is possible.

// runsUnrecorded reports whether a job may begin although err kept it from being
// recorded. A verification changes nothing, and tells of damage when that is most
// likely; a removal is what makes room.
func runsUnrecorded(verb string, err error) bool {
	return verb == "verify" || verb == "delete" && AsError(err).Code == CodeNoSpace
}

// taken reports whether a job of this process that may not be in the journal has
// an id. The caller holds js.mu.
func (js *jobs) taken(id string) bool {
	_, unrecorded := js.unrecorded[id]
	return unrecorded || js.running[id] != nil
}

// record stores the job as it ended, and warns in it if that cannot be. The caller
// holds r.mu.
func (r *running) record() (recorded bool) {
	journal := r.jobs.journal
	put := journal.PutJob
	if r.unrecorded {
		put = journal.AddJob
	}
	warn := func(why error) {
		if why != nil {
			r.job.Warning = sentence(fmt.Sprintf("The result is not recorded: %v", why))
		}
	}
	warn(r.jobs.volatile)
	err := put(r.job)
	warn(err)
	if err != nil && !r.unrecorded {
		// What is recorded says that it runs, and would be taken for interrupted.
		_ = journal.DeleteJob(r.job.ID)
	}
	return err == nil
}

// catchUp records what could not be recorded before. The caller holds js.mu.
func (js *jobs) catchUp() {
	for id, j := range js.unrecorded {
		j.Warning = ""
		err := js.journal.AddJob(j)
		if err == nil {
			delete(js.unrecorded, id)
		} else if !errors.Is(err, fs.ErrExist) {
			return // there is still no room
		}
	}
}

// remembered returns a job of this process as it stands, whether it is recorded or
// not; false if it has none with the id that it has to remember.
func (js *jobs) remembered(id string) (Job, bool) {
	if r := js.get(id); r != nil {
		j, _ := r.snapshot()
		return j, true
	}
	js.mu.Lock()
	defer js.mu.Unlock()
	j, ok := js.unrecorded[id]
	return j, ok
}

// memory returns the ids of all jobs that this process remembers.
func (js *jobs) memory() (ids []string) {
	js.mu.Lock()
	defer js.mu.Unlock()
	for id := range js.running {
		ids = append(ids, id)
	}
	for id := range js.unrecorded {
		ids = append(ids, id)
	}
	return ids
}
