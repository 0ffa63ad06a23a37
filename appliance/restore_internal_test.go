package appliance

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/sendense/sendense/internal/restore"
)

func TestErrorsOfRestoresSayWhereAndWhatToDo(t *testing.T) {
	write := func(err error) error {
		return fmt.Errorf("restore disk vda to /mnt/web1.raw: %w", &os.PathError{Op: "write", Path: "/mnt/web1.raw.partial", Err: err})
	}
	for name, c := range map[string]struct {
		err  error
		code Code
		msg  string
		hint string
	}{
		"no room at the target":     {write(syscall.ENOSPC), CodeNoSpace, "/mnt/web1.raw", "where the disks go"},
		"no more than a quota":      {write(syscall.EDQUOT), CodeNoSpace, "/mnt/web1.raw", "where the disks go"},
		"a file that is too long":   {write(syscall.EFBIG), CodeInvalid, "/mnt/web1.raw", "of that length"},
		"devices that were written": {&restore.PartialError{Paths: []string{"/dev/x", "/dev/y"}, Err: write(syscall.EIO)}, CodeInternal, "/dev/x, /dev/y", "--delta"},
	} {
		e := AsError(restoreError(c.err))
		if e.Code != c.code || !strings.Contains(e.Msg, c.msg) || !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%s: got %s, %q, hint %q", name, e.Code, e.Msg, e.Hint)
		}
	}
}

func TestFilesOfDisksHaveNames(t *testing.T) {
	for name, want := range map[string]string{"web 1": "web-1", "機械": "machine", "": "machine", "../x": "x"} {
		if got := diskName(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}
