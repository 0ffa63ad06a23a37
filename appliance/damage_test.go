package appliance_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/nbdclient"
	"github.com/sendense/sendense/internal/repository"
)

// flip changes one bit of the file that holds a cluster of web1's first disk at a
// point. content is what the disk held then.
func flip(t *testing.T, r *rig, ref string, content []byte, cluster int64) {
	t.Helper()
	vm, p, err := r.Point(t.Context(), "web1", ref)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.root, string(vm.ID), p.Disks[0].File)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size := p.Disks[0].ClusterSize
	at := bytes.Index(b, content[cluster*size:(cluster+1)*size])
	if at < 0 {
		t.Fatalf("cluster %d is not in %s", cluster, path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{b[at+100] ^ 0x10}, int64(at)+100); err != nil {
		t.Fatal(err)
	}
}

func TestOneFlippedBitIsFound(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	r := open(t, func(o *appliance.Options) { o.Metrics = appliance.NewMetrics(registry) })
	_, ids, vda := three(t, r)
	flip(t, r, ids[0], vda[0], 20)

	j, err := r.Verify(t.Context(), appliance.VerifyRequest{VM: "web1"})
	j = r.wait(t, j, err)
	if j.State != appliance.JobFailed || j.Error == nil || j.Error.Code != appliance.CodeCorrupt || j.Error.Hint == "" {
		t.Fatalf("job: got %s (%+v), want failed for corruption, with a hint", j.State, j.Error)
	}
	for _, word := range []string{"A problem was found: VM ", "web1", "vda", ids[0], "cluster 20"} {
		if !strings.Contains(j.Error.Msg, word) {
			t.Errorf("error: got %q, want it to name %q", j.Error.Msg, word)
		}
	}
	var report repository.Report
	if err := json.Unmarshal(j.Result, &report); err != nil || len(report.Problems) != 1 || len(report.Problems[0].Affected) != 3 {
		t.Errorf("report: got %s (%v), want one problem that affects three points", j.Result, err)
	}
	if got := metric(t, registry, "sendense_verify_problems_total"); got != 1 {
		t.Errorf("problems counted: got %v, want 1", got)
	}

	plain := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest"})
	checked := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest", Verified: true})
	buf := make([]byte, 64<<10)
	if err := readAt(t, plain, buf, 20*(64<<10)); err != nil {
		t.Errorf("read without verification: %v", err)
	}
	if err := readAt(t, checked, buf, 20*(64<<10)); !errors.Is(err, syscall.EIO) {
		t.Errorf("verified read of the damage: got %v, want EIO", err)
	}
	if err := readAt(t, checked, buf, 21*(64<<10)); err != nil || !bytes.Equal(buf, vda[2][21*(64<<10):22*(64<<10)]) {
		t.Errorf("verified read beside the damage: got %v, want what the disk held", err)
	}
	if got := metric(t, registry, "sendense_nbd_requests_total", "export", "read", "error"); got != 1 {
		t.Errorf("failed reads counted: got %v, want 1", got)
	}
}

func readAt(t *testing.T, e appliance.Export, p []byte, off int64) error {
	t.Helper()
	dev, err := nbdclient.Open(t.Context(), e.Disks[0].URI, nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	return dev.ReadAt(t.Context(), p, off)
}

// metric returns the value of a counter or gauge that has the label values.
func metric(t *testing.T, g prometheus.Gatherer, name string, labels ...string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
	metrics:
		for _, m := range f.GetMetric() {
			have := map[string]bool{}
			for _, l := range m.GetLabel() {
				have[l.GetValue()] = true
			}
			for _, l := range labels {
				if !have[l] {
					continue metrics
				}
			}
			if f.GetName() == name {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("there is no metric %s %v", name, labels)
	return 0
}

func TestMetricsAreWellNamedAndFew(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	r := open(t, func(o *appliance.Options) { o.Metrics = appliance.NewMetrics(registry) })
	src, ids, _ := three(t, r)
	export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest"})
	j, err := r.Verify(t.Context(), appliance.VerifyRequest{})
	r.wait(t, j, err)
	vm, err := src.Resolve(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "sendense_") {
			t.Errorf("metric %s: want the prefix sendense_", f.GetName())
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				for _, secret := range append(ids, "web1", vm.UUID, "vda", j.ID) {
					if strings.Contains(l.GetValue(), secret) {
						t.Errorf("metric %s: label %s=%s tells of %s", f.GetName(), l.GetName(), l.GetValue(), secret)
					}
				}
			}
		}
	}
	r.close() // so that the jobs are counted
	for name, want := range map[string]float64{"backup": 3, "verify": 1} {
		if got := metric(t, registry, "sendense_jobs_total", name, "succeeded"); got != want {
			t.Errorf("jobs counted as %s: got %v, want %v", name, got, want)
		}
	}
	if got := metric(t, registry, "sendense_verified_bytes_total"); got < 2*mib {
		t.Errorf("bytes verified: got %v, want at least %d", got, 2*mib)
	}
	if got := metric(t, registry, "sendense_nbd_clients", "export"); got != 0 {
		t.Errorf("clients after the end: got %v, want 0", got)
	}
}
