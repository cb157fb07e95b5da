package main

import (
	"errors"
	"os"
	"os/exec"
)

// become runs a program in this one's place and ends with its exit code. A Ctrl-C
// reaches every process of the console, so this one only waits.
func become(program string, args, env []string) error {
	cmd := exec.Command(program, args...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &codeError{exit.ExitCode(), errors.New("")}
	}
	return err
}
