package cli

import (
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Progress is a bar on the terminal that tells bytes, rate and time to go. Where
// stderr is no terminal it is nothing. Its methods may be called concurrently.
type Progress struct {
	mu    sync.Mutex // guards the fields below
	bar   *progressbar.ProgressBar
	label string
	total int64
}

// NewProgress begins a bar. The caller closes it, before it prints anything.
func (p *Program) NewProgress(c *cobra.Command, label string) *Progress {
	f, ok := c.ErrOrStderr().(*os.File)
	if !ok || p.JSON || !term.IsTerminal(int(f.Fd())) {
		return &Progress{}
	}
	bar := progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(label),
		progressbar.OptionShowBytes(true), progressbar.OptionShowTotalBytes(true), progressbar.OptionUseIECUnits(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
	return &Progress{bar: bar, label: label, total: -1}
}

// Set says that done of total bytes are done; total is 0 as long as nobody knows.
// An empty label keeps the one before.
func (p *Progress) Set(label string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar == nil {
		return
	}
	if label != "" && label != p.label {
		p.label = label
		p.bar.Describe(label)
	}
	if total <= 0 {
		total = -1
	}
	if total != p.total {
		p.total = total
		p.bar.ChangeMax64(total)
	}
	// The bar is told on a terminal that may go away, which harms nothing else.
	_ = p.bar.Set64(min(done, max(total, done)))
}

// Close removes the bar from the terminal.
func (p *Progress) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
		_ = p.bar.Exit()
		p.bar = nil
	}
}
