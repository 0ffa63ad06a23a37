package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sendense/sendense/appliance"
	"github.com/sendense/sendense/internal/cli"
)

// place is where a server listens.
type place struct {
	net.Listener
	socket string // of a unix socket
	folder string // made for the socket, "" if none was
	tls    bool
}

// uri returns what clients connect to.
func (p *place) uri(export string) string {
	u := url.URL{Scheme: "nbd", Path: "/" + export}
	if p.tls {
		u.Scheme = "nbds"
	}
	if p.socket != "" {
		u.Scheme += "+unix"
		u.RawQuery = "socket=" + (&url.URL{Path: p.socket}).EscapedPath()
	} else {
		u.Host = p.Addr().String()
	}
	if p.socket != "" {
		return u.Scheme + "://" + u.EscapedPath() + "?" + u.RawQuery
	}
	return u.String()
}

// Close closes the listener and removes what was made for it.
func (p *place) Close() error {
	err := p.Listener.Close()
	if errors.Is(err, net.ErrClosed) { // by the server, as it should be
		err = nil
	}
	if p.folder != "" {
		err = errors.Join(err, os.Remove(p.folder))
	}
	return err
}

// listener opens the socket that the flags ask for.
func (o *serveOptions) listener() (*place, error) {
	if o.listen != "" {
		return o.listenTCP()
	}
	p := &place{socket: o.socket, tls: o.tlsDir != ""}
	if p.socket == "" {
		var err error
		if p.folder, err = socketFolder(); err != nil {
			return nil, err
		}
		p.socket = filepath.Join(p.folder, "nbd.sock")
	}
	l, err := listenUnix(p.socket)
	if err != nil {
		if p.folder != "" {
			err = errors.Join(err, os.Remove(p.folder))
		}
		return nil, err
	}
	p.Listener = l
	return p, nil
}

func (o *serveOptions) listenTCP() (*place, error) {
	address := o.listen
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(address, "10809")
	}
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, cli.Usagef("Give an address as host:port.", "%q is no address to listen on.", o.listen)
	}
	if !a.IP.IsLoopback() && o.tlsDir == "" {
		return nil, &appliance.Error{Code: appliance.CodeInvalid, Msg: fmt.Sprintf("Other machines could read the image at %s, unencrypted.", a),
			Hint: "Give --tls-dir with certificates, or listen on 127.0.0.1."}
	}
	l, err := net.ListenTCP("tcp", a)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &appliance.Error{Code: appliance.CodeBusy, Msg: fmt.Sprintf("Another program listens on %s.", a),
			Hint: "Choose another port; with port 0 a free one is found.", Err: err}
	}
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, cli.Usagef("See the addresses of this machine with: ip address", "This machine has no address %s.", a.IP)
	}
	if err != nil {
		return nil, err
	}
	return &place{Listener: l, tls: o.tlsDir != ""}, nil
}

// socketFolder makes a folder for a socket that is nobody else's.
func socketFolder() (string, error) {
	var errs []error
	for _, base := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/run", os.TempDir()} {
		if base == "" {
			continue
		}
		dir, err := os.MkdirTemp(base, "sendense-nbd-") // mode 0700
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// listenUnix makes a socket with mode 0600. One that a dead server left is
// replaced.
func listenUnix(path string) (net.Listener, error) {
	if len(path) > 107 {
		return nil, cli.Usagef("Linux allows 107 bytes; choose a shorter one.", "The path of the socket is too long: %s.", path)
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && abandoned(path) {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		l, err = net.Listen("unix", path)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &appliance.Error{Code: appliance.CodeBusy, Msg: fmt.Sprintf("There is something at %s already.", path),
			Hint: "Choose another path with --socket.", Err: err}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, &appliance.Error{Code: appliance.CodeNotFound, Msg: fmt.Sprintf("There is no folder %s.", filepath.Dir(path)),
			Hint: "Make it, or choose another path with --socket.", Err: err}
	}
	return l, err
}

// abandoned reports whether path is a socket at which nobody listens.
func abandoned(path string) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Type() != os.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// loadTLS reads the files that QEMU's programs have in such a folder. Clients have
// to show a certificate.
func loadTLS(dir string) (*tls.Config, error) {
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
		code := appliance.CodeInvalid
		if errors.Is(err, os.ErrNotExist) {
			code = appliance.CodeNotFound
		}
		return nil, &appliance.Error{Code: code, Msg: cli.Sentence(fmt.Sprintf("the certificates cannot be read: %v", err)), Err: err,
			Hint: fmt.Sprintf("%s has to hold ca-cert.pem, server-cert.pem and server-key.pem.", dir)}
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}, nil
}
