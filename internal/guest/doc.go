// Package guest runs real virtual machines for tests and for the demo: it builds
// a small bootable Debian disk ([Build]), starts a libvirtd that nobody else on
// the machine sees ([StartHost]), and defines, starts and talks to machines on it
// ([Host.Define], [VM]).
//
// It knows nothing of backups. [github.com/sendense/sendense/internal/guest/guesttest]
// wraps it for tests.
package guest
