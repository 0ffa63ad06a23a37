package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"libguestfs.org/libnbd"
)

// Info is what a server says of itself and its exports.
type Info struct {
	URI      string   `json:"uri"`
	Protocol string   `json:"protocol"` // "newstyle-fixed", …
	TLS      bool     `json:"tls"`      // the connection is encrypted
	Exports  []Export `json:"exports"`
}

// Export is what a server says of one export. Sizes are bytes.
type Export struct {
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Size        int64     `json:"size"`
	ReadOnly    bool      `json:"read_only"`
	Flush       bool      `json:"can_flush"`
	FUA         bool      `json:"can_fua"`
	Trim        bool      `json:"can_trim"`
	Zero        bool      `json:"can_zero"`
	FastZero    bool      `json:"can_fast_zero"`
	MultiConn   bool      `json:"can_multi_conn"`
	BlockSize   BlockSize `json:"block_size"`
	Contexts    []string  `json:"contexts"` // metadata contexts
	// Error is why the server did not describe the export, "" if it did.
	Error string `json:"error,omitempty"`
}

// BlockSize holds a server's constraints in bytes, 0 where it has none.
type BlockSize struct {
	Minimum   int64 `json:"minimum"`
	Preferred int64 `json:"preferred"`
	Maximum   int64 `json:"maximum"`
}

// GetInfo asks the server of uri about its exports: all that it lists and the one
// that the uri names.
func GetInfo(ctx context.Context, uri string, o Options) (*Info, error) {
	o = o.withDefaults()
	h, err := dial(ctx, uri, o, true)
	if err != nil {
		return nil, err
	}
	defer func() { _ = h.Close() }()
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("%w: after %v", ErrTimeout, o.Timeout))
	defer cancel()
	info := &Info{URI: uri}
	protocol, err := h.GetProtocol()
	if err != nil {
		return nil, err
	}
	info.Protocol = *protocol
	if info.TLS, err = h.GetTlsNegotiated(); err != nil {
		return nil, err
	}
	names, err := exportNames(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("list exports of %s: %w", uri, err)
	}
	for _, name := range names {
		e, err := describe(ctx, h, name)
		if err != nil {
			return nil, fmt.Errorf("describe export %q of %s: %w", name, uri, err)
		}
		info.Exports = append(info.Exports, e)
	}
	_ = h.AioOptAbort() // a courtesy
	return info, nil
}

// exportNames lists the exports, with the one of the URI first if the list has
// not got it.
func exportNames(ctx context.Context, h *libnbd.Libnbd) ([]string, error) {
	own, err := h.GetExportName()
	if err != nil {
		return nil, err
	}
	var names []string
	listed := *own == ""
	err = option(ctx, h, func(done libnbd.CompletionCallback) error {
		return h.AioOptList(func(name, _ string) int {
			names = append(names, name)
			listed = listed || name == *own
			return 0
		}, &libnbd.AioOptListOptargs{CompletionCallbackSet: true, CompletionCallback: done})
	})
	if err != nil && !refused(err) {
		return nil, err
	}
	if !listed || len(names) == 0 {
		names = append([]string{*own}, names...)
	}
	return names, nil
}

// describe asks about one export. That the server does not want to tell is part
// of the answer.
func describe(ctx context.Context, h *libnbd.Libnbd, name string) (Export, error) {
	e := Export{Name: name, Contexts: []string{}}
	if err := h.SetExportName(name); err != nil {
		return e, err
	}
	err := option(ctx, h, func(done libnbd.CompletionCallback) error {
		return h.AioOptInfo(&libnbd.AioOptInfoOptargs{CompletionCallbackSet: true, CompletionCallback: done})
	})
	if refused(err) {
		e.Error = err.Error()
		return e, nil
	}
	if err != nil {
		return e, err
	}
	if err := e.fill(h); err != nil {
		return e, err
	}
	err = option(ctx, h, func(done libnbd.CompletionCallback) error {
		_, err := h.AioOptListMetaContext(func(context string) int {
			e.Contexts = append(e.Contexts, context)
			return 0
		}, &libnbd.AioOptListMetaContextOptargs{CompletionCallbackSet: true, CompletionCallback: done})
		return err
	})
	if err != nil && !refused(err) {
		return e, err
	}
	return e, nil
}

// fill takes what the server said in its last reply.
func (e *Export) fill(h *libnbd.Libnbd) error {
	can, err := ask(h)
	if err != nil {
		return err
	}
	e.ReadOnly, e.Flush, e.Trim = can.readOnly, can.flush, can.trim
	e.Zero, e.FastZero, e.MultiConn = can.zero, can.fastZero, can.multiConn
	if e.FUA, err = h.CanFua(); err != nil {
		return err
	}
	size, err := h.GetSize()
	if err != nil {
		return err
	}
	e.Size = int64(size)
	for _, s := range []struct {
		to   *int64
		kind libnbd.Size
	}{
		{&e.BlockSize.Minimum, libnbd.SIZE_MINIMUM},
		{&e.BlockSize.Preferred, libnbd.SIZE_PREFERRED},
		{&e.BlockSize.Maximum, libnbd.SIZE_MAXIMUM},
	} {
		n, err := h.GetBlockSize(s.kind)
		if err != nil {
			return err
		}
		*s.to = int64(n)
	}
	if d, err := h.GetExportDescription(); err == nil { // servers need not have one
		e.Description = *d
	}
	return nil
}

// refusal is a server's answer that it will not do what an option asks.
type refusal struct{ errno syscall.Errno }

func (r refusal) Error() string { return "server refuses: " + r.errno.Error() }

func refused(err error) bool {
	var r refusal
	return errors.As(err, &r)
}

// option negotiates one option within ctx.
func option(ctx context.Context, h *libnbd.Libnbd, begin func(libnbd.CompletionCallback) error) error {
	completed, outcome := false, 0
	err := begin(func(e *int) int {
		completed, outcome = true, *e
		return 1
	})
	if err != nil {
		return err
	}
	if err := drive(ctx, h, func() (bool, error) { return completed, nil }); err != nil {
		return err
	}
	if outcome != 0 {
		return refusal{syscall.Errno(outcome)}
	}
	return nil
}
