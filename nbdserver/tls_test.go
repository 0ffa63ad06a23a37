package nbdserver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendense/sendense/block/blocktest"
	"github.com/sendense/sendense/internal/requires"
	"github.com/sendense/sendense/nbdserver"
)

// authority signs certificates for a test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	a.cert, a.key = a.sign("test CA", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.Subject = pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) leaf(name string) tls.Certificate {
	a.t.Helper()
	cert, key := a.sign(name, &x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *authority) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.leaf("server")}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert}
}

func (a *authority) client(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: "localhost", Certificates: certs}
}

// startTLS upgrades a client of the tests.
func (c *client) startTLS(cfg *tls.Config) error {
	c.t.Helper()
	c.must(optStartTLS, nil)
	tc := tls.Client(c.conn, cfg)
	if err := tc.Handshake(); err != nil {
		return err
	}
	c.conn = tc
	return nil
}

func TestTLS(t *testing.T) {
	a := newAuthority(t)
	d, content := newFiled(t)
	for _, mode := range []nbdserver.TLSMode{nbdserver.TLSOffered, nbdserver.TLSForced} {
		s := serve(t, nbdserver.Options{TLS: a.server(), TLSMode: mode}, export("disk", d))
		for _, st := range styles {
			c := connect(t, s.addr)
			if err := c.startTLS(a.client(a.leaf("client"))); err != nil {
				t.Fatal(err)
			}
			if got := c.option(optStartTLS, nil)[0].kind; got != repInvalid {
				t.Errorf("TLS in TLS: got %#x, want %#x", got, uint32(repInvalid))
			}
			c.negotiate(st.style)
			c.enter("disk")
			equal(t, st.name, c.do(cmdRead, 0, 1000, 5<<20, nil).data, content[1000:1000+5<<20])
			for range 50 {
				equal(t, st.name, c.do(cmdRead, 0, 5000, 4096, nil).data, content[5000:9096])
			}
			c.send(cmdDisc, 0, 1, 0, 0, nil)
			c.closed()
		}
	}
}

func TestForcedTLSAllowsNothingElse(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, nbdserver.Options{TLS: a.server(), TLSMode: nbdserver.TLSForced}, export("disk", blocktest.NewMemory(4096)))
	c := connect(t, s.addr)
	for opt, data := range map[uint32][]byte{
		optList: nil, optInfo: infoData("disk"), optGo: infoData("disk"), optStructured: nil, optExtended: nil,
		optListMeta: metaData("disk"), optSetMeta: metaData("disk", "base:allocation"), 99: []byte("x"),
	} {
		if got := c.option(opt, data)[0].kind; got != repTLSReqd {
			t.Errorf("option %d: got %#x, want %#x", opt, got, uint32(repTLSReqd))
		}
	}
	c.must(optAbort, nil)
	c.closed()
	c = connect(t, s.addr)
	c.write(optionBytes(optExportName, []byte("disk")))
	c.closed()
}

func TestOfferedTLSIsAChoice(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, nbdserver.Options{TLS: a.server(), TLSMode: nbdserver.TLSOffered}, export("disk", blocktest.NewMemory(4096)))
	if r := attach(t, s.addr, "disk", structured).do(cmdRead, 0, 0, 512, nil); r.errno != 0 {
		t.Errorf("read without TLS: got error %d", r.errno)
	}
}

func TestTLSWithoutConfigurationIsAnError(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	if err := nbdserver.New(nbdserver.Options{TLSMode: nbdserver.TLSForced}).Serve(t.Context(), l); err == nil {
		t.Error("serve: got no error")
	}
}

func TestClientCertificates(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	s := serve(t, nbdserver.Options{TLS: a.server(), TLSMode: nbdserver.TLSForced}, export("disk", blocktest.NewMemory(4096)))
	for name, cfg := range map[string]*tls.Config{
		"no certificate":              a.client(),
		"a certificate of a stranger": a.client(stranger.leaf("client")),
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, s.addr)
			if err := c.startTLS(cfg); err != nil {
				return
			}
			// With TLS 1.3 the client learns of it by the first thing it reads.
			c.conn.Write(optionBytes(optList, nil))
			c.closed()
		})
	}
}

func TestStartTLSForgetsClearText(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, nbdserver.Options{TLS: a.server(), TLSMode: nbdserver.TLSOffered}, export("disk", blocktest.NewMemory(1<<20)))
	t.Run("what was negotiated", func(t *testing.T) {
		c := connect(t, s.addr)
		c.negotiate(structured)
		c.must(optSetMeta, metaData("disk", "base:allocation"))
		c.negotiate(extended)
		if err := c.startTLS(a.client(a.leaf("client"))); err != nil {
			t.Fatal(err)
		}
		c.style = simple
		if got := c.option(optSetMeta, metaData("disk", "base:allocation"))[0].kind; got != repInvalid {
			t.Errorf("contexts after TLS: got %#x, want %#x", got, uint32(repInvalid))
		}
		c.enter("disk")
		if c.flags&(1<<7) != 0 {
			t.Errorf("flags: got %#x, with DF", c.flags)
		}
		if r := c.do(cmdRead, 0, 0, 512, nil); r.errno != 0 {
			t.Errorf("read: got error %d", r.errno)
		}
	})
	t.Run("what was sent behind the option", func(t *testing.T) {
		c := connect(t, s.addr)
		// As somebody in the middle would do it: an option in clear text, to be
		// taken for the first one under TLS.
		c.write(append(optionBytes(optStartTLS, nil), optionBytes(optList, nil)...))
		if got := c.replies(optStartTLS)[0].kind; got != repAck {
			t.Fatalf("start TLS: got %#x", got)
		}
		if err := tls.Client(c.conn, a.client(a.leaf("client"))).Handshake(); err == nil {
			t.Error("TLS handshake behind clear text: got no error")
		}
	})
}

// writePEM lays out certificates as libnbd and QEMU look for them.
func (a *authority) writePEM(dir string, name string, c *tls.Certificate) {
	a.t.Helper()
	write := func(file, kind string, der []byte) {
		b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	write("ca-cert.pem", "CERTIFICATE", a.cert.Raw)
	if c == nil {
		return
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	write(name+"-cert.pem", "CERTIFICATE", c.Certificate[0])
	write(name+"-key.pem", "PRIVATE KEY", key)
}

func TestTLSWithStockClients(t *testing.T) {
	requires.Tool(t, "nbdinfo", "nbdcopy", "qemu-img")
	a := newAuthority(t)
	d, content := newFiled(t)
	s := serveOn(t, nbdserver.Options{TLS: a.server(), TLSMode: nbdserver.TLSForced}, "tcp", "127.0.0.1:0", export("disk", d))
	good, none, strange := t.TempDir(), t.TempDir(), t.TempDir()
	leaf := a.leaf("client")
	a.writePEM(good, "client", &leaf)
	a.writePEM(none, "client", nil)
	stranger := newAuthority(t)
	foreign := stranger.leaf("client")
	a.writePEM(strange, "client", &foreign)
	port := s.addr.(*net.TCPAddr).Port
	uri := func(dir string) string {
		return "nbds://localhost:" + itoa(port) + "/disk?tls-certificates=" + dir
	}
	if out := run(t, "nbdinfo", uri(good)); !strings.Contains(out, "newstyle-fixed with TLS") {
		t.Errorf("nbdinfo: got %s", out)
	}
	copyOf := filepath.Join(t.TempDir(), "copy")
	run(t, "nbdcopy", uri(good), copyOf)
	got, err := os.ReadFile(copyOf)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "nbdcopy", got, content)
	for name, dir := range map[string]string{"without": none, "with a stranger's": strange} {
		if out, err := exec.Command("nbdinfo", uri(dir)).CombinedOutput(); err == nil {
			t.Errorf("nbdinfo %s certificate: got no error: %s", name, out)
		}
	}
	if out, err := exec.Command("nbdinfo", "nbd://localhost:"+itoa(port)+"/disk").CombinedOutput(); err == nil {
		t.Errorf("nbdinfo without TLS: got no error: %s", out)
	}
	out := run(t, "qemu-img", "info", "--object", "tls-creds-x509,id=tls0,endpoint=client,dir="+good, "--image-opts",
		"driver=nbd,host=localhost,port="+itoa(port)+",export=disk,tls-creds=tls0")
	if !strings.Contains(out, "virtual size") {
		t.Errorf("qemu-img: got %s", out)
	}
}
