package appliance

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// nbdPort is the port of NBD that IANA assigned.
const nbdPort = "10809"

// maxSocketPath is how long the path of a unix socket may be on Linux, in bytes.
const maxSocketPath = 107

// Listener is where an NBD server listens.
type Listener struct {
	net.Listener
	TLS    *tls.Config // nil without TLS
	socket string      // path of a unix socket, "" for TCP
}

// URI returns what a client connects to for an export (NBD doc/uri.md).
func (l *Listener) URI(export string) string {
	u := url.URL{Scheme: "nbd", Path: "/" + export}
	if l.TLS != nil {
		u.Scheme = "nbds"
	}
	if l.socket == "" {
		u.Host = l.Addr().String()
		return u.String()
	}
	// Slashes stay as they are, for people to read.
	socket := strings.ReplaceAll(url.QueryEscape(l.socket), "%2F", "/")
	return u.Scheme + "+unix://" + u.EscapedPath() + "?socket=" + strings.ReplaceAll(socket, "+", "%20")
}

// ListenUnix listens on a socket at path with file permissions mode. A socket at
// which nobody listens any more is replaced; anything else is not. tlsDir is as
// for ListenTCP.
func ListenUnix(path string, mode os.FileMode, tlsDir string) (*Listener, error) {
	config, err := loadTLS(tlsDir)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(path) {
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("The path of the socket is relative: %s.", path),
			Hint: "Give the whole path, which means the same to every process."}
	}
	if len(path) > maxSocketPath {
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("The path of the socket is too long: %s.", path),
			Hint: fmt.Sprintf("Linux allows %d bytes; choose a shorter one.", maxSocketPath)}
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && abandoned(path) {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		l, err = net.Listen("unix", path)
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, &Error{Code: CodeBusy, Err: err, Msg: fmt.Sprintf("There is something at %s already.", path),
			Hint: "End the program that listens there, or choose another path for the socket."}
	case errors.Is(err, os.ErrNotExist):
		return nil, &Error{Code: CodeNotFound, Err: err, Msg: fmt.Sprintf("There is no folder %s.", filepath.Dir(path)),
			Hint: "Make it, or choose another path for the socket."}
	case err != nil:
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &Listener{Listener: l, TLS: config, socket: path}, nil
}

// abandoned reports whether path is a socket at which nobody listens.
func abandoned(path string) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Type() != os.ModeSocket {
		return false
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// ListenTCP listens on address, HOST or HOST:PORT; the port is nbdPort unless
// given, and 0 finds a free one. tlsDir is a folder with ca-cert.pem,
// server-cert.pem and server-key.pem, as QEMU names them: clients then have to
// show a certificate that the CA signed. Without it ("") only loopback addresses
// are allowed.
func ListenTCP(address, tlsDir string) (*Listener, error) {
	config, err := loadTLS(tlsDir)
	if err != nil {
		return nil, err
	}
	full := address
	if _, _, err := net.SplitHostPort(full); err != nil {
		full = net.JoinHostPort(full, nbdPort)
	}
	a, err := net.ResolveTCPAddr("tcp", full)
	if err != nil {
		return nil, &Error{Code: CodeInvalid, Err: err, Msg: fmt.Sprintf("%q is no address to listen on.", address),
			Hint: "Give an address as host:port."}
	}
	if !a.IP.IsLoopback() && config == nil {
		return nil, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("Other machines could read the disk at %s, unencrypted.", a),
			Hint: "Give --tls-dir with certificates, or listen on 127.0.0.1."}
	}
	l, err := net.ListenTCP("tcp", a)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, &Error{Code: CodeBusy, Err: err, Msg: fmt.Sprintf("Another program listens on %s.", a),
			Hint: "Choose another port; with port 0 a free one is found."}
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, &Error{Code: CodeInvalid, Err: err, Msg: fmt.Sprintf("This machine has no address %s.", a.IP),
			Hint: "See the addresses of this machine with: ip address"}
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	return &Listener{Listener: l, TLS: config}, nil
}

// loadTLS reads the certificates in a folder; nil for no folder.
func loadTLS(dir string) (*tls.Config, error) {
	if dir == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	var ca []byte
	if err == nil {
		ca, err = os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	}
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(ca) {
		err = errors.New("ca-cert.pem holds no certificate")
	}
	if err != nil {
		code := CodeInvalid
		if errors.Is(err, os.ErrNotExist) {
			code = CodeNotFound
		}
		return nil, &Error{Code: code, Err: err, Msg: fmt.Sprintf("The certificates cannot be read: %v.", err),
			Hint: fmt.Sprintf("%s has to hold ca-cert.pem, server-cert.pem and server-key.pem.", dir)}
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}, nil
}
