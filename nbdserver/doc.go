// Package nbdserver serves block devices over the NBD protocol: newstyle
// negotiation with TLS, structured replies, extended headers, metadata contexts
// and block status, as NetworkBlockDevice/nbd doc/proto.md and its extension
// branch for extended headers describe them.
//
// What a device can locate in files goes from page cache to the socket without
// passing through the program. The package works on Linux only, and knows nothing
// of formats, virtual machines, or how clients are told apart.
//
// # Failures
//
// A request that the device fails, or panics on, is answered with an error and
// the others go on; a panic is logged with its stack. No byte is ever sent as data
// that was not read: content is complete in memory or in a pipe before the reply
// that announces it begins.
//
// # Bounds
//
// A connection works on at most 64 requests at a time and holds at most
// Options.MaxRequest bytes of payload. It is not read from while it is at either
// bound, so that a client which sends without reading waits.
package nbdserver
