package api_test

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendense/sendense/api"
	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/capture"
	"github.com/sendense/sendense/internal/guestfs"
	"github.com/sendense/sendense/internal/instant"
	"github.com/sendense/sendense/internal/machine"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/restore"
	"github.com/sendense/sendense/internal/restore/fit"
)

// document is docs/openapi.json as far as the tests look at it.
type document struct {
	OpenAPI    string                                `json:"openapi"`
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components struct {
		Parameters map[string]any    `json:"parameters"`
		Responses  map[string]any    `json:"responses"`
		Schemas    map[string]schema `json:"schemas"`
	} `json:"components"`
}

type schema struct {
	Ref        string            `json:"$ref"`
	Type       string            `json:"type"`
	Format     string            `json:"format"`
	Encoding   string            `json:"contentEncoding"`
	Enum       []string          `json:"enum"`
	Items      *schema           `json:"items"`
	Properties map[string]schema `json:"properties"`
	Required   []string          `json:"required"`
	Additional any               `json:"additionalProperties"`
}

type operation struct {
	ID        string         `json:"operationId"`
	Summary   string         `json:"summary"`
	Responses map[string]any `json:"responses"`
}

func load(t *testing.T) (d document, raw []byte) {
	t.Helper()
	raw, err := os.ReadFile("../docs/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	return d, raw
}

// types are what the schemas of the document describe.
var types = map[string]any{
	"Problem": api.Problem{}, "Health": api.Health{}, "VM": appliance.VM{}, "Point": appliance.Point{}, "PointDisk": appliance.PointDisk{},
	"Audit": repository.Audit{}, "VMPoint": api.VMPoint{}, "Usage": repository.Usage{}, "PointUsage": repository.PointUsage{},
	"VerifyRequest": appliance.VerifyRequest{}, "ExportSpec": appliance.ExportSpec{}, "Export": appliance.Export{},
	"ExportDisk": appliance.ExportDisk{}, "Job": appliance.Job{}, "JobError": appliance.JobError{}, "Progress": appliance.Progress{},
	"BackupResult": appliance.BackupResult{}, "Report": repository.Report{}, "Damage": repository.Problem{},
	"BeginRequest": appliance.BeginRequest{}, "DraftEvent": api.DraftEvent{}, "DraftInfo": appliance.DraftInfo{},
	"ParentInfo": appliance.ParentInfo{}, "ParentDisk": appliance.ParentDisk{}, "DiskRequest": api.DiskRequest{},
	"DraftDiskInfo": appliance.DraftDiskInfo{}, "DiffersRequest": api.DiffersRequest{}, "DiffersReply": api.DiffersReply{},
	"ProgressReport": api.ProgressReport{}, "CommitRequest": appliance.CommitRequest{}, "Config": capture.Config{},
	"DiskResult": capture.DiskResult{}, "AbortRequest": api.AbortRequest{}, "Code": appliance.Code(""),
	"SessionSpec": appliance.SessionSpec{}, "MachineSpec": appliance.MachineSpec{}, "Session": appliance.Session{},
	"SessionDisk": appliance.SessionDisk{}, "SessionMachine": appliance.SessionMachine{}, "SessionState": appliance.SessionState(""),
	"SessionEnd": api.SessionEnd{}, "SessionStart": appliance.SessionStart{}, "SessionResume": api.SessionResume{}, "SessionMigration": appliance.SessionMigration{},
	"MigrateRequest": appliance.MigrateRequest{}, "MigrateResult": appliance.MigrateResult{}, "CheckRequest": appliance.CheckRequest{}, "BootCheck": appliance.BootCheck{},
	"Guest": instant.Guest{}, "GuestFileSystem": instant.GuestFileSystem{},
	"Contents": appliance.Contents{}, "OS": guestfs.OS{}, "Volume": guestfs.Volume{}, "File": appliance.File{},
	"FileChange": appliance.FileChange{}, "FileVersion": appliance.FileVersion{}, "FileLine": api.FileLine{},
	"FilePlace":      api.FilePlace{},
	"RestoreRequest": appliance.RestoreRequest{}, "RestorePlan": restore.Plan{}, "PlannedDisk": restore.PlannedDisk{},
	"RestoreMachine": appliance.RestoreMachine{}, "PlannedMachine": restore.PlannedMachine{}, "Hardware": machine.Hardware{},
	"HardwareDisk": machine.HardwareDisk{}, "HardwareNIC": machine.HardwareNIC{}, "Finding": fit.Finding{},
	"RestoreResult": restore.Result{}, "RestoredDisk": restore.RestoredDisk{}, "MadeMachine": restore.MadeMachine{},
	"KeyringRequest": api.KeyringRequest{}, "Keyring": api.Keyring{},
	"MountRequest": api.MountRequest{}, "Mount": appliance.MountSpec{},
}

var variable = regexp.MustCompile(`\{(\w+):[^}]*\}`)

func TestDocumentHasTheRoutesOfTheRouter(t *testing.T) {
	d, _ := load(t)
	documented := map[string]bool{}
	ids := map[string]string{}
	for path, item := range d.Paths {
		for method, raw := range item {
			if method == "parameters" {
				continue
			}
			at := strings.ToUpper(method) + " " + path
			documented[at] = true
			var o operation
			if err := json.Unmarshal(raw, &o); err != nil {
				t.Fatalf("%s: %v", at, err)
			}
			if other := ids[o.ID]; other != "" || o.ID == "" || o.Summary == "" || o.Responses["default"] == nil {
				t.Errorf("%s: want an id of its own (not that of %q), a summary and a response to errors, got %+v", at, other, o)
			}
			ids[o.ID] = at
		}
		for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(path, -1) {
			if !strings.Contains(string(item["parameters"]), `"#/components/parameters/`+m[1]+`"`) {
				t.Errorf("%s: parameter %s is not described", path, m[1])
			}
		}
	}
	router := api.Handler(nil, api.Options{Gatherer: prometheus.NewRegistry()}).(*mux.Router)
	err := router.Walk(func(r *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		methods, err := r.GetMethods()
		if err != nil {
			return nil //nolint:nilerr // a prefix of others
		}
		path, err := r.GetPathTemplate()
		if err != nil {
			return err
		}
		for _, m := range methods {
			at := m + " " + variable.ReplaceAllString(path, "{$1}")
			if !documented[at] {
				t.Errorf("%s is not in the document", at)
			}
			delete(documented, at)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for at := range documented {
		t.Errorf("%s is in the document, and there is no such route", at)
	}
}

func TestDocumentRefersToWhatItHas(t *testing.T) {
	d, raw := load(t)
	if !strings.HasPrefix(d.OpenAPI, "3.1.") {
		t.Errorf("version: got %s, want 3.1", d.OpenAPI)
	}
	used := map[string]bool{}
	for _, m := range regexp.MustCompile(`"\$ref": "#/components/(\w+)/(\w+)"`).FindAllStringSubmatch(string(raw), -1) {
		used[m[2]] = true
		_, isSchema := d.Components.Schemas[m[2]]
		known := map[string]bool{"schemas": isSchema, "parameters": d.Components.Parameters[m[2]] != nil,
			"responses": d.Components.Responses[m[2]] != nil}
		if !known[m[1]] {
			t.Errorf("there is no %s/%s", m[1], m[2])
		}
	}
	results := []string{"BackupResult", "Report", "RestoreResult"} // of jobs, told in words
	for name := range d.Components.Schemas {
		if !used[name] && !slices.Contains(results, name) {
			t.Errorf("schema %s is used nowhere", name)
		}
	}
}

func TestSchemasHaveTheMembersOfTheTypes(t *testing.T) {
	d, _ := load(t)
	got, want := slices.Sorted(maps.Keys(d.Components.Schemas)), slices.Sorted(maps.Keys(types))
	if !slices.Equal(got, want) {
		t.Errorf("schemas: got %v, want %v", got, want)
	}
	for name, v := range types {
		s, goType := d.Components.Schemas[name], reflect.TypeOf(v)
		if goType.Kind() != reflect.Struct {
			continue
		}
		t.Run(name, func(t *testing.T) {
			var members, required []string
			for _, f := range reflect.VisibleFields(goType) {
				tag, ok := f.Tag.Lookup("json")
				if !ok {
					if !f.Anonymous {
						t.Errorf("field %s has no name in JSON", f.Name)
					}
					continue
				}
				member, options, _ := strings.Cut(tag, ",")
				if member == "-" {
					continue
				}
				members = append(members, member)
				if !strings.Contains(options, "omit") {
					required = append(required, member)
				}
				if p, ok := s.Properties[member]; ok {
					checkType(t, member, p, f.Type)
				}
			}
			same(t, "members", slices.Collect(maps.Keys(s.Properties)), members)
			if s.Additional == nil { // a reply: what is always there is required
				same(t, "required members", s.Required, required)
			}
		})
	}
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// checkType checks that a schema describes how a type is encoded.
func checkType(t *testing.T, at string, s schema, typ reflect.Type) {
	t.Helper()
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	want := schema{}
	switch {
	case typ == reflect.TypeFor[json.RawMessage]():
	case typ == reflect.TypeFor[time.Time]():
		want = schema{Type: "string", Format: "date-time"}
	case typ == reflect.TypeFor[[]byte]():
		want = schema{Type: "string", Encoding: "base64"}
	case typ == reflect.TypeFor[appliance.Code](), typ == reflect.TypeFor[appliance.SessionState](), typ.Kind() == reflect.Struct:
		for name, v := range types {
			if reflect.TypeOf(v).ConvertibleTo(typ) && s.Ref == "#/components/schemas/"+name {
				return
			}
		}
		t.Errorf("%s: got %q, want a reference to %s", at, s.Ref, typ)
		return
	case typ.Kind() == reflect.Slice:
		if s.Type != "array" || s.Items == nil {
			t.Errorf("%s: got %q, want an array", at, s.Type)
			return
		}
		checkType(t, at+"[]", *s.Items, typ.Elem())
		return
	case typ.Kind() == reflect.Int64:
		want = schema{Type: "integer", Format: "int64"}
	default:
		want = schema{Type: map[reflect.Kind]string{reflect.String: "string", reflect.Bool: "boolean",
			reflect.Int: "integer", reflect.Uint32: "integer", reflect.Map: "object", reflect.Float64: "number"}[typ.Kind()], Format: s.Format}
	}
	if s.Type != want.Type || s.Format != want.Format || s.Encoding != want.Encoding {
		t.Errorf("%s: got %s %s %s, want %s %s %s", at, s.Type, s.Format, s.Encoding, want.Type, want.Format, want.Encoding)
	}
}
