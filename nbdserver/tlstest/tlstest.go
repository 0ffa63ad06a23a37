// Package tlstest makes certificates for tests of servers that ask for them.
package tlstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Certificates makes a folder with a CA of its own and what server and client
// have of it, named as QEMU names them. They are for 127.0.0.1.
func Certificates(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	authority := issue(t, dir, "ca", nil)
	issue(t, dir, "server", authority)
	issue(t, dir, "client", authority)
	return dir
}

// issuer is a certificate together with its key.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate that by signed, or one that signs others if that is
// nil.
func issue(t testing.TB, dir, name string, by *issuer) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	self := &issuer{c, key}
	if by == nil {
		by = self
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	} else {
		c.SerialNumber.SetInt64(int64(len(name)))
		c.KeyUsage = x509.KeyUsageDigitalSignature
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.cert, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(file string, b *pem.Block) {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(name+"-cert.pem", &pem.Block{Type: "CERTIFICATE", Bytes: der})
	write(name+"-key.pem", &pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return self
}
