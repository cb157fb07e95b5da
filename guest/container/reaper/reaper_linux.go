package reaper

import (
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Name is the program name under which Main is wanted.
const Name = "docker-init"

// Main runs args, which are those of the program (after the own name), a leading
// "--" aside, and does not return.
func Main(args []string) {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fatal(127, "no program given")
	}
	path, err := find(args[0])
	if err != nil {
		fatal(code(err), "cannot run "+args[0]+": "+err.Error())
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	// A program at a terminal gets it, as it would from a shell; writing to the
	// terminal must not stop this process then.
	_, terr := unix.IoctlGetTermios(0, unix.TCGETS)
	tty := terr == nil
	signal.Ignore(unix.SIGTTIN, unix.SIGTTOU)
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Setpgid: true, Foreground: tty, Ctty: 0},
	})
	if err != nil {
		fatal(code(err), "cannot run "+args[0]+": "+err.Error())
	}
	for {
		if status, ended := reap(pid); ended {
			os.Exit(exitCode(status))
		}
		switch s := <-signals; s {
		case unix.SIGCHLD, unix.SIGURG: // the second is this program's own
		default:
			_ = unix.Kill(pid, s.(syscall.Signal))
		}
	}
}

// reap waits for all children that have ended, and says whether pid was one.
func reap(pid int) (status unix.WaitStatus, ended bool) {
	for {
		var s unix.WaitStatus
		got, err := unix.Wait4(-1, &s, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err != nil || got == 0:
			return status, ended
		case got == pid:
			status, ended = s, true
		}
	}
}

func exitCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// find looks a program up in PATH.
func find(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var err error = unix.ENOENT
	for _, dir := range strings.Split(os.Getenv("PATH"), ":") {
		if dir == "" {
			dir = "."
		}
		path := dir + "/" + name
		info, serr := os.Stat(path)
		switch {
		case serr != nil || info.IsDir():
		case info.Mode()&0o111 == 0:
			err = unix.EACCES
		default:
			return path, nil
		}
	}
	return "", err
}

func code(err error) int {
	if errors.Is(err, unix.ENOENT) {
		return 127
	}
	return 126
}

func fatal(code int, text string) {
	_, _ = os.Stderr.WriteString(Name + ": " + text + "\n")
	os.Exit(code)
}
