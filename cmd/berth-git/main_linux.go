// Command berth-git is the machine's git, for builds: it has the engine run git in
// a container (see guest/build/git) and ends as that does. The builder calls it by
// the name git.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/build/git/call"
)

// failed is git's own exit code for what went wrong before it began.
const failed = 128

func main() {
	if len(os.Args) == 2 && os.Args[1] == "version" {
		return // asks whether there is git
	}
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "git runs in builds only:", err)
	}
	os.Exit(code)
}

func run() (code int, err error) {
	dir, _ := os.Getwd()
	message := call.Call{Dir: dir, Args: os.Args[1:], Env: os.Environ()}.Encode()
	if len(message) > call.MaxSize {
		return failed, fmt.Errorf("ask the engine: %w", unix.E2BIG)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return failed, fmt.Errorf("ask the engine: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: call.Socket}); err != nil {
		return failed, fmt.Errorf("reach the engine: %w", err)
	}
	if err := unix.Sendmsg(fd, message, unix.UnixRights(1, 2), nil, unix.MSG_NOSIGNAL); err != nil {
		return failed, fmt.Errorf("ask the engine: %w", err)
	}
	var answer [1]byte
	for {
		n, err := unix.Read(fd, answer[:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return failed, fmt.Errorf("hear from the engine: %w", err)
		case n == 0:
			return failed, nil // it has said why
		default:
			return int(answer[0]), nil
		}
	}
}
