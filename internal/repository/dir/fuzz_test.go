package dir

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/sendense/sendense/internal/repository/repositorytest"
)

// sealAgain gives changed content the right checksum, so that a fuzzer gets past it.
func sealAgain(b []byte) []byte {
	i := bytes.LastIndex(b, []byte(sealBegin))
	if i < 0 {
		return b
	}
	var v rawValue = append(bytes.Clone(b[:i]), "\n}"...)
	sealed, err := seal(v)
	if err != nil {
		return b
	}
	return sealed
}

// rawValue is JSON as it is.
type rawValue []byte

func (v rawValue) MarshalJSON() ([]byte, error) { return v, nil }

func seeds(f *testing.F, name string) {
	f.Helper()
	r, err := Open(f.TempDir(), Options{})
	if err != nil {
		f.Fatal(err)
	}
	defer r.Close()
	m := repositorytest.NewModel(f, repositorytest.Subject{Repository: r})
	m.Add(repositorytest.Change{VM: repositorytest.Web, Disks: map[string]int64{"vda": 5000, "vdb": 512}})
	m.Add(repositorytest.Change{VM: repositorytest.Web})
	b, err := os.ReadFile(filepath.Join(r.root, string(repositorytest.Web), name))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add([]byte(`{"format": 1}`))
	f.Add([]byte{})
}

func FuzzMetadata(f *testing.F) {
	seeds(f, metadataName)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(sealAgain(b), repositorytest.Web)
		if err != nil {
			return
		}
		again, err := r.encode()
		if err != nil {
			t.Fatalf("encode: %v", err)
		}
		if _, err := parseRecord(again, repositorytest.Web); err != nil {
			t.Fatalf("parse again: %v", err)
		}
		for i := range r.Points {
			for k := range r.Points[i].Disks {
				r.layers(&r.Points[i], &r.Points[i].Disks[k])
			}
			_ = r.export(&r.Points[i])
		}
		for _, d := range r.Disks {
			r.chainOf(d)
		}
	})
}

func FuzzChainFile(f *testing.F) {
	seeds(f, "disk-0/"+chainName)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseChainFile(sealAgain(b))
		if err != nil {
			return
		}
		again, err := seal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseChainFile(again); err != nil {
			t.Fatalf("parse again: %v", err)
		}
	})
}

func TestEveryFlippedBitOfARecordIsSeen(t *testing.T) {
	base, _ := baseline(t)
	for _, name := range []string{metadataName, "disk-0/" + chainName} {
		good, err := os.ReadFile(filepath.Join(base, string(repositorytest.Web), name))
		if err != nil {
			t.Fatal(err)
		}
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << (i % 8)
			if _, err := parseRecord(bad, repositorytest.Web); err == nil && name == metadataName {
				t.Fatalf("%s: byte %d: got no error", name, i)
			}
			if _, err := parseChainFile(bad); err == nil {
				t.Fatalf("%s: byte %d: got no error", name, i)
			}
		}
	}
}

func TestSanitizedNamesAreFileNames(t *testing.T) {
	for name, want := range map[string]string{
		"pgtest2": "pgtest2", "web 1": "web-1", "../../etc": "etc", "": "vm", "...": "vm", "-rf": "rf",
		"wéb": "w-b", "新しい": "vm", "a/b\\c": "a-b-c", "x  y": "x-y", "tail!": "tail",
	} {
		if got := sanitize(name); got != want {
			t.Errorf("sanitize %q: got %q, want %q", name, got, want)
		}
	}
}
