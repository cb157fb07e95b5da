package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/docker/cli/cli"
	"golang.org/x/crypto/ssh"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/launch"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
)

// The exit codes. Beside them, "run", "create" and "exec" have docker's 125 to
// 127, "ssh" has its command's, and 128+N stands for signal N.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitNotRunning  = 3
	exitUnsupported = 4
	exitTimeout     = 5
	exitAtRisk      = 6
)

// codeError is an error with its exit code.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, args...)}
}

func notRunning(name string) error {
	return &codeError{exitNotRunning, fmt.Errorf("machine %q is not running: start it with \"berth start%s\"", name, operand(name))}
}

// operand is how a machine is named on the command line.
func operand(name string) string {
	if name == machine.Default {
		return ""
	}
	return " --machine " + name
}

// exitCode is the only place where errors become exit codes.
func exitCode(err error) int {
	var (
		code   *codeError
		docker cli.StatusError
		sig    signaled
		start  *launch.Error
		death  *daemon.Error
		remote *ssh.ExitError
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return code.code
	case errors.As(err, &remote):
		return remoteCode(remote)
	case errors.As(err, &sig):
		if s, ok := sig.Signal.(syscall.Signal); ok {
			return 128 + int(s)
		}
	case errors.As(err, &docker) && docker.StatusCode != 0:
		return docker.StatusCode
	case errors.As(err, &start):
		return kindCode(start.Kind)
	case errors.As(err, &death):
		return kindCode(death.Kind)
	case errors.Is(err, vm.ErrUnavailable):
		return exitUnsupported
	case errors.Is(err, os.ErrDeadlineExceeded):
		return exitTimeout
	case errors.Is(err, machine.ErrAtRisk), errors.Is(err, syscall.ENOSPC):
		return exitAtRisk
	}
	return exitFailure
}

func kindCode(k api.Kind) int {
	switch k {
	case api.KindUnsupported:
		return exitUnsupported
	case api.KindTimeout:
		return exitTimeout
	case api.KindAtRisk:
		return exitAtRisk
	}
	return exitFailure
}

// dockerError is one that docker's own command has worded.
type dockerError struct{ error }

func (e dockerError) Unwrap() error { return e.error }

// fromDocker marks an error as docker's; nil stays nil.
func fromDocker(err error) error {
	if err == nil {
		return nil
	}
	return dockerError{err}
}

// wordless says that an error needs no words: docker's commands have none of their
// own for it, or the user has ended one that only showed something.
func wordless(err error) bool {
	return err.Error() == "" || errors.As(err, new(dockerError)) && errors.As(err, new(signaled))
}

// message is what the user reads. Docker's commands call themselves docker here
// and there.
func message(err error) string {
	text := err.Error()
	if errors.As(err, new(dockerError)) || errors.As(err, new(cli.StatusError)) {
		if own, ok := strings.CutPrefix(text, "docker: "); ok {
			text = "berth: " + own
		}
		return strings.ReplaceAll(text, "\nRun 'docker ", "\nRun 'berth ")
	}
	return "berth: " + strings.TrimPrefix(text, "berth: ")
}
