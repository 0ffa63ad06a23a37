package nbdserver_test

import (
	"fmt"
	"sync"

	"github.com/sendense/sendense/nbdserver"
)

// observer counts what it is told.
type observer struct {
	mu     sync.Mutex
	counts map[string]int
}

func (o *observer) count(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.counts[what]++
}

func (o *observer) get(what string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.counts[what]
}

func (o *observer) ConnOpened(string) { o.count("opened") }
func (o *observer) ConnClosed(string) { o.count("closed") }

func (o *observer) RequestDone(_ string, cmd nbdserver.Command, n int64, errno nbdserver.Errno) {
	o.count(fmt.Sprintf("%s %d %d", cmd, n, errno))
}
