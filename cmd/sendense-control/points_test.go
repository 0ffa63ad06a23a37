package main_test

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"
)

// columns returns the cells of a table by heading, a line of the table each.
func columns(t *testing.T, table string) []map[string]string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(table), "\n")
	var rows []map[string]string
	for _, line := range lines[1:] {
		row := map[string]string{}
		for _, heading := range strings.Fields(lines[0]) {
			at := strings.Index(lines[0], heading)
			cell, _, _ := strings.Cut(line[at:], "  ")
			row[heading] = strings.TrimSpace(cell)
		}
		rows = append(rows, row)
	}
	return rows
}

func TestTheRatioIsWhatCompressionGains(t *testing.T) {
	s, flags, _ := site(t, false)
	for i, more := range [][]string{{"--full", "--compress", "zstd"}, {"--full"}, nil} {
		content := bytes.Repeat([]byte("again and again "), 4<<20/16)
		content[0] = byte(i)
		if err := os.WriteFile(s.Path("disk.raw"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		s.Good(s.Backup(flags, s.Path("disk.raw"), more...))
	}
	rows := columns(t, s.Good(s.Control(flags, "points web1")).Stdout)
	for i, compressed := range []bool{false, false, false, false, true, false, false} {
		got := rows[i]["RATIO"]
		if !compressed && got != "-" {
			t.Errorf("ratio of point %d, which holds nothing compressed: got %q, want -", i, got)
		}
		if n, err := strconv.ParseFloat(got, 64); compressed && (err != nil || n < 10) {
			t.Errorf("ratio of point %d, which is the same all over: got %q, want 10 at least", i, got)
		}
	}
}
