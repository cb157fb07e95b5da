//go:build !windows

package launch

import (
	"os/exec"
	"syscall"
)

// detach gives the daemon a session of its own: no terminal's signals reach it.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
