package api

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/sendense/sendense/appliance"
)

// codes returns the codes that package appliance declares.
func codes(t *testing.T) (all []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../appliance/error.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 {
			return true
		}
		if id, ok := v.Type.(*ast.Ident); ok && id.Name == "Code" {
			code, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, code)
		}
		return true
	})
	if len(all) < 10 {
		t.Fatalf("codes: got %v, want at least ten", all)
	}
	return all
}

func TestEveryCodeHasAStatus(t *testing.T) {
	all := codes(t)
	for _, c := range all {
		if s := statuses[appliance.Code(c)]; s < 400 {
			t.Errorf("status of %s: got %d, want one of an error", c, s)
		}
	}
	if len(statuses) != len(all) {
		t.Errorf("statuses: got %d, want %d", len(statuses), len(all))
	}
}

func TestTheDocumentHasEveryCode(t *testing.T) {
	b, err := os.ReadFile("../docs/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Components struct {
			Schemas struct{ Code struct{ Enum []string } }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if got, want := d.Components.Schemas.Code.Enum, codes(t); !slices.Equal(got, want) {
		t.Errorf("codes: got %v, want %v", got, want)
	}
}
