package main_test

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli/clitest"
	"github.com/sendense/sendense/internal/guest/guesttest"
	"github.com/sendense/sendense/internal/guestfs/fstest"
)

func TestASessionIsKeptAsAPointOrDiscarded(t *testing.T) {
	g := newGuestSite(t)
	text := g.Good(clitest.Run(t, program, append([]string{"boot", "web1", "latest", "--connect", g.host.URI(), "--name", "rescue"}, g.Via()...)...)).Stdout
	if !strings.Contains(text, "machine rescue is running") || !strings.Contains(text, "console: virsh --connect '"+g.host.URI()+"' console rescue") {
		t.Errorf("boot: got %q, want the machine and its console", text)
	}
	again := "boot web1 latest --connect " + g.host.URI()
	clitest.Refused(t, g.Control(g.Via(), again+" --name rescue"), 2, "rescue")
	clitest.Refused(t, g.Control(g.Via(), again+" --network nowhere"), 3, "network")
	all := clitest.Decode[[]appliance.Session](t, g.Control(g.Via(), "session list --json"))
	if len(all) != 1 || all[0].State != appliance.SessionRunning {
		t.Fatalf("sessions: got %+v, want one that runs", all)
	}
	x := all[0]
	vm := g.up(t, x)
	if got := guesttest.Exec(t, vm, "cat /srv/mark"); got != "from the point\n" {
		t.Errorf("file in the guest: got %q, want what the point holds", got)
	}
	guesttest.Exec(t, vm, "echo 'from the session' >/srv/mark && rm -f /etc/motd && dd if=/dev/urandom of=/srv/more bs=1M count=5 2>/dev/null && sync")

	clitest.Refused(t, g.Control(g.Via(), "delete web1 latest"), 4, x.ID)
	clitest.Refused(t, g.Control(g.Via(), "session keep "+x.ID), 4, "not shut down")
	g.Good(g.Control(g.Via(), "delete web1 latest~1")) // what the session needs of it stays
	sum := guesttest.Exec(t, vm, "echo 3 >/proc/sys/vm/drop_caches; sha256sum /srv/more /usr/bin/* | sha256sum")
	if err := vm.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept := clitest.Decode[appliance.Job](t, g.Control(g.Via(), "session keep --json "+x.ID))
	if r := g.Good(g.Control(g.Via(), "cat web1 latest /srv/mark")); r.Stdout != "from the session\n" {
		t.Errorf("file in the point that was kept: got %q", r.Stdout)
	}
	if r := g.Good(g.Control(g.Via(), "cat web1 latest~1 /srv/mark")); r.Stdout != "from the point\n" {
		t.Errorf("file in the point of the session: got %q, want it as it was", r.Stdout)
	}
	points := clitest.Decode[[]appliance.Point](t, g.Control(g.Via(), "points web1 --json"))
	last := points[len(points)-1]
	if len(points) != 2 || string(last.ID) != kept.Point || last.Full() || last.Disks[0].DataBytes > 32<<20 {
		t.Errorf("points: got %+v, want an incremental one of what the session wrote", last)
	}
	g.Good(g.Control(g.Via(), "verify"))
	g.wantNoSession(t)

	// The point that was kept boots, and what is discarded is gone.
	x, vm = g.boot(t)
	if again := guesttest.Exec(t, vm, "sha256sum /srv/more /usr/bin/* | sha256sum"); again != sum {
		t.Errorf("files in the guest of the point that was kept: got %s, want %s", again, sum)
	}
	guesttest.Exec(t, vm, "rm /srv/mark && sync")
	g.Good(g.Control(g.Via(), "session discard "+x.ID))
	if running, err := vm.Running(); err != nil || running {
		t.Errorf("machine of a session that was discarded: got %v (%v), want it gone", running, err)
	}
	if r := g.Good(g.Control(g.Via(), "cat web1 latest /srv/mark")); r.Stdout != "from the session\n" {
		t.Errorf("file in the point: got %q, want it as it was", r.Stdout)
	}
	g.wantNoSession(t)
}

// wantNoSession checks that nothing is left of sessions.
func (g *guestSite) wantNoSession(t *testing.T) {
	t.Helper()
	if r := g.Good(g.Control(g.Via(), "session list --json")); strings.TrimSpace(r.Stdout) != "[]" {
		t.Errorf("sessions: got %s, want none", r.Stdout)
	}
	for _, pattern := range []string{filepath.Join(g.Repo, ".sendense", "sessions", "*"), filepath.Join(g.Run, "sessions", "*")} {
		// A session is forgotten before its files are removed.
		clitest.Until(t, "nothing is left of sessions at "+pattern, func() bool {
			left, err := filepath.Glob(pattern)
			return err == nil && len(left) == 0
		})
	}
}

func TestAMachinePausesAtItsQuotaAndGoesOn(t *testing.T) {
	g := newGuestSite(t)
	x, vm := g.boot(t, "--quota", "16000000")
	guesttest.Exec(t, vm, `dd if=/dev/urandom of=/run/want bs=1M count=24 2>/dev/null
setsid sh -c 'cp /run/want /srv/big; sync; echo $? >/run/ended' </dev/null >/dev/null 2>&1 &`)
	waitPaused(t, vm)
	clitest.Until(t, "the session tells that its quota is reached", func() bool { return g.session(t, x.ID).State == appliance.SessionFull })
	if r := g.Control(g.Via(), "session show "+x.ID); !strings.Contains(r.Stdout, "session resume "+x.ID+" --quota") {
		t.Errorf("session show: got %q, want what to do", r.Stdout)
	}
	g.daemon.Kill()
	g.daemon = g.Daemon()
	clitest.Until(t, "the quota is reached again", func() bool { return g.session(t, x.ID).State == appliance.SessionFull })
	g.Good(g.Control(g.Via(), "session resume "+x.ID+" --quota 100000000"))
	clitest.Until(t, "the guest has written all", func() bool {
		out, err := vm.Exec(t.Context(), "cat /run/ended")
		return err == nil && out == "0\n"
	})
	guesttest.Exec(t, vm, "echo 3 >/proc/sys/vm/drop_caches; cmp /run/want /srv/big")
	wantUntroubled(t, vm)
}

// cutter stands between a machine and its session, and cuts connections.
type cutter struct {
	l    net.Listener
	to   string
	wait sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	conns []net.Conn
	made  int
	ended bool
}

// newCutter takes the place of a socket.
func newCutter(t *testing.T, socket string) *cutter {
	t.Helper()
	c := &cutter{to: socket + ".real"}
	if err := os.Rename(socket, c.to); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.l, err = net.Listen("unix", socket); err != nil {
		t.Fatal(err)
	}
	c.wait.Go(c.accept)
	t.Cleanup(func() {
		c.l.Close()
		c.cut(true)
		c.wait.Wait()
	})
	return c
}

func (c *cutter) accept() {
	for {
		from, err := c.l.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("unix", c.to)
		if err != nil {
			from.Close()
			continue
		}
		c.mu.Lock()
		if c.ended {
			from.Close()
			to.Close()
		}
		c.conns = append(c.conns, from, to)
		c.made++
		c.mu.Unlock()
		for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
			c.wait.Go(func() {
				_, _ = io.Copy(pair[0], pair[1]) // it is cut
				pair[0].Close()
				pair[1].Close()
			})
		}
	}
}

// cut closes all connections, wherever a message may be at.
func (c *cutter) cut(end bool) (made int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns, c.ended = nil, end
	return c.made
}

func TestConnectionsThatAreCutLoseNothing(t *testing.T) {
	g := newGuestSite(t)
	x := clitest.Decode[appliance.Session](t, g.Control(g.Via(), "boot web1 latest --disks-only --json"))
	c := newCutter(t, x.Socket)
	x = clitest.Decode[appliance.Session](t, g.Control(g.Via(), "session start --json "+x.ID+" --connect "+g.host.URI()))
	vm := g.up(t, x)
	d := g.startDatabase(t, x, vm, 1)
	random := rand.New(rand.NewPCG(1, 2))
	const cuts = 12
	for range cuts {
		d.more(t, 1+random.IntN(20))
		time.Sleep(time.Duration(random.IntN(20)) * time.Millisecond) // anywhere between two rows
		c.cut(false)
	}
	d.more(t, 20)
	if made := c.cut(false); made < cuts {
		t.Errorf("connections: got %d, want one for each of %d cuts or more", made, cuts)
	}
	d.more(t, 1)
	wantUntroubled(t, vm)
	d.wantRows(t, vm)
}

func TestADiskThatIsFullPausesTheMachine(t *testing.T) {
	g := newGuestSite(t, func(g *guestSite) { g.small(t, g.Repo, 160) })
	x, vm := g.boot(t)
	guesttest.Exec(t, vm, `dd if=/dev/urandom of=/run/want bs=1M count=24 2>/dev/null`)
	fstest.Exhaust(t, g.Repo)
	ballast := filepath.Join(g.Repo, "ballast")
	if st, err := os.Stat(ballast); err != nil || os.Truncate(ballast, st.Size()-8<<20) != nil {
		t.Fatalf("leave some room: %v", err)
	}
	guesttest.Exec(t, vm, `setsid sh -c 'cp /run/want /srv/big; sync; echo $? >/run/ended' </dev/null >/dev/null 2>&1 &`)
	waitPaused(t, vm)
	if x = g.session(t, x.ID); x.State != appliance.SessionNoSpace || !strings.Contains(x.Problem, "no space") {
		t.Errorf("session: got %s, %q, want that nothing is free", x.State, x.Problem)
	}
	fstest.Exhaust(t, g.Repo)
	g.daemon.Kill() // and what it had told is in a log, which takes room to be done again
	g.daemon = g.Daemon()
	g.is(t, x.ID, appliance.SessionNoSpace)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	clitest.Until(t, "the guest has written all", func() bool {
		out, err := vm.Exec(t.Context(), "cat /run/ended")
		return err == nil && out == "0\n"
	})
	guesttest.Exec(t, vm, "echo 3 >/proc/sys/vm/drop_caches; cmp /run/want /srv/big")
	wantUntroubled(t, vm)
}
