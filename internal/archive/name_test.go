package archive_test

import (
	"testing"

	"github.com/sendense/sendense/internal/archive"
)

func TestNamesOfZipsMeanTheSameEverywhere(t *testing.T) {
	names := map[string]string{
		"plain/name.txt": "plain/name.txt", "Müller/日本": "Müller/日本", "libc6:amd64.list": "libc6:amd64.list", "1:x": "1:x",
		`a\b`: "a\uf05cb", "C:": "C\uf03a", "C:x/d:y/:z": "C\uf03ax/d\uf03ay/:z", "new\nline\x7f": "new\uf00aline\uf07f",
		"latin-\xe9/\xff": "latin-\uf0e9/\uf0ff", "a\uf05cb": "a\uf0ef\uf081\uf09cb", "a\ufffd": "a\ufffd", "ü:": "ü:",
	}
	was := map[string]string{}
	for name, want := range names {
		w, err := archive.New(nil, archive.Zip)
		if err != nil {
			t.Fatal(err)
		}
		got := w.Renamed(name)
		if got != want {
			t.Errorf("%q: got %+q, want %+q", name, got, want)
		}
		if other, ok := was[got]; ok {
			t.Errorf("%q and %q are both called %+q", name, other, got)
		}
		was[got] = name
	}
}
