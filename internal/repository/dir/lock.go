package dir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/sendense/sendense/internal/repository"
)

// lock is a flock on a file, which ends with the process at the latest. The file
// stays; who holds the lock alone writes himself into it.
type lock struct {
	f     *os.File
	sole  bool
	after func() // called when it was given up; may be nil
}

// holder is the content of a lock's file.
type holder struct {
	Holder string    `json:"holder"`
	PID    int       `json:"pid"`
	Since  time.Time `json:"since"`
}

// maxHolder bounds what is read of a lock's file.
const maxHolder = 4096

// takeLock takes the lock at path, alone or with other sharers, and does not wait
// for it: a LockedError about what says who has it.
func takeLock(path string, sole bool, what, who string, now time.Time) (*lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", what, err)
	}
	how := syscall.LOCK_SH
	if sole {
		how = syscall.LOCK_EX
	}
	err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		h := readHolder(f)
		return nil, errors.Join(&repository.LockedError{What: what, Holder: h.Holder, PID: h.PID, Since: h.Since}, f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", what, err), f.Close())
	}
	l := &lock{f: f, sole: sole}
	if sole {
		// For messages only: a lock without it is as good.
		b, err := json.Marshal(holder{who, os.Getpid(), now.UTC()})
		if err == nil && len(b) <= maxHolder && f.Truncate(0) == nil {
			_, _ = f.WriteAt(b, 0)
		}
	}
	return l, nil
}

// readHolder says who wrote himself into a lock's file, as far as it can be read.
func readHolder(f *os.File) holder {
	var h holder
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxHolder))
	if err != nil || json.Unmarshal(b, &h) != nil {
		return holder{}
	}
	return h
}

// release gives the lock up.
func (l *lock) release() error {
	if l.sole {
		_ = l.f.Truncate(0)
	}
	err := l.f.Close()
	if l.after != nil {
		l.after()
	}
	return err
}
