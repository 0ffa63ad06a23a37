package main_test

import (
	"testing"

	"github.com/sendense/sendense/internal/guest/guesttest"
)

func TestAPointBootsAsAMachine(t *testing.T) {
	g := newGuestSite(t)
	x, vm := g.boot(t)
	t.Logf("%+v", x)
	if got := guesttest.Exec(t, vm, "cat /srv/mark"); got != "from the point\n" {
		t.Errorf("file in the guest: got %q", got)
	}
}
