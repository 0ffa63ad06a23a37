package instant

import (
	"bytes"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"
)

// Stage is how far a machine got in its boot.
type Stage string

// The stages, in order.
const (
	StageNothing  Stage = "nothing"  // it printed nothing: that proves little
	StageFirmware Stage = "firmware" // BIOS or UEFI
	StageLoader   Stage = "loader"   // of the operating system
	StageKernel   Stage = "kernel"
	StageSystem   Stage = "system" // programs run
	StageLogin    Stage = "login"  // it asks who is there
	StageAgent    Stage = "agent"  // the guest agent answers
)

var stages = []Stage{StageNothing, StageFirmware, StageLoader, StageKernel, StageSystem, StageLogin, StageAgent}

// signs tell a stage by a line of what machines print.
var signs = []struct {
	stage Stage
	line  *regexp.Regexp
}{
	{StageFirmware, regexp.MustCompile(`SeaBIOS|iPXE|BdsDxe|UEFI Interactive Shell|TianoCore|Booting from (Hard Disk|DVD|Floppy|ROM)`)},
	{StageLoader, regexp.MustCompile(`GNU GRUB|Welcome to GRUB|Loading Linux|Loading initial ramdisk|SYSLINUX|ISOLINUX|EFI stub:|FreeBSD/.* boot|systemd-boot`)},
	{StageKernel, regexp.MustCompile(`Linux version \d|Decompressing Linux|^\[ +\d+\.\d{6}\] |Copyright .*The FreeBSD Project`)},
	{StageSystem, regexp.MustCompile(`systemd\[1\]: |Welcome to .*!|Started |Starting |INIT: version|OpenRC|Run /\S*init as init process|cloud-init\[`)},
	{StageLogin, regexp.MustCompile(`login: ?$`)},
}

// deaths are what machines print that will not boot.
var deaths = []struct {
	line *regexp.Regexp
	what string
}{
	{regexp.MustCompile(`Kernel panic - not syncing`), "the kernel panicked"},
	{regexp.MustCompile(`No bootable device|No bootable option or device|Boot failed: not a bootable disk`), "the firmware found nothing to boot"},
	{regexp.MustCompile(`You are in emergency mode|Entering emergency mode|Give root password for maintenance|Press Enter for maintenance`), "the system stopped in emergency mode"},
	{regexp.MustCompile(`grub rescue>|error: no such device: `), "the boot loader did not find its files"},
	{regexp.MustCompile(`^\(initramfs\) ?$|dracut:/#|ALERT! +.* does not exist`), "the initial RAM disk did not find the root file system"},
	{regexp.MustCompile(`UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY`), "a file system has to be repaired by hand"},
}

// Bounds of what is kept of a boot's output, in bytes.
const (
	maxBootLine = 4 << 10
	maxBootText = 32 << 10
)

// BootLog takes what a machine prints while it boots, and tells how far it got. Its
// methods may be called concurrently.
type BootLog struct {
	mu    sync.Mutex // guards the fields below
	line  []byte     // the one that is not at its end
	text  []byte     // the last of it all
	stage int        // index in stages
	death string
}

// Write implements io.Writer; it never fails.
func (l *BootLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text = append(l.text, p...); len(l.text) > 2*maxBootText {
		l.text = append([]byte(nil), l.text[len(l.text)-maxBootText:]...)
	}
	for rest := p; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte("\n"))
		if l.line = append(l.line, part...); len(l.line) > maxBootLine {
			l.line = append([]byte(nil), l.line[len(l.line)-maxBootLine:]...)
		}
		l.read(plainText(l.line))
		if ended {
			l.line = l.line[:0]
		}
		rest = after
	}
	return len(p), nil
}

func (l *BootLog) read(line string) {
	for _, s := range signs {
		if i := stageIndex(s.stage); i > l.stage && s.line.MatchString(line) {
			l.stage = i
		}
	}
	for _, d := range deaths {
		if l.death == "" && d.line.MatchString(line) {
			l.death = d.what
		}
	}
}

func stageIndex(s Stage) int {
	for i := range stages {
		if stages[i] == s {
			return i
		}
	}
	return 0
}

// Stage tells how far the boot got, and why it will get no further; "": it may.
func (l *BootLog) Stage() (s Stage, death string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return stages[max(l.stage, 0)], l.death
}

// Text returns the last of what was printed, as text.
func (l *BootLog) Text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return plainText(l.text[max(0, len(l.text)-maxBootText):])
}

// escapes are what terminals are told besides text: ECMA-48's control sequences,
// strings that end in BEL or ST, and two-byte escapes.
var escapes = regexp.MustCompile("\x1b(\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(\x07|\x1b\\\\)|[ -/]*[0-~])")

// plainText leaves of what a terminal gets what can be read.
func plainText(b []byte) string {
	s := escapes.ReplaceAllString(strings.ToValidUTF8(string(b), "\uFFFD"), "")
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= ' ' && r != 0x7f && r != utf8.RuneError && (r < 0x80 || r > 0x9f) {
			return r
		}
		return -1
	}, s)
}
