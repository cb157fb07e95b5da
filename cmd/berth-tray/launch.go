package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
)

func lookPath(name string) (string, error) { return exec.LookPath(name) }

// launch starts a program in a session of its own.
func launch(argv []string, window bool) (wait func() error, err error) {
	var output bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	if !window {
		cmd.Stderr = &output
	}
	apart(cmd, window)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot run %s: %w", argv[0], err)
	}
	return func() error {
		err := cmd.Wait()
		if words := lastLine(output.Bytes()); err != nil && words != "" {
			return errors.New(words)
		}
		return err
	}, nil
}
