//go:build !windows

package main

import (
	"fmt"
	"syscall"
)

// become replaces this process by a program, so that signals, the terminal and
// the exit code are its own. It returns only if that fails.
func become(program string, args, env []string) error {
	if err := syscall.Exec(program, append([]string{program}, args...), env); err != nil {
		return fmt.Errorf("cannot run %s: %w", program, err)
	}
	return nil
}
