package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/moby/term"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/machine"
)

// sshTimeout bounds connecting and logging in; an emulated guest is slow at it.
const sshTimeout = time.Minute

func (a *app) sshCommand() *cobra.Command {
	var tty bool
	c := &cobra.Command{
		Use:   "ssh [-- COMMAND [ARG...]]",
		Short: "Open a shell in the machine, or run a command there",
		Long: `Open a shell in the machine, or run a command there by its shell, and exit with
its exit code. The keys were made for the machine; the connection does not leave
this host.`,
		Example: "  berth ssh\n  berth ssh -- uname -a\n  berth ssh -t -- top",
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := a.existing()
			if err != nil {
				return err
			}
			return a.ssh(cmd.Context(), m, strings.Join(args, " "), tty)
		},
	}
	c.Flags().BoolVarP(&tty, "tty", "t", false, "Give the command a terminal")
	c.Flags().SetInterspersed(false)
	return c
}

func (a *app) ssh(ctx context.Context, m machine.Machine, command string, tty bool) error {
	if m.LastState().State != api.Running {
		return notRunning(m.Name)
	}
	client, err := dialSSH(ctx, m)
	if err != nil {
		return err
	}
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	session, err := client.NewSession()
	if err != nil {
		return fmt.Errorf("cannot open a session in machine %q: %w", m.Name, err)
	}
	defer session.Close()

	session.Stdout, session.Stderr = a.out, a.err
	// Not session.Stdin: Wait would then wait for a read of ours to return.
	stdin, err := session.StdinPipe()
	if err != nil {
		return err
	}
	interactive := a.in != nil && term.IsTerminal(a.in.Fd())
	if tty || command == "" && interactive {
		restore, err := a.terminal(session, interactive)
		if err != nil {
			return err
		}
		defer restore()
	}
	if command == "" {
		err = session.Shell()
	} else {
		err = session.Start(command)
	}
	if err != nil {
		return fmt.Errorf("cannot run in machine %q: %w", m.Name, err)
	}
	if a.in != nil {
		go func() {
			io.Copy(stdin, a.in)
			stdin.Close()
		}()
	}
	return remoteError(ctx, m, session.Wait())
}

// remoteError keeps a command's exit code and explains everything else.
func remoteError(ctx context.Context, m machine.Machine, err error) error {
	var missing *ssh.ExitMissingError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, new(*ssh.ExitError)):
		return &silent{err}
	case errors.As(err, &missing):
		return fmt.Errorf("the connection to machine %q was lost", m.Name)
	}
	return fmt.Errorf("ssh to machine %q: %w", m.Name, err)
}

// silent is an error that says nothing: the command has said it.
type silent struct{ error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.error }

// remoteCode is the exit code that a shell would have for the same end.
func remoteCode(e *ssh.ExitError) int {
	if e.Signal() != "" {
		for n, name := range []string{1: "HUP", 2: "INT", 3: "QUIT", 6: "ABRT", 9: "KILL", 11: "SEGV", 13: "PIPE", 15: "TERM"} {
			if name == e.Signal() {
				return 128 + n
			}
		}
		return 128
	}
	return e.ExitStatus()
}

// dialSSH logs in to the machine as root. The host key must be the machine's own.
func dialSSH(ctx context.Context, m machine.Machine) (*ssh.Client, error) {
	keys, err := m.Keys()
	if err != nil {
		return nil, err
	}
	conn, err := api.Dial(ctx, m.SSHAddress())
	if err != nil {
		return nil, fmt.Errorf("cannot reach machine %q: %w", m.Name, err)
	}
	conn.SetDeadline(time.Now().Add(sshTimeout))
	c, channels, requests, err := ssh.NewClientConn(conn, m.Name, &ssh.ClientConfig{
		User:              "root",
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(keys.Client)},
		HostKeyCallback:   ssh.FixedHostKey(keys.Host),
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
	})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot log in to machine %q: %w", m.Name, err)
	}
	conn.SetDeadline(time.Time{})
	return ssh.NewClient(c, channels, requests), nil
}

// terminal gives the session a terminal like ours: raw here, cooked there, and
// always of the same size. The function it returns puts ours back.
func (a *app) terminal(session *ssh.Session, interactive bool) (restore func(), err error) {
	name := a.getenv("TERM")
	if name == "" {
		name = "xterm"
	}
	size := func() (rows, cols int) {
		for _, f := range []any{a.in, a.out} {
			file, ok := f.(*os.File)
			if !ok || file == nil {
				continue
			}
			if ws, err := term.GetWinsize(file.Fd()); err == nil && ws.Height > 0 {
				return int(ws.Height), int(ws.Width)
			}
		}
		return 24, 80
	}
	rows, cols := size()
	if err := session.RequestPty(name, rows, cols, ssh.TerminalModes{ssh.ECHO: 1}); err != nil {
		return nil, fmt.Errorf("the machine gives no terminal: %w", err)
	}
	if !interactive {
		return func() {}, nil
	}
	old, err := term.SetRawTerminal(a.in.Fd())
	if err != nil {
		return nil, fmt.Errorf("cannot make the terminal raw: %w", err)
	}
	stop := onResize(func() {
		rows, cols := size()
		session.WindowChange(rows, cols)
	})
	return func() {
		stop()
		term.RestoreTerminal(a.in.Fd(), old)
	}, nil
}
