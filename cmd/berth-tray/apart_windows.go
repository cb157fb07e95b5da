package main

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/windows"
)

// apart gives the program a console of its own, or none.
func apart(cmd *exec.Cmd, window bool) {
	flags := uint32(windows.CREATE_NEW_PROCESS_GROUP | windows.CREATE_NO_WINDOW)
	if window {
		flags = windows.CREATE_NEW_PROCESS_GROUP | windows.CREATE_NEW_CONSOLE
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: flags}
}
