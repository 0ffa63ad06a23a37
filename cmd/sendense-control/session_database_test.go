package main_test

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guest"
	"github.com/sendense/sendense/internal/guest/guesttest"
)

// database is an SQLite in a session's guest that commits one row after another,
// each durably, and tells each on the serial console once it is committed.
type database struct {
	g  *guestSite
	vm *guest.VM

	console *os.File
	read    sync.WaitGroup
	mu      sync.Mutex // guards acknowledged
	// acknowledged is the number of the last row that was told.
	acknowledged int
}

// startDatabase has the guest write rows from the number first on.
func (g *guestSite) startDatabase(t *testing.T, x appliance.Session, vm *guest.VM, first int) *database {
	t.Helper()
	d := &database{g: g, vm: vm, acknowledged: first - 1}
	for _, path := range x.Machine.Consoles {
		if strings.HasPrefix(path, "/dev/pts/") {
			f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
			if err != nil {
				t.Fatal(err)
			}
			d.console = f
		}
	}
	if d.console == nil {
		t.Fatalf("consoles: got %q, want a serial port", x.Machine.Consoles)
	}
	d.read.Go(d.listen)
	t.Cleanup(d.close)
	guesttest.Exec(t, vm, fmt.Sprintf(`cd /srv && sqlite3 db 'pragma journal_mode=wal; create table if not exists t(i integer primary key, x blob)'
cat >/run/load <<'END'
i=%d
while :; do echo "insert into t values($i, randomblob(3000)); select 'committed ' || $i;"; i=$((i+1)); done |
	sqlite3 -cmd 'pragma synchronous=full' -cmd 'pragma wal_autocheckpoint=20' /srv/db >/dev/ttyS0 2>&1
echo "database ended" >/dev/ttyS0
END
setsid sh /run/load </dev/null >/dev/null 2>&1 &`, first))
	return d
}

func (d *database) listen() {
	lines := bufio.NewScanner(d.console)
	for lines.Scan() {
		_, number, ok := strings.Cut(lines.Text(), "committed ")
		if n, err := strconv.Atoi(strings.TrimSpace(number)); ok && err == nil {
			d.mu.Lock()
			d.acknowledged = max(d.acknowledged, n)
			d.mu.Unlock()
		}
	}
}

// close ends listening; the terminal ends it too once its machine is gone.
func (d *database) close() {
	d.console.Close()
	d.read.Wait()
}

// last returns the number of the last row known to be committed.
func (d *database) last() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.acknowledged
}

// more waits until n more rows are committed.
func (d *database) more(t *testing.T, n int) {
	t.Helper()
	want := d.last() + n
	clitest.Until(t, fmt.Sprintf("row %d is committed", want), func() bool { return d.last() >= want })
}

// wantRows checks that the database is sound and has every row that was told.
func (d *database) wantRows(t *testing.T, vm *guest.VM) (rows int) {
	t.Helper()
	last := d.last()
	out := steady(t, vm, "sqlite3 /srv/db 'pragma integrity_check; select count(*), coalesce(max(i), 0) from t'")
	var have, highest int
	if _, err := fmt.Sscanf(out, "ok\n%d|%d", &have, &highest); err != nil {
		t.Fatalf("database: got %q, want it sound", out)
	}
	if have != highest || highest < last {
		t.Errorf("database: got %d rows up to %d, want all up to %d or more", have, highest, last)
	}
	return highest
}

// steady runs a script in a guest once its machine runs: it may pause at any moment
// for as long as its disks are away.
func steady(t *testing.T, vm *guest.VM, script string) (out string) {
	t.Helper()
	clitest.Until(t, "the machine runs", func() bool {
		var err error
		out, err = vm.Exec(t.Context(), script)
		if err != nil && !strings.Contains(err.Error(), "domain is not running") {
			t.Fatal(err)
		}
		return err == nil
	})
	return out
}

// wantUntroubled checks that the guest's kernel saw nothing of its disk failing.
func wantUntroubled(t *testing.T, vm *guest.VM) {
	t.Helper()
	if out := steady(t, vm, "dmesg | grep -iE 'i/o error|ext4-fs error|remounting|blk_update_request|hung' || true"); out != "" {
		t.Errorf("kernel of the guest: got %q, want nothing about its disk", out)
	}
}

func TestAnApplianceThatIsKilledLosesNoTransaction(t *testing.T) {
	g := newGuestSite(t)
	x, vm := g.boot(t)
	boot := guesttest.Exec(t, vm, "cat /proc/sys/kernel/random/boot_id")
	d := g.startDatabase(t, x, vm, 1)
	for i, n := range []int{50, 1, 17, 80} {
		d.more(t, n)
		g.daemon.Kill()
		if i%2 == 1 { // the machine's requests fail for a while
			waitPaused(t, vm)
		}
		g.daemon = g.Daemon()
		d.more(t, 10)
	}
	wantUntroubled(t, vm)
	if now := steady(t, vm, "cat /proc/sys/kernel/random/boot_id"); now != boot {
		t.Errorf("boot of the guest: got %q, want %q, the one from before", now, boot)
	}
	d.wantRows(t, vm)

	// Now the machine dies, then both.
	for _, kill := range []func() error{
		func() error { return vm.Kill(t.Context()) },
		func() error { g.daemon.Kill(); return vm.Kill(t.Context()) },
		func() error { err := vm.Kill(t.Context()); g.daemon.Kill(); return err },
	} {
		d.more(t, 30)
		if err := kill(); err != nil {
			t.Fatal(err)
		}
		d.read.Wait() // what was told is known
		if g.daemon.Ended() {
			g.daemon = g.Daemon()
		}
		x = clitest.Decode[appliance.Session](t, g.Control(g.Via(), "session start --json "+x.ID))
		vm = g.up(t, x)
		rows := d.wantRows(t, vm)
		d = g.startDatabase(t, x, vm, rows+1)
	}
}

// A write that was answered but not flushed is in no journal of the guest's, which
// does not send it again: only the session can keep it.
func TestAnApplianceThatIsKilledLosesNoWriteThatWasAnswered(t *testing.T) {
	g := newGuestSite(t)
	x, vm := g.boot(t)
	for round := range 2 {
		guesttest.Exec(t, vm, `rm -f /srv/direct && fallocate -l 24M /srv/direct && sync
dd if=/dev/urandom of=/run/want bs=1M count=24 2>/dev/null`)
		before := g.session(t, x.ID).Disks[0].FileBytes
		guesttest.Exec(t, vm, `setsid sh -c 'dd if=/run/want of=/srv/direct bs=64k oflag=direct conv=notrunc; echo $? >/run/ended' </dev/null >/dev/null 2>&1 &`)
		clitest.Until(t, "half of it is written", func() bool { return g.session(t, x.ID).Disks[0].FileBytes > before+8<<20 })
		g.daemon.Kill()
		g.daemon = g.Daemon()
		clitest.Until(t, "all of it is written", func() bool {
			out, err := vm.Exec(t.Context(), "cat /run/ended") // which fails while the machine is paused
			return err == nil && out == "0\n"
		})
		if out := steady(t, vm, "rm -f /run/ended; dd if=/srv/direct bs=1M iflag=direct 2>/dev/null | cmp - /run/want || true"); out != "" {
			t.Errorf("round %d: %s", round, out)
		}
	}
	wantUntroubled(t, vm)
}

// waitPaused waits until a machine stands still.
func waitPaused(t *testing.T, vm *guest.VM) {
	t.Helper()
	clitest.Until(t, "the machine pauses", func() bool {
		paused, err := vm.Paused()
		return err == nil && paused
	})
}
