package nbdserver_test

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"

	"github.com/sendense/sendense/nbdserver"
)

// counted is a file that counts what is read through it.
type counted struct {
	*rawFile
	reads atomic.Int32
}

func (d *counted) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.reads.Add(1)
	return d.rawFile.ReadAt(ctx, p, off)
}

func TestBacklogIsNotCopied(t *testing.T) {
	content := bytes.Repeat([]byte("fedcba9876543210"), 64<<10)
	for _, st := range styles {
		t.Run(st.name, func(t *testing.T) {
			d := &counted{rawFile: newRawFile(t, content)}
			s := serve(t, nbdserver.Options{}, export("", d))
			// More than all pipes of a server can hold, and no reply is taken yet.
			const clients, reads = 4, 64
			var all [clients]*client
			for i := range all {
				c := attach(t, s.addr, "", st.style)
				for range reads {
					c.send(cmdRead, fDF*uint16(min(1, st.style)), 1, 0, 512<<10, nil)
				}
				all[i] = c
			}
			for _, c := range all {
				for range reads {
					equal(t, "read", c.result(cmdRead, 0, 512<<10).data, content[:512<<10])
				}
			}
			if n := d.reads.Load(); n != 0 {
				t.Errorf("reads through the device, of %d in all: got %d, want 0", clients*reads, n)
			}
		})
	}
}

func TestTruncatedFileGivesAnErrorAndNoGarbage(t *testing.T) {
	for _, st := range styles {
		t.Run(st.name, func(t *testing.T) {
			content := bytes.Repeat([]byte{7}, 4<<20)
			raw := newRawFile(t, content)
			s := serve(t, nbdserver.Options{}, export("", raw))
			c := attach(t, s.addr, "", st.style)
			if err := raw.f.Truncate(2<<20 + 1000); err != nil {
				t.Fatal(err)
			}
			for _, n := range []uint64{4096, 256 << 10, 2 << 20} {
				if got := c.do(cmdRead, 0, 2<<20, n, nil).errno; got != eIO {
					t.Errorf("read %d behind the end of the file: got error %d, want %d", n, got, eIO)
				}
			}
			equal(t, "read before the end", c.do(cmdRead, 0, 0, 2<<20, nil).data, content[:2<<20])
		})
	}
}

func TestClosedFileGivesAnError(t *testing.T) {
	raw := newRawFile(t, make([]byte, 1<<20))
	s := serve(t, nbdserver.Options{}, export("", raw))
	c := attach(t, s.addr, "", structured)
	c.do(cmdRead, 0, 0, 256<<10, nil)
	raw.f.Close()
	for _, n := range []uint64{512, 256 << 10} {
		if got := c.do(cmdRead, 0, 0, n, nil).errno; got != eShutdown {
			t.Errorf("read %d: got error %d, want %d", n, got, eShutdown)
		}
	}
}
