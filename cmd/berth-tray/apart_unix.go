//go:build !windows

package main

import (
	"os/exec"
	"syscall"
)

// apart gives the program a session of its own: it stays when the icon goes.
func apart(cmd *exec.Cmd, _ bool) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
