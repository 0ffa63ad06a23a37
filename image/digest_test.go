package image_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/requires"
)

// digestsOf encodes runs for a disk of 1000 clusters of 512 bytes.
func digestsOf(t testing.TB, runs []image.DigestRun) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := image.NewDigestWriter(&b, image.DigestOptions{ClusterSize: 512, Size: 1000 * 512})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		if r.Zero {
			err = w.AddZeroes(r.First, r.Count)
		} else {
			err = w.Add(r.First, r.Digest)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// everyThird is data in clusters 0, 3, … and zeroes in the 400 clusters behind.
func everyThird() []image.DigestRun {
	var runs []image.DigestRun
	for c := int64(0); c < 600; c += 3 {
		runs = append(runs, image.DigestRun{First: c, Count: 1, Digest: image.Sum([]byte{byte(c), byte(c >> 8)})})
	}
	return append(runs, image.DigestRun{First: 600, Count: 400, Zero: true})
}

func TestDigestsGiveBackWhatWasWritten(t *testing.T) {
	runs := everyThird()
	b := digestsOf(t, runs)
	d, err := image.ReadDigests(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := d.Summary(); s.Data != 200 || s.Zero != 400 {
		t.Errorf("summary: got %d and %d, want 200 and 400", s.Data, s.Zero)
	}
	i := 0
	err = d.Range(t.Context(), 0, 1000, func(r *image.DigestRun) error {
		if *r != runs[i] {
			t.Errorf("run %d: got %v, want %v", i, *r, runs[i])
		}
		i++
		return nil
	})
	if err != nil || i != len(runs) {
		t.Errorf("walk: got %d runs and %v, want %d", i, err, len(runs))
	}
	for c := range int64(1000) {
		r, err := d.Lookup(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case c >= 600:
			if r == nil || !r.Zero || r.First != c || r.Count != 1 {
				t.Errorf("cluster %d: got %v, want zeroes", c, r)
			}
		case c%3 == 0:
			if r == nil || r.Zero || r.Digest != runs[c/3].Digest {
				t.Errorf("cluster %d: got %v, want %v", c, r, runs[c/3])
			}
		case r != nil:
			t.Errorf("cluster %d: got %v, want nothing", c, r)
		}
	}
}

func TestDigestsOfNothing(t *testing.T) {
	b := digestsOf(t, nil)
	d, err := image.ReadDigests(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if r, err := d.Lookup(t.Context(), 5); r != nil || err != nil {
		t.Errorf("lookup: got %v, %v, want nothing", r, err)
	}
}

func TestDigestWriterRefusesDisorder(t *testing.T) {
	for _, tt := range []struct {
		name string
		add  func(w *image.DigestWriter) error
	}{
		{"the same cluster again", func(w *image.DigestWriter) error { return w.Add(5, image.Digest{}) }},
		{"a cluster before", func(w *image.DigestWriter) error { return w.AddZeroes(4, 1) }},
		{"a cluster behind the end", func(w *image.DigestWriter) error { return w.Add(1000, image.Digest{}) }},
		{"a run over the end", func(w *image.DigestWriter) error { return w.AddZeroes(999, 2) }},
		{"an empty run", func(w *image.DigestWriter) error { return w.AddZeroes(7, 0) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, err := image.NewDigestWriter(&bytes.Buffer{}, image.DigestOptions{ClusterSize: 512, Size: 512_000})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Add(5, image.Digest{}); err != nil {
				t.Fatal(err)
			}
			if err := tt.add(w); err == nil {
				t.Error("got no error")
			}
		})
	}
}

func TestEveryFlippedBitOfDigestsIsSeen(t *testing.T) {
	good := digestsOf(t, everyThird())
	for at := range good {
		bad := bytes.Clone(good)
		bad[at] ^= 1 << (at % 8)
		d, err := image.ReadDigests(bytes.NewReader(bad), int64(len(bad)))
		if err == nil {
			err = d.Check(t.Context())
		}
		if !errors.Is(err, image.ErrBadDigests) && !errors.Is(err, image.ErrUnsupported) {
			t.Fatalf("byte %d: got %v, want %v", at, err, image.ErrBadDigests)
		}
	}
	for n := 0; n < len(good); n += 97 {
		if _, err := image.ReadDigests(bytes.NewReader(good), int64(n)); !errors.Is(err, image.ErrBadDigests) {
			t.Fatalf("cut to %d bytes: got %v, want %v", n, err, image.ErrBadDigests)
		}
	}
}

func TestAuditorNeedsOnlyStockTools(t *testing.T) {
	requires.Tool(t, "b3sum", "head", "tail")
	path := filepath.Join(t.TempDir(), "x.digests")
	if err := os.WriteFile(path, digestsOf(t, everyThird()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", `head -c -32 "$1" | b3sum --no-names; tail -c 32 "$1" | od -An -v -tx1 | tr -d ' \n'`, "sh", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	sums := strings.Fields(string(out))
	if len(sums) != 2 || sums[0] != sums[1] {
		t.Errorf("checksums: got %v, want twice the same", sums)
	}
	b, err := exec.Command("sh", "-c", `printf abc | b3sum --no-names`).Output()
	if err != nil {
		t.Fatal(err)
	}
	sum := image.Sum([]byte("abc"))
	if want := strings.TrimSpace(string(b)); want != hexOf(sum) {
		t.Errorf("digest: got %s, want %s", hexOf(sum), want)
	}
}

func hexOf(d image.Digest) string {
	const digits = "0123456789abcdef"
	var s []byte
	for _, b := range d {
		s = append(s, digits[b>>4], digits[b&15])
	}
	return string(s)
}

func FuzzDigests(f *testing.F) {
	f.Add(digestsOf(f, everyThird()), int64(5))
	f.Add(digestsOf(f, nil), int64(0))
	f.Add([]byte("SNDSDGST"), int64(1))
	f.Fuzz(func(t *testing.T, b []byte, c int64) {
		d, err := image.ReadDigests(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if d.Check(t.Context()) != nil {
			_, _ = d.Lookup(t.Context(), c)
			return
		}
		// What passes the check is what a writer makes of its entries.
		var again bytes.Buffer
		w, err := image.NewDigestWriter(&again, d.Options())
		if err != nil {
			t.Fatal(err)
		}
		n := d.Options().Size/d.Options().ClusterSize + 1
		err = d.Range(t.Context(), 0, n, func(r *image.DigestRun) error {
			if r.Zero {
				return w.AddZeroes(r.First, r.Count)
			}
			return w.Add(r.First, r.Digest)
		})
		if err != nil {
			t.Fatalf("write again: %v", err)
		}
	})
}
