// Command demo protects a real guest while it runs: it boots a small Debian under
// a libvirtd of its own, starts a control plane, has the capture agent make a full
// and two incremental points while the guest writes, verifies them, and compares
// each point, exported over NBD, with what the guest's disk held at that moment. It
// then reads files inside of the points and through a mount, and boots a machine
// from the last point.
//
// It runs the programs in bin/, as a user would, and keeps the repository it made
// in build/demo.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/guest"
)

func main() {
	// Children are told to die with the thread that started them: this one, which
	// lives as long as the program.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// steps are what is done to the guest before each point.
var steps = []struct{ title, script string }{
	{"a fresh installation", "sync"},
	{"the guest writes files", "mkdir -p /srv/data && cd /srv/data && for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=file$i bs=1M count=4 2>/dev/null; done && sync"},
	{"the guest changes some and deletes others", "cd /srv/data && rm file1 file2 && dd if=/dev/urandom of=file3 bs=64k count=16 seek=8 conv=notrunc 2>/dev/null && echo 'the accounts of 2026' >accounts.txt && sync"},
}

// demo is a run of the demonstration.
type demo struct {
	dir     string // build/demo
	repo    string
	control string // address of the control plane
	host    *guest.Host
	vm      *guest.VM
	disk    string // the guest's disk
	rows    []row
	shown   []string // commands and what they printed
}

// row is a line of the closing table.
type row struct {
	Point    string
	Type     string
	Changed  int64
	Stored   int64
	Took     time.Duration
	Verified bool // by digests
	Same     bool // as the guest's disk was
}

func run(ctx context.Context) (err error) {
	cache, err := guest.CacheDir()
	if err != nil {
		return err
	}
	d := &demo{dir: filepath.Join(filepath.Dir(cache), "demo")}
	d.repo = filepath.Join(d.dir, "repository")
	if err := os.RemoveAll(d.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	if err := d.boot(ctx, cache); err != nil {
		return errors.Join(err, d.close())
	}
	stop, err := d.startControlPlane(ctx)
	if err != nil {
		return errors.Join(err, d.close())
	}
	for i, s := range steps {
		if err = d.protect(ctx, i, s.title, s.script); err != nil {
			break
		}
	}
	if err == nil {
		err = d.prove(ctx)
	}
	if err == nil {
		err = d.browse(ctx)
	}
	if err == nil {
		err = d.bootPoint(ctx)
	}
	if err = errors.Join(err, stop(), d.close()); err != nil {
		return err
	}
	return d.report()
}

// boot starts the guest under a libvirtd of the demo's own.
func (d *demo) boot(ctx context.Context, cache string) error {
	say("Building a small Debian guest (kept for the next time) …")
	img, err := guest.Build(ctx, cache)
	if err != nil {
		return err
	}
	accel, err := guest.Accel(ctx, cache, img)
	if err != nil {
		return err
	}
	if d.host, err = guest.StartHost(ctx, cache, accel); err != nil {
		return err
	}
	d.disk = filepath.Join(d.dir, "guest.qcow2")
	if err := img.CopyDisk(ctx, d.disk, "qcow2"); err != nil {
		return err
	}
	say("Booting it under libvirt and QEMU (%s) …", accel)
	began := time.Now()
	if d.vm, err = d.host.Define(ctx, guest.Spec{Name: "demo", Image: img, Disks: []guest.Disk{{Target: "vda", Source: d.disk}}}); err != nil {
		return err
	}
	if err := d.vm.Start(ctx); err != nil {
		return err
	}
	bootCtx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err := d.vm.WaitAgent(bootCtx); err != nil {
		return err
	}
	say("It is up after %.1f s.", time.Since(began).Seconds())
	return nil
}

// protect has the guest run the script and makes a point. The demo holds the
// guest's file systems still meanwhile, so that it can keep a copy of the disk, by
// QEMU's own tools, to compare the point with.
func (d *demo) protect(ctx context.Context, n int, title, script string) (err error) {
	say("Point %d: %s.", n, title)
	if _, err := d.vm.Exec(ctx, script); err != nil {
		return err
	}
	if _, err := d.vm.Conn.DomainFsfreeze(d.vm.Domain, nil, 0); err != nil {
		return fmt.Errorf("freeze guest: %w", err)
	}
	defer func() {
		if _, e := d.vm.Conn.DomainFsthaw(d.vm.Domain, nil, 0); e != nil {
			err = errors.Join(err, fmt.Errorf("thaw guest: %w", e))
		}
	}()
	if err := tool(ctx, "qemu-img", "convert", "-U", "-O", "raw", d.disk, d.reference(n)); err != nil {
		return err
	}
	began := time.Now()
	var made struct {
		Point  string `json:"point"`
		Parent string `json:"parent"`
		Record struct {
			Disks []struct {
				DataBytes   int64 `json:"data_bytes"`
				StoredBytes int64 `json:"stored_bytes"`
			} `json:"disks"`
		} `json:"record"`
	}
	if err := product(ctx, &made, "sendense-capture", "backup", "--source", "libvirt", "--vm", "demo",
		"--connect", d.host.URI(), "--control", d.control); err != nil {
		return err
	}
	r := row{Point: made.Point, Type: "full", Took: time.Since(began)}
	if made.Parent != "" {
		r.Type = "incremental"
	}
	for _, disk := range made.Record.Disks {
		r.Changed += disk.DataBytes
		r.Stored += disk.StoredBytes
	}
	d.rows = append(d.rows, r)
	return nil
}

// reference is the path of the copy that point n has to equal.
func (d *demo) reference(n int) string {
	return filepath.Join(d.dir, fmt.Sprintf("reference-%d.raw", n))
}

// prove verifies all points and compares each one, exported over NBD, with the
// copy of the disk taken at its time.
func (d *demo) prove(ctx context.Context) error {
	say("Verifying every point by its digests …")
	for i := range d.rows {
		var report struct {
			Problems []any `json:"problems"`
		}
		if err := product(ctx, &report, "sendense-control", "verify", "demo", "--point", d.rows[i].Point, "--control", d.control); err != nil {
			return err
		}
		d.rows[i].Verified = len(report.Problems) == 0
	}
	say("Exporting every point over NBD and comparing it with what the guest's disk held …")
	for i := range d.rows {
		var e struct {
			ID    string
			Disks []struct{ URI string }
		}
		if err := product(ctx, &e, "sendense-control", "export", "demo", d.rows[i].Point, "--control", d.control); err != nil {
			return err
		}
		if err := tool(ctx, "qemu-img", "compare", "-f", "raw", "-F", "raw", d.reference(i), e.Disks[0].URI); err != nil {
			return err
		}
		d.rows[i].Same = true
		if err := product(ctx, nil, "sendense-control", "unexport", e.ID, "--control", d.control); err != nil {
			return err
		}
		if err := os.Remove(d.reference(i)); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) report() error {
	fmt.Println()
	t := cli.NewTable(os.Stdout, "point", "type", "changed", "stored", "seconds", "verified")
	for _, r := range d.rows {
		verdict := "digests, and equal to the guest's disk"
		if !r.Verified || !r.Same {
			verdict = "NO"
		}
		t.Row(r.Point, r.Type, cli.Size(r.Changed), cli.Size(r.Stored), fmt.Sprintf("%.1f", r.Took.Seconds()), verdict)
	}
	t.Flush()
	fmt.Printf("\n%s\n", strings.Join(d.shown, "\n"))
	repo := d.repo
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, repo); err == nil {
			repo = rel
		}
	}
	fmt.Printf(`
Try next:
  bin/sendense-control ls -l demo latest /srv/data --repository %[1]s
  bin/sendense-control export demo latest~1 --repository %[1]s
  qemu-img info --backing-chain %[1]s/%[2]s/disk-0/demo-incr-%[3]s.qcow2
`, repo, d.vm.UUID, d.rows[len(d.rows)-1].Point)
	for _, r := range d.rows {
		if !r.Verified || !r.Same {
			return fmt.Errorf("point %s is not what the guest's disk held", r.Point)
		}
	}
	return nil
}

func (d *demo) close() error {
	var errs []error
	if d.host != nil {
		errs = append(errs, d.host.Close())
	}
	if d.disk != "" {
		errs = append(errs, os.RemoveAll(d.disk))
	}
	return errors.Join(errs...)
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }
