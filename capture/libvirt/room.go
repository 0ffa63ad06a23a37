package libvirt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// roomInterval is how often the room in the scratch folder is looked at.
const roomInterval = 200 * time.Millisecond

// errScratchFull says that there is too little room for scratch files. QEMU fails
// what the guest writes when it cannot save what was there before: the machine's
// health comes before its backup.
var errScratchFull = errors.New("scratch folder is nearly full")

// checkRoom returns errScratchFull if the folder has less than reserve bytes left.
func checkRoom(dir string, reserve int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("ask for the room in %s: %w", dir, err)
	}
	if left := int64(st.Bavail) * st.Bsize; left < reserve {
		return fmt.Errorf("%w: %s has %d MiB left, and a guest whose old content finds no room there gets write errors; "+
			"make room, or choose a larger scratch folder", errScratchFull, dir, left>>20)
	}
	return nil
}

// watchRoom ends the backup job before its scratch files fill the folder. It
// returns when ctx ends.
func (i *running) watchRoom(ctx context.Context) {
	tick := time.NewTicker(roomInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := checkRoom(i.plan.folder.path, i.source.o.ScratchReserve)
		if !errors.Is(err, errScratchFull) {
			continue
		}
		i.failWith(fmt.Errorf("backup of %s was ended: %w", i.dom.Name, err))
		i.mu.Lock()
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		if err := i.end(ctx, i.handle); err != nil {
			i.log.Error("backup job could not be ended, and its scratch folder is nearly full", "err", err)
		}
		cancel()
		i.mu.Unlock()
		return
	}
}
