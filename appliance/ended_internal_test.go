package appliance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/restore"
)

func TestWhatAJobLeavesIsToldHoweverItEnded(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want string // besides why it was ended
	}{
		{"nothing is left", fmt.Errorf("read: %w", context.Canceled), ""},
		{"an error that follows from that", errors.New("connection is closed"), ""},
		{"a machine that may be there", restoreError(errors.Join(fmt.Errorf("%w: remove machine web2: %w", machine.ErrRemains, context.Canceled))), "web2"},
		{"devices that were written in part", restoreError(&restore.PartialError{Paths: []string{"/dev/x"}, Err: context.Canceled}), "/dev/x"},
		{"a migration that is not settled", remains{&Error{Code: CodeInternal, Msg: "It could not be settled.", Hint: "Wait."}}, "not be settled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := AsError(ended(errCancelled, c.err))
			if got.Code != CodeCancelled || !strings.Contains(got.Msg, "was cancelled") || !strings.Contains(got.Msg, c.want) || got.Hint == "" {
				t.Errorf("got %+v, want that it was cancelled and %q", got, c.want)
			}
			if c.want == "" && got != errCancelled {
				t.Errorf("got %q, want only that it was cancelled", got.Msg)
			}
		})
	}
}
