package nbdserver

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// Limits on what a client may send in the handshake, in bytes. The first bounds
// what is looked at, the second what is skipped.
const (
	maxOptionKept    = 64 << 10
	maxOptionSkipped = 1 << 20
)

// session is what a handshake agreed on.
type session struct {
	conn       net.Conn
	export     *export
	tls        bool
	structured bool
	extended   bool

	contexts    []metaContext // chosen by the last SET_META_CONTEXT …
	contextsFor *export       // … for this export
}

// contextsOf returns the metadata contexts chosen for x.
func (s *session) contextsOf(x *export) []metaContext {
	if s.contextsFor != x {
		return nil
	}
	return s.contexts
}

// errClientLeft says that the client ended the handshake in an orderly way.
var errClientLeft = errors.New("client left")

// errRefused ends a handshake where the protocol has no way to answer.
var errRefused = errors.New("client refused")

// negotiation is a handshake under way. It reads exactly what the options say
// and never ahead, so that nothing received in clear text can be taken for
// something received under TLS (CVE-2021-3716).
type negotiation struct {
	srv      *Server
	fixed    bool
	noZeroes bool
	sess     session
	out      []byte // replies not sent yet
}

// handshake negotiates with a client. The session it returns counts as a user of
// its export.
func (s *Server) handshake(ctx context.Context, nc net.Conn) (*session, error) {
	nc.SetDeadline(s.now().Add(s.opt.HandshakeTimeout))
	unhook := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	n := &negotiation{srv: s, sess: session{conn: nc}}
	err := n.run(ctx)
	if !unhook() && err == nil {
		s.release(n.sess.export)
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Time{})
	return &n.sess, nil
}

func (n *negotiation) run(ctx context.Context) error {
	var hello [18]byte
	binary.BigEndian.PutUint64(hello[0:], magicInit)
	binary.BigEndian.PutUint64(hello[8:], magicOption)
	binary.BigEndian.PutUint16(hello[16:], flagFixedNewstyle|flagNoZeroes)
	if _, err := n.sess.conn.Write(hello[:]); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(n.sess.conn, flags[:]); err != nil {
		return leftOr(err)
	}
	f := binary.BigEndian.Uint32(flags[:])
	if f&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("client flags %#x: %w", f, errRefused)
	}
	n.fixed, n.noZeroes = f&flagFixedNewstyle != 0, f&flagNoZeroes != 0
	for n.sess.export == nil {
		if err := n.option(ctx); err != nil {
			return err
		}
	}
	return nil
}

// leftOr turns the end of the stream between messages into errClientLeft.
func leftOr(err error) error {
	if err == io.EOF {
		return errClientLeft
	}
	return err
}

// option reads one option and answers it.
func (n *negotiation) option(ctx context.Context) error {
	var head [16]byte
	if _, err := io.ReadFull(n.sess.conn, head[:]); err != nil {
		return leftOr(err)
	}
	if m := binary.BigEndian.Uint64(head[0:]); m != magicOption {
		return fmt.Errorf("option magic %#x: %w", m, errRefused)
	}
	opt, length := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if !n.fixed && opt != optExportName {
		return fmt.Errorf("option %d without fixed newstyle: %w", opt, errRefused)
	}
	if length > maxOptionSkipped {
		return fmt.Errorf("option %d with %d bytes: %w", opt, length, errRefused)
	}
	if length > maxOptionKept {
		if _, err := io.CopyN(io.Discard, n.sess.conn, int64(length)); err != nil {
			return err
		}
		if opt == optExportName {
			return fmt.Errorf("export name of %d bytes: %w", length, errRefused)
		}
		return n.reply(opt, repErrTooBig, "option is too long")
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(n.sess.conn, data); err != nil {
		return err
	}
	if n.srv.opt.TLSMode == TLSForced && !n.sess.tls && opt != optStartTLS && opt != optAbort {
		if opt == optExportName {
			return fmt.Errorf("export name without TLS: %w", errRefused)
		}
		return n.reply(opt, repErrTLSRequired, "start TLS first")
	}
	return n.answer(ctx, opt, data)
}

func (n *negotiation) answer(ctx context.Context, opt uint32, data []byte) error {
	switch opt {
	case optExportName:
		return n.exportName(ctx, string(data))
	case optInfo, optGo:
		return n.info(ctx, opt, data)
	case optSetMetaContext, optListMetaContext:
		return n.metaContext(ctx, opt, data)
	case optAbort:
		// The client may be gone already: its answer is a courtesy.
		_ = n.reply(opt, repAck, "") // the client may be gone already
		return errClientLeft
	case optList, optStartTLS, optStructuredReply, optExtendedHeaders:
		if len(data) > 0 {
			return n.reply(opt, repErrInvalid, "option takes no data")
		}
	}
	switch opt {
	case optList:
		return n.list(ctx)
	case optStartTLS:
		return n.startTLS(ctx)
	case optStructuredReply:
		if n.sess.extended {
			return n.reply(opt, repErrExtHeaderReq, "extended headers are in use")
		}
		n.sess.structured = true
		return n.reply(opt, repAck, "")
	case optExtendedHeaders:
		n.sess.extended = true
		return n.reply(opt, repAck, "")
	}
	return n.reply(opt, repErrUnsup, "unknown option")
}

// reply queues a reply with text and sends all that is queued.
func (n *negotiation) reply(opt, kind uint32, text string) error {
	n.queue(opt, kind, []byte(text))
	out := n.out
	n.out = n.out[:0]
	_, err := n.sess.conn.Write(out)
	return err
}

func (n *negotiation) queue(opt, kind uint32, data []byte) {
	n.out = binary.BigEndian.AppendUint64(n.out, magicOptionReply)
	n.out = binary.BigEndian.AppendUint32(n.out, opt)
	n.out = binary.BigEndian.AppendUint32(n.out, kind)
	n.out = binary.BigEndian.AppendUint32(n.out, uint32(len(data)))
	n.out = append(n.out, data...)
}

// startTLS upgrades the connection and forgets what was agreed before.
func (n *negotiation) startTLS(ctx context.Context) error {
	switch {
	case n.sess.tls:
		return n.reply(optStartTLS, repErrInvalid, "TLS is in use")
	case n.srv.opt.TLSMode == TLSOff:
		return n.reply(optStartTLS, repErrPolicy, "TLS is not configured")
	}
	if err := n.reply(optStartTLS, repAck, ""); err != nil {
		return err
	}
	tc := tls.Server(n.sess.conn, n.srv.opt.TLS)
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("start TLS: %w", err)
	}
	n.sess = session{conn: tc, tls: true}
	return nil
}

func (n *negotiation) list(ctx context.Context) error {
	for _, x := range n.srv.list() {
		if n.authorize(ctx, x.Name) != nil {
			continue
		}
		data := binary.BigEndian.AppendUint32(nil, uint32(len(x.Name)))
		data = append(data, x.Name...)
		data = append(data, x.Description...)
		n.queue(optList, repServer, data)
	}
	return n.reply(optList, repAck, "")
}

func (n *negotiation) authorize(ctx context.Context, name string) error {
	if n.srv.opt.Authorize == nil {
		return nil
	}
	return n.srv.opt.Authorize(ctx, n.sess.conn, name)
}

// open finds an export that the client may use. The reply type says why not.
func (n *negotiation) open(ctx context.Context, name string) (x *export, kind uint32, why string) {
	x = n.srv.find(name)
	if x == nil {
		return nil, repErrUnknown, "no such export"
	}
	if err := n.authorize(ctx, name); err != nil {
		n.srv.opt.Log.Info("client not authorized", "export", name, "peer", peerName(n.sess.conn), "err", err)
		return nil, repErrPolicy, "not authorized"
	}
	return x, 0, ""
}

// enter makes the session a user of x.
func (n *negotiation) enter(ctx context.Context, x *export) (kind uint32, why string) {
	switch err := n.srv.acquire(x); {
	case ctx.Err() != nil:
		if err == nil {
			n.srv.release(x)
		}
		return repErrShutdown, "server is shutting down"
	case errors.Is(err, errTooManyConns):
		return repErrPolicy, err.Error()
	case err != nil:
		return repErrUnknown, "no such export"
	}
	n.sess.contexts = n.sess.contextsOf(x)
	n.sess.contextsFor, n.sess.export = x, x
	return 0, ""
}

func (n *negotiation) exportName(ctx context.Context, name string) error {
	if n.sess.extended {
		return fmt.Errorf("export name after extended headers: %w", errRefused)
	}
	x, _, why := n.open(ctx, name)
	if x == nil {
		return fmt.Errorf("export %q: %s: %w", name, why, errRefused)
	}
	if kind, why := n.enter(ctx, x); kind != 0 {
		return fmt.Errorf("export %q: %s: %w", name, why, errRefused)
	}
	out := binary.BigEndian.AppendUint64(nil, uint64(x.size))
	out = binary.BigEndian.AppendUint16(out, x.flags(&n.sess))
	if !n.noZeroes {
		out = append(out, make([]byte, 124)...)
	}
	return n.entered(out)
}

// entered sends the last bytes of the handshake.
func (n *negotiation) entered(out []byte) error {
	if _, err := n.sess.conn.Write(out); err != nil {
		n.srv.release(n.sess.export)
		return err
	}
	return nil
}

// info answers INFO and GO.
func (n *negotiation) info(ctx context.Context, opt uint32, data []byte) error {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 {
		return n.reply(opt, repErrInvalid, "malformed option")
	}
	wanted, ok := cutInfos(rest)
	if !ok {
		return n.reply(opt, repErrInvalid, "malformed list of information requests")
	}
	x, kind, why := n.open(ctx, name)
	if x == nil {
		return n.reply(opt, kind, why)
	}
	if opt == optGo {
		if kind, why := n.enter(ctx, x); kind != 0 {
			return n.reply(opt, kind, why)
		}
	}
	n.queueInfos(opt, x, wanted)
	n.queue(opt, repAck, nil)
	out := n.out
	n.out = n.out[:0]
	if opt == optGo {
		return n.entered(out)
	}
	_, err := n.sess.conn.Write(out)
	return err
}

func (n *negotiation) queueInfos(opt uint32, x *export, wanted []uint16) {
	be := binary.BigEndian
	data := be.AppendUint16(nil, infoExport)
	data = be.AppendUint64(data, uint64(x.size))
	data = be.AppendUint16(data, x.flags(&n.sess))
	n.queue(opt, repInfo, data)
	if slices.Contains(wanted, infoName) {
		n.queue(opt, repInfo, append(be.AppendUint16(nil, infoName), x.Name...))
	}
	if slices.Contains(wanted, infoDescription) && x.Description != "" {
		n.queue(opt, repInfo, append(be.AppendUint16(nil, infoDescription), x.Description...))
	}
	if slices.Contains(wanted, infoBlockSize) {
		data := be.AppendUint16(nil, infoBlockSize)
		data = be.AppendUint32(data, x.MinBlock)
		data = be.AppendUint32(data, x.PreferredBlock)
		data = be.AppendUint32(data, x.MaxBlock)
		n.queue(opt, repInfo, data)
	}
}

// cutString takes a string with its 32-bit length from the front of b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	l := binary.BigEndian.Uint32(b)
	b = b[4:]
	if l > maxString || int(l) > len(b) {
		return "", nil, false
	}
	return string(b[:l]), b[l:], true
}

// cutInfos takes the list of information requests, which must fill b.
func cutInfos(b []byte) ([]uint16, bool) {
	count := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if len(b) != 2*count {
		return nil, false
	}
	infos := make([]uint16, count)
	for i := range infos {
		infos[i] = binary.BigEndian.Uint16(b[2*i:])
	}
	return infos, true
}
