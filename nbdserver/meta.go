package nbdserver

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
)

// Names of metadata contexts. The second is QEMU's (docs/interop/nbd.rst), so
// that stock clients understand what differs from an older state.
const (
	allocationContext = "base:allocation"
	dirtyPrefix       = "qemu:dirty-bitmap:"
	sincePrefix       = dirtyPrefix + "since-"
)

// metaContext is a metadata context that a client can select.
type metaContext struct {
	id    uint32
	name  string
	since string // "" for base:allocation
}

// contexts returns everything that the export can tell.
func (x *export) contexts() []metaContext {
	all := []metaContext{{id: 1, name: allocationContext}}
	for i, since := range x.Since {
		all = append(all, metaContext{id: uint32(2 + i), name: sincePrefix + since, since: since})
	}
	return all
}

// matches reports whether a query selects the context. Only a listing knows
// queries that stand for a whole namespace.
func (m metaContext) matches(query string, listing bool) bool {
	if query == m.name {
		return true
	}
	if !listing {
		return false
	}
	switch query {
	case "base:", "qemu:", dirtyPrefix:
		return strings.HasPrefix(m.name, query)
	}
	return false
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (n *negotiation) metaContext(ctx context.Context, opt uint32, data []byte) error {
	if opt == optSetMetaContext {
		n.sess.contexts, n.sess.contextsFor = nil, nil
	}
	if !n.sess.structured && !n.sess.extended {
		return n.reply(opt, repErrInvalid, "negotiate structured replies first")
	}
	name, rest, ok := cutString(data)
	if !ok {
		return n.reply(opt, repErrInvalid, "malformed option")
	}
	queries, ok := cutQueries(rest)
	if !ok {
		return n.reply(opt, repErrInvalid, "malformed queries")
	}
	x, kind, why := n.open(ctx, name)
	if x == nil {
		return n.reply(opt, kind, why)
	}
	listing := opt == optListMetaContext
	var chosen []metaContext
	for _, m := range x.contexts() {
		if listing && len(queries) == 0 ||
			slices.ContainsFunc(queries, func(q string) bool { return m.matches(q, listing) }) {
			chosen = append(chosen, m)
		}
	}
	for _, m := range chosen {
		id := m.id
		if listing {
			id = 0
		}
		n.queue(opt, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), m.name...))
	}
	if !listing {
		n.sess.contexts, n.sess.contextsFor = chosen, x
	}
	return n.reply(opt, repAck, "")
}

// cutQueries takes the list of queries, which must fill b.
func cutQueries(b []byte) ([]string, bool) {
	if len(b) < 4 {
		return nil, false
	}
	count := binary.BigEndian.Uint32(b)
	b = b[4:]
	var queries []string
	for range count {
		q, rest, ok := cutString(b)
		if !ok {
			return nil, false
		}
		queries, b = append(queries, q), rest
	}
	return queries, len(b) == 0
}
