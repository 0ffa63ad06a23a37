package nbdserver_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sendense/sendense/internal/requires"
	"github.com/sendense/sendense/nbdserver"
)

// BenchmarkExportRead measures the server with a client that does next to
// nothing, in the same process.
func BenchmarkExportRead(b *testing.B) {
	const size = 64 << 20
	raw := newRawFile(b, bytes.Repeat([]byte("0123456789abcdef"), size/16))
	s := serve(b, nbdserver.Options{}, export("", raw))
	for _, bs := range []uint64{4 << 10, 64 << 10, 256 << 10, 1 << 20} {
		for _, depth := range []int{1, 16} {
			b.Run(fmt.Sprintf("bs=%dk/depth=%d", bs>>10, depth), func(b *testing.B) {
				c := attach(b, s.addr, "", structured)
				c.conn.SetDeadline(time.Time{})
				b.SetBytes(int64(bs))
				// Up to 512 KiB a reply is one chunk; beyond, heads come between.
				reply := make([]byte, bs+28*max(1, bs>>19))
				off, sent := uint64(0), 0
				ask := func() {
					if sent < b.N {
						c.send(cmdRead, 0, 1, off, bs, nil)
						off, sent = (off+bs*7)%size, sent+1
					}
				}
				for range depth {
					ask()
				}
				for range b.N {
					if _, err := io.ReadFull(c.conn, reply); err != nil {
						b.Fatal(err)
					}
					ask()
				}
			})
		}
	}
}

// BenchmarkPeers runs the same loads against this server, qemu-nbd and nbdkit,
// and reports the time of the load and of the server's CPU. It needs
// -benchtime=1x or more for each peer to have its turn.
func BenchmarkPeers(b *testing.B) {
	requires.Tool(b, "qemu-nbd", "nbdkit", "nbdcopy", "fio")
	const size = 1 << 30
	path := filepath.Join(b.TempDir(), "disk")
	run(b, "sh", "-c", fmt.Sprintf("head -c %d /dev/urandom > %s", size, path))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	s := serve(b, nbdserver.Options{}, export("", &rawFile{f, size}))
	peers := []peer{{"sendense", s.uri(""), ownCPU}}
	for name, argv := range map[string][]string{
		"qemu-nbd": {"qemu-nbd", "-f", "raw", "-t", "-e", "16", "-k", "SOCKET", path},
		"nbdkit":   {"nbdkit", "-f", "-U", "SOCKET", "file", path},
	} {
		peers = append(peers, startPeer(b, name, argv))
	}
	loads := map[string]func(uri string) []string{
		"nbdcopy":   func(uri string) []string { return []string{"nbdcopy", uri, "null:"} },
		"nbdcopy-1": func(uri string) []string { return []string{"nbdcopy", "--connections=1", "--requests=1", uri, "null:"} },
		"fio-4k-qd32": func(uri string) []string {
			return []string{"fio", "--name=r", "--ioengine=nbd", "--uri=" + uri, "--rw=randread", "--bs=4k", "--iodepth=32", "--size=1g", "--io_size=512m"}
		},
	}
	for load, argv := range loads {
		for _, p := range peers {
			b.Run(load+"/"+p.name, func(b *testing.B) {
				run(b, "cat", path)
				cpu := p.cpu(b)
				for b.Loop() {
					a := argv(p.uri)
					run(b, a[0], a[1:]...)
				}
				b.ReportMetric((p.cpu(b)-cpu).Seconds()/float64(b.N), "cpu-s/op")
			})
		}
	}
}

// peer is a server to compare with.
type peer struct {
	name, uri string
	cpu       func(b *testing.B) time.Duration
}

func ownCPU(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func startPeer(b *testing.B, name string, argv []string) peer {
	b.Helper()
	socket := filepath.Join(b.TempDir(), "s")
	for i := range argv {
		argv[i] = strings.ReplaceAll(argv[i], "SOCKET", socket)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	requires.Until(b, name, func() bool { _, err := os.Stat(socket); return err == nil })
	return peer{name, "nbd+unix:///?socket=" + socket, func(b *testing.B) time.Duration {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		var user, system time.Duration
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		fmt.Sscan(fields[11], &user)
		fmt.Sscan(fields[12], &system)
		return (user + system) * time.Second / 100 // the kernel counts in 1/100 s
	}}
}
