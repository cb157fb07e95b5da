package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/cli/cli/command"
	"github.com/moby/term"
	"github.com/spf13/cobra"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/dockercontext"
	"github.com/berthvm/berth/host/launch"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/version"
	"github.com/berthvm/berth/vm"
)

// wiring is what the program takes from its surroundings; tests bring their own.
type wiring struct {
	in       *os.File
	out, err io.Writer
	getenv   func(string) string
	// driver is the hypervisor of this host.
	driver func(machine.Machine, machine.Config, *slog.Logger) vm.Driver
	// image opens the guest's image in a directory and verifies it.
	image func(ctx context.Context, dir string) (daemon.Image, error)
	// builder finds the program that builds images and runs stacks.
	builder func() (string, error)
	// system is what Berth has had an administrator put into the system.
	system []installed
	// guest fills in how the daemon reaches the guest and the guest the network.
	guest func(*daemon.Options)
}

// installed is something of Berth's that belongs to the whole system.
type installed struct {
	what   string // for the user
	there  func() bool
	remove func(context.Context, *app) error
}

// app is one run of the program.
type app struct {
	wiring
	home        machine.Home
	machineName string // of --machine
	docker      *command.DockerCli
}

func newApp(w wiring) (*app, error) {
	home, err := machine.Locate(w.getenv)
	if err != nil {
		return nil, err
	}
	return &app{wiring: w, home: home}, nil
}

// machine is the one that --machine or BERTH_MACHINE names. It may not exist.
func (a *app) machine() (machine.Machine, error) {
	name := a.machineName
	if name == "" {
		name = a.getenv("BERTH_MACHINE")
	}
	if name == "" {
		name = machine.Default
	}
	m, err := a.home.Machine(name)
	if err != nil {
		return m, &codeError{exitUsage, err}
	}
	return m, nil
}

// existing is the machine that is meant, which must exist. The default one is
// spoken of as if it did: it is stopped until it is first started.
func (a *app) existing() (machine.Machine, error) {
	m, err := a.machine()
	if err != nil || m.Name == machine.Default && !m.Exists() {
		return m, err
	}
	return m, m.Check()
}

// start brings the machine up, showing progress.
func (a *app) start(ctx context.Context, m machine.Machine, timeout time.Duration) (api.Status, error) {
	if err := m.CheckSpace(); err != nil {
		return api.Status{}, fmt.Errorf("cannot start machine %q: %w", m.Name, err)
	}
	first := !m.Exists()
	if err := m.Create(ctx); err != nil {
		return api.Status{}, err
	}
	if _, err := m.LoadConfig(); err != nil {
		return api.Status{}, fmt.Errorf("cannot start machine %q: %w", m.Name, err)
	}
	self, err := os.Executable()
	if err != nil {
		return api.Status{}, fmt.Errorf("cannot find this program: %w", err)
	}
	argv := []string{self, "daemon", "--machine", m.Name}
	if timeout > 0 {
		argv = append(argv, "--timeout", timeout.String())
		var cancel context.CancelFunc
		// The daemon keeps the deadline; this one is for a start that somebody else began.
		ctx, cancel = context.WithTimeoutCause(ctx, timeout+time.Second, &codeError{exitTimeout,
			fmt.Errorf("machine %q is not up after %s: see \"berth logs%s\"", m.Name, timeout, operand(m.Name))})
		defer cancel()
	}
	p := newStartProgress(a.err, m.Name)
	s, err := launch.Start(ctx, launch.Options{Machine: m, Daemon: argv, Env: a.daemonEnv(), Report: p.report})
	p.end(err)
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(err, context.DeadlineExceeded) && cause != nil {
			return s, cause
		}
		return s, err
	}
	if first && s.Reason != "" {
		fmt.Fprintf(a.err, "berth: note: the machine runs in %s: %s\n", strings.TrimSpace(s.Hypervisor+" "+acceleration(api.Status{Acceleration: s.Acceleration})), s.Reason)
	}
	if err := dockercontext.Open().Ensure(m); err != nil {
		fmt.Fprintln(a.err, "berth: warning:", err)
	}
	return s, nil
}

// daemonEnv makes the paths in our variables absolute: the daemon works in
// another directory.
func (a *app) daemonEnv() []string {
	var env []string
	for _, key := range []string{machine.EnvHome, "BERTH_IMAGE"} {
		if dir := a.getenv(key); dir != "" {
			if abs, err := filepath.Abs(dir); err == nil {
				env = append(env, key+"="+abs)
			}
		}
	}
	return env
}

// isTerminal reports whether w is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(f.Fd())
}

// root builds the command tree.
func (a *app) root(ctx context.Context) *cobra.Command {
	root := &cobra.Command{
		Use:   "berth [OPTIONS] COMMAND [ARG...]",
		Short: "Containers in a light virtual machine",
		Long: `Berth boots a light Linux virtual machine and runs containers in it as if they
were native. Docker's commands are built in; other Docker clients find the
machine by the docker context "berth".`,
		Example: `  berth start                      boot the machine
  berth run --rm hello             run a container (starts the machine if need be)
  berth status                     the machine, its sockets, what it costs
  berth ssh                        a shell in the machine
  berth stop                       switch it off`,
		Version:               version.String(),
		SilenceUsage:          true,
		SilenceErrors:         true,
		TraverseChildren:      true,
		DisableFlagsInUseLine: true,
		Args:                  cobra.ArbitraryArgs,
		RunE:                  a.unknown,
	}
	a.setupHelp(root)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.PersistentFlags().StringVar(&a.machineName, "machine", "", `Machine to use (default "default", or $BERTH_MACHINE)`)
	root.RegisterFlagCompletionFunc("machine", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		names, _ := a.home.Names()
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	root.CompletionOptions.DisableDefaultCmd = true
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)

	root.AddCommand(a.machineCommand(), a.daemonCommand(), a.doctorCommand(), a.trayCommand())
	root.AddCommand(a.platformCommands()...)
	for _, c := range []*cobra.Command{a.statusCommand(), a.deleteCommand(), a.listCommand(), a.sshCommand()} {
		c.Annotations = top(c.Annotations)
		root.AddCommand(c)
	}
	a.addDocker(ctx, root)
	root.AddCommand(a.completionCommand(root))
	usageLine(root)
	return root
}

// unknown answers to a command that is not there.
func (a *app) unknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	if why, ok := absent[args[0]]; ok {
		return &codeError{exitFailure, fmt.Errorf("berth has no %q: %s", args[0], why)}
	}
	cmd.SuggestionsMinimumDistance = 1 + len(args[0])/5
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return usage("unknown command %q: did you mean %q?", args[0], near[0])
	}
	return usage("unknown command %q: see 'berth --help'", args[0])
}

// top puts a command among the common ones in the help.
func top(annotations map[string]string) map[string]string {
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations["category-top"] = "0"
	return annotations
}
