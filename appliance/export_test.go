package appliance_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/capture/capturetest"
	"github.com/sendense/sendense/internal/nbdclient"
	"github.com/sendense/sendense/internal/requires"
	"github.com/sendense/sendense/nbdserver/tlstest"
)

// three makes three points of web1, which has two disks, and returns their ids and
// what the first disk held at each.
func three(t *testing.T, r *rig) (src *capturetest.Source, ids []string, vda [][]byte) {
	t.Helper()
	src = machine(t, "web1", 2*mib)
	src.Add("vdb", mib)
	for i := range 3 {
		src.Write("vda", noise(uint64(10+i), 64<<10), int64(i)*(256<<10))
		vda = append(vda, src.Content()["vda"])
		ids = append(ids, r.backup(t, src, "web1").PointID)
	}
	return src, ids, vda
}

func export(t *testing.T, r *rig, s appliance.ExportSpec) appliance.Export {
	t.Helper()
	e, err := r.Export(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestAnExportIsThePointAsStockClientsSeeIt(t *testing.T) {
	requires.Tool(t, "nbdcopy", "nbdinfo", "qemu-img")
	r := open(t, nil)
	src, ids, vda := three(t, r)
	for i, id := range ids {
		e := export(t, r, appliance.ExportSpec{VM: "web1", Point: id})
		if len(e.Disks) != 2 || e.Disks[0].Export != "" || e.Disks[1].Export != "disk-1" {
			t.Fatalf("disks: got %+v, want the default export and disk-1", e.Disks)
		}
		for _, name := range []string{"", "disk-0"} {
			if got := read(t, "nbd+unix:///"+name+"?socket="+e.Socket); !bytes.Equal(got, vda[i]) {
				t.Errorf("export %q of point %s differs from what the disk held", name, id)
			}
		}
		if got := read(t, e.Disks[1].URI); !bytes.Equal(got, src.Content()["vdb"]) {
			t.Errorf("export disk-1 of point %s differs from what the disk held", id)
		}
		if info, err := os.Stat(e.Socket); err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("socket: got %v (%v), want mode 0660", info.Mode(), err)
		}
		if got := requires.Run(t, "nbdinfo", "--json", e.Disks[0].URI); !strings.Contains(got, `"is_read_only": true`) {
			t.Errorf("nbdinfo: got %s, want a read-only export", got)
		}
		if err := r.Unexport(t.Context(), e.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(e.Socket); !os.IsNotExist(err) {
			t.Errorf("socket after the end: got %v, want none", err)
		}
	}
	one := 1
	e := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest", Disk: &one})
	if len(e.Disks) != 1 || e.Disks[0].Index != 1 || e.Disks[0].Export != "" {
		t.Errorf("export of one disk: got %+v, want disk 1 as the default export", e.Disks)
	}
}

func TestSinceContextsTellWhatChanged(t *testing.T) {
	requires.Tool(t, "nbdinfo")
	r := open(t, nil)
	_, ids, vda := three(t, r)
	e := export(t, r, appliance.ExportSpec{VM: "web1", Point: ids[2]})
	if want := []string{ids[1], ids[0]}; !slices.Equal(e.Disks[0].Since, want) {
		t.Errorf("since: got %v, want %v", e.Disks[0].Since, want)
	}
	for i, id := range ids[:2] {
		var extents []struct{ Offset, Length, Type int64 }
		out := requires.Run(t, "nbdinfo", "--json", "--map=qemu:dirty-bitmap:since-"+id, e.Disks[0].URI)
		if err := json.Unmarshal([]byte(out), &extents); err != nil {
			t.Fatal(err)
		}
		dirty := map[int64]bool{} // clusters
		for _, x := range extents {
			for c := x.Offset; x.Type == 1 && c < x.Offset+x.Length; c += 64 << 10 {
				dirty[c/(64<<10)] = true
			}
		}
		for c := range int64(2 * mib / (64 << 10)) {
			from, to := c*(64<<10), (c+1)*(64<<10)
			if want := !bytes.Equal(vda[2][from:to], vda[i][from:to]); dirty[c] != want {
				t.Errorf("cluster %d since %s: got %v, want %v", c, id, dirty[c], want)
			}
		}
	}
}

func TestExportsAreRefusedWithAReason(t *testing.T) {
	r := open(t, nil)
	_, ids, _ := three(t, r)
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	live, err := net.Listen("unix", filepath.Join(dir, "live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	nine := 9
	for _, c := range []struct {
		name string
		spec appliance.ExportSpec
		code appliance.Code
		word string
	}{
		{"a machine that is not there", appliance.ExportSpec{VM: "web9", Point: "latest"}, appliance.CodeNotFound, "web9"},
		{"a point that is not there", appliance.ExportSpec{VM: "web1", Point: "latest~7"}, appliance.CodeNotFound, "latest~7"},
		{"a disk that is not there", appliance.ExportSpec{VM: "web1", Point: "latest", Disk: &nine}, appliance.CodeNotFound, "9"},
		{"a path that a file has", appliance.ExportSpec{VM: "web1", Point: ids[0], Socket: file}, appliance.CodeBusy, "already"},
		{"a path that a server listens on", appliance.ExportSpec{VM: "web1", Point: ids[0], Socket: live.Addr().String()}, appliance.CodeBusy, "already"},
		{"a path in no folder", appliance.ExportSpec{VM: "web1", Point: ids[0], Socket: filepath.Join(dir, "x", "y")}, appliance.CodeNotFound, "no folder"},
		{"all addresses without TLS", appliance.ExportSpec{VM: "web1", Point: ids[0], Listen: "0.0.0.0:0"}, appliance.CodeInvalid, "unencrypted"},
		{"all addresses of IPv6 without TLS", appliance.ExportSpec{VM: "web1", Point: ids[0], Listen: "[::]:0"}, appliance.CodeInvalid, "unencrypted"},
		{"no address at all without TLS", appliance.ExportSpec{VM: "web1", Point: ids[0], Listen: ":0"}, appliance.CodeInvalid, "unencrypted"},
		{"a socket and an address", appliance.ExportSpec{VM: "web1", Point: ids[0], Listen: "127.0.0.1:0", Socket: "x"}, appliance.CodeInvalid, "either"},
		{"a folder without certificates", appliance.ExportSpec{VM: "web1", Point: ids[0], Listen: "127.0.0.1:0", TLSDir: dir}, appliance.CodeNotFound, "certificates"},
		{"one that nobody would bring back", appliance.ExportSpec{VM: "web1", Point: ids[0], Persist: true}, appliance.CodeInvalid, "bring"},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantCode(t, second(r.Export(t.Context(), c.spec)), c.code, c.word)
			if n := len(r.Exports(t.Context())); n != 0 {
				t.Errorf("exports: got %d, want none", n)
			}
		})
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("file: got %q (%v), want it as it was", b, err)
	}
	wantCode(t, r.Unexport(t.Context(), "export-x"), appliance.CodeNotFound)
}

func TestASocketOfTheDeadIsReplaced(t *testing.T) {
	r := open(t, nil)
	three(t, r)
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	e := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest", Socket: path})
	dev, err := nbdclient.Open(t.Context(), e.Disks[0].URI, nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dev.Close()
}

func TestAnExportOverTCP(t *testing.T) {
	requires.Tool(t, "nbdcopy")
	r := open(t, nil)
	_, _, vda := three(t, r)
	e := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest", Listen: "127.0.0.1:0"})
	if !strings.HasPrefix(e.Disks[0].URI, "nbd://127.0.0.1:") || strings.Contains(e.Disks[0].URI, ":0/") {
		t.Errorf("URI: got %s, want one with the port that was chosen", e.Disks[0].URI)
	}
	if got := read(t, e.Disks[0].URI); !bytes.Equal(got, vda[2]) {
		t.Error("content differs from what the disk held")
	}
}

func TestAnExportWithTLSAsksForACertificate(t *testing.T) {
	requires.Tool(t, "nbdinfo", "qemu-img")
	r := open(t, nil)
	three(t, r)
	ours, theirs := tlstest.Certificates(t), tlstest.Certificates(t)
	b, err := os.ReadFile(filepath.Join(ours, "ca-cert.pem"))
	if err == nil { // a client that trusts us, which is no reason to trust it
		err = os.WriteFile(filepath.Join(theirs, "ca-cert.pem"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	e := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest", Listen: "0.0.0.0:0", TLSDir: ours})
	_, port, err := net.SplitHostPort(e.Listen)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(e.Disks[0].URI, "nbds://") {
		t.Errorf("URI: got %s, want nbds", e.Disks[0].URI)
	}
	uri := func(scheme, dir string) string {
		return fmt.Sprintf("%s://127.0.0.1:%s/?tls-certificates=%s", scheme, port, dir)
	}
	if out := requires.Run(t, "nbdinfo", "--size", uri("nbds", ours)); strings.TrimSpace(out) != fmt.Sprint(2*mib) {
		t.Errorf("size: got %s, want %d", out, 2*mib)
	}
	if out, err := command(t, "nbdinfo", "--size", uri("nbds", theirs)); err == nil {
		t.Errorf("a client of another CA was let in: %s", out)
	}
	if out, err := command(t, "nbdinfo", "--size", "nbd://127.0.0.1:"+port); err == nil {
		t.Errorf("a client without TLS was let in: %s", out)
	}
	requires.Run(t, "qemu-img", "info", "--object", "tls-creds-x509,id=tls0,endpoint=client,dir="+ours,
		"--image-opts", "driver=nbd,host=127.0.0.1,tls-creds=tls0,port="+port)
}

func TestPersistentExportsComeBack(t *testing.T) {
	requires.Tool(t, "nbdcopy")
	owner := func(o *appliance.Options) { o.RestoreExports = true }
	r := open(t, owner)
	_, ids, vda := three(t, r)
	socket := filepath.Join(shortDir(t), "s")
	kept := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest~1", Socket: socket, Persist: true})
	tcp := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest", Listen: "127.0.0.1:0", Persist: true})
	plain := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest", Persist: true})
	export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest"})
	ended := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest", Persist: true})
	if err := r.Unexport(t.Context(), ended.ID); err != nil {
		t.Fatal(err)
	}
	r.close()

	next := start(t, r.repo, r.journal.reborn("owner-2"), shortDir(t), owner)
	var got []string
	for _, e := range next.Exports(t.Context()) {
		got = append(got, e.ID)
		switch e.ID {
		case kept.ID:
			if e.Socket != socket || e.Point != ids[1] || !e.Created.Equal(kept.Created) {
				t.Errorf("export: got %+v, want %+v", e, kept)
			}
			if !bytes.Equal(read(t, e.Disks[0].URI), vda[1]) {
				t.Error("content differs from what the disk held")
			}
		case tcp.ID:
			if e.Listen != tcp.Listen {
				t.Errorf("address: got %s, want %s again", e.Listen, tcp.Listen)
			}
		case plain.ID:
			if filepath.Dir(e.Socket) != next.run {
				t.Errorf("socket: got %s, want it in the run directory %s", e.Socket, next.run)
			}
		}
	}
	want := []string{kept.ID, tcp.ID, plain.ID}
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("exports: got %v, want %v", got, want)
	}
}

func TestAnExportedPointIsNotDeleted(t *testing.T) {
	r := open(t, nil)
	_, ids, _ := three(t, r)
	e := export(t, r, appliance.ExportSpec{VM: "web1", Point: ids[1]})
	_, err := r.Delete(t.Context(), "web1", ids[1])
	wantCode(t, err, appliance.CodeBusy, e.ID, ids[1], "web1")
	j, err := r.Delete(t.Context(), "web1", ids[0])
	if j = r.wait(t, j, err); j.State != appliance.JobSucceeded {
		t.Errorf("deletion of another point: got %s (%+v), want succeeded", j.State, j.Error)
	}
	if err := r.Unexport(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	j, err = r.Delete(t.Context(), "web1", ids[1])
	if j = r.wait(t, j, err); j.State != appliance.JobSucceeded {
		t.Errorf("deletion: got %s (%+v), want succeeded", j.State, j.Error)
	}
	points, err := r.Points(t.Context(), "web1")
	if err != nil || len(points) != 1 || string(points[0].ID) != ids[2] {
		t.Errorf("points: got %v (%v), want %s", points, err, ids[2])
	}
}

func TestAnExportEndsUnderAReader(t *testing.T) {
	r := open(t, nil)
	_, _, vda := three(t, r)
	e := export(t, r, appliance.ExportSpec{VM: "web1", Point: "latest"})
	dev, err := nbdclient.Open(t.Context(), e.Disks[0].URI, nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if got := r.Exports(t.Context())[0].Disks[0].Clients; got < 1 {
		t.Errorf("clients: got %d, want at least one", got)
	}
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			b := make([]byte, mib)
			if err := dev.ReadAt(t.Context(), b, 0); err != nil {
				done <- nil
				return
			}
			if !bytes.Equal(b, vda[2][:mib]) {
				done <- fmt.Errorf("read %d differs from what the disk held", i)
				return
			}
			if i == 3 {
				close(begun)
			}
		}
	}()
	select {
	case <-begun:
	case err := <-done:
		t.Fatalf("reading ended before the export did: %v", err)
	}
	if err := r.Unexport(t.Context(), e.ID); err != nil {
		t.Errorf("unexport: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
