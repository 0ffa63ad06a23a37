package sandbox

import (
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// Task is what a child does, with the sockets it was given. It runs confined.
type Task func(sockets []*os.File) error

// Run does the task that this process was started for, and exits; in any other
// process it returns at once.
func Run(tasks map[string]Task) {
	if len(os.Args) != 4 || os.Args[0] != name {
		return
	}
	if err := run(tasks, os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(tasks map[string]Task, name, memory, count string) error {
	task, ok := tasks[name]
	if !ok {
		return fmt.Errorf("no task %q", name)
	}
	limit, err := strconv.ParseInt(memory, 10, 64)
	if err != nil {
		return fmt.Errorf("memory limit: %w", err)
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return fmt.Errorf("number of sockets: %w", err)
	}
	sockets := make([]*os.File, n)
	for i := range sockets {
		fd := 3 + i
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
		sockets[i] = os.NewFile(uintptr(fd), "socket")
	}
	if err := confine(limit); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	return task(sockets)
}

// confine takes from this process whatever it does not need, for good.
func confine(memory int64) error {
	debug.SetMemoryLimit(memory / 2) // collect before it is tight
	if !limitMemory {
		memory = math.MaxInt64
	}
	for what, limit := range map[int]uint64{
		unix.RLIMIT_DATA: uint64(memory), unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: 0, unix.RLIMIT_NOFILE: 16, unix.RLIMIT_MEMLOCK: 0,
	} {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("limit %d: %w", what, err)
		}
	}
	return filter()
}

// filter admits calls, and of some only what they may be asked. All filters are asked,
// and what one denies is denied: there is one for each call with conditions, for what
// go-seccomp-bpf compares after conditions that do not hold is no call's number. That
// without conditions comes last, as it admits no more.
func filter() error {
	for name, conditions := range denied() {
		err := load(seccomp.ActionAllow, seccomp.SyscallGroup{Action: seccomp.ActionErrno,
			NamesWithCondtions: []seccomp.NameWithConditions{{Name: name, Conditions: conditions}}})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	// The C library makes threads with clone where the kernel does not know this one,
	// whose flags no filter sees.
	unknown := seccomp.SyscallGroup{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}}
	return load(seccomp.ActionErrno, unknown, seccomp.SyscallGroup{Action: seccomp.ActionAllow, Names: calls})
}

func load(otherwise seccomp.Action, groups ...seccomp.SyscallGroup) error {
	return seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy:     seccomp.Policy{DefaultAction: otherwise, Syscalls: groups},
	})
}

// denied are calls, by name, that are denied where all conditions hold. Halves of
// arguments that the kernel does not look at make no difference to them.
func denied() map[string]seccomp.ArgumentConditions {
	is := func(argument uint32, op seccomp.Operation, value uint64) seccomp.Condition {
		return seccomp.Condition{Argument: argument, Operation: op, Value: value}
	}
	var commands seccomp.ArgumentConditions // others have sockets send signals
	for _, c := range []uint64{unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD_CLOEXEC} {
		commands = append(commands, is(1, seccomp.NotEqual, c))
	}
	return map[string]seccomp.ArgumentConditions{
		"clone": {is(0, seccomp.BitsNotSet, unix.CLONE_THREAD)}, // a process
		// The limit of memory does not count either.
		"mmap":      {is(3, seccomp.BitsSet, unix.MAP_SHARED|unix.MAP_GROWSDOWN)},
		"tgkill":    {is(0, seccomp.NotEqual, uint64(os.Getpid()))},
		"prlimit64": {is(0, seccomp.NotEqual, 0)}, // of another process
		"fcntl":     commands,
	}
}

// calls are what the Go runtime, the C library beneath it, and reading and writing
// open sockets need. No call that opens, connects or starts anything is among
// them.
var calls = []string{
	"read", "write", "readv", "writev", "recvfrom", "sendto", "recvmsg", "sendmsg", "close", "shutdown",
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd2", "pipe2", "fcntl", "poll", "ppoll",
	"getsockopt", "getsockname", "getpeername",
	"mmap", "munmap", "mremap", "mprotect", "madvise", "mincore", "brk", "membarrier",
	"futex", "sched_yield", "sched_getaffinity", "nanosleep", "clock_nanosleep", "clock_gettime", "gettimeofday", "restart_syscall",
	"clone", "set_robust_list", "rseq", "set_tid_address", "arch_prctl", "prctl", "gettid", "getpid", "tgkill",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "setitimer", "timer_create", "timer_settime", "timer_delete",
	"getrandom", "getrlimit", "prlimit64", "exit", "exit_group", "uname", "sysinfo", "getuid", "geteuid", "getgid", "getegid",
}
