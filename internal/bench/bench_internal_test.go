package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRatioIsTheMedianOfTheRounds(t *testing.T) {
	s := samples{"a": {10, 20, 90, 40}, "b": {5, 10, 30, 40}}
	if got := s.median("a"); got != 30 {
		t.Errorf("median: got %v, want 30", got)
	}
	if got := s.ratio("a", "b"); got != 2 {
		t.Errorf("ratio: got %v, want 2", got)
	}
}

func TestTableTellsWhatWasMissed(t *testing.T) {
	b := &bench{size: 64 << 20, runs: 5}
	b.add(row{figure: "read", unit: "MiB/s", own: 1234.5, qemuNBD: 1000, checks: []check{
		atLeast("qemu-nbd", 1.2, 1.5), atMost("nbdkit", 0.4, 0.45)}})
	got := machine{lines: []string{"a machine"}}.table(b)
	for _, want := range []string{
		"| read | MiB/s | 1234 | 1000 |  |  |  |  |  | ≥ 1.5 × qemu-nbd | 1.20 × | **missed** |",
		"|  |  |  |  |  |  |  |  |  | ≤ 0.45 × nbdkit | 0.40 × | met |", "a machine."} {
		if !strings.Contains(got, want) {
			t.Errorf("table: got %q, want %q in it", got, want)
		}
	}
}

func TestPageHasAPlaceForTheTable(t *testing.T) {
	page, err := os.ReadFile("../../docs/PERFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(path, page, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"old\n", "new\n"} {
		if err := updatePage(path, table); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(got), tableBegin+"new\n"+tableEnd) || strings.Contains(string(got), "old\n") {
		t.Errorf("page: got %q, %v, want the new table in place of the old", got, err)
	}
}
