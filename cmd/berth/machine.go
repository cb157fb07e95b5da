package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/launch"
	"github.com/berthvm/berth/host/logfile"
	"github.com/berthvm/berth/host/machine"
)

// machineCommand is the canonical form of everything about machines.
func (a *app) machineCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "machine",
		Short: "Manage virtual machines",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("unknown command %q: see 'berth machine --help'", "machine "+args[0])
			}
			return cmd.Help()
		},
	}
	c.AddCommand(a.startCommand(), a.stopCommand(), a.restartCommand(), a.statusCommand(), a.deleteCommand(),
		a.listCommand(), a.sshCommand(), a.logsCommand(), a.configCommand(), a.pauseCommand(), a.resumeCommand(), a.saveCommand())
	return c
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("%q takes no operand, but got %q: machines are named by --machine", cmd.CommandPath(), args[0])
	}
	return nil
}

func (a *app) startCommand() *cobra.Command {
	var timeout time.Duration
	var anew bool
	c := &cobra.Command{
		Use:   "start",
		Short: "Boot the machine and wait until its engine answers",
		Long: `Boot the machine and wait until its engine answers. A machine that runs is left
as it is; one that is not there yet is created; what a crash has left is repaired.
One whose state was saved goes on from it.`,
		Example: "  berth start\n  berth start --machine work --timeout 10m",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runStart(cmd.Context(), timeout, anew)
		},
	}
	c.Flags().BoolVar(&anew, "anew", false, "Drop a saved state: boot as after a power cut")
	c.Flags().DurationVar(&timeout, "timeout", 0, "Give up after this time (default: start-timeout of the configuration)")
	return c
}

func (a *app) runStart(ctx context.Context, timeout time.Duration, anew bool) error {
	if timeout < 0 {
		return usage("--timeout: %s is negative", timeout)
	}
	m, err := a.machine()
	if err != nil {
		return err
	}
	if anew && m.Exists() && !m.LastState().State.Alive() {
		lock, err := machine.WaitLock(ctx, m.StartLock()) // nobody starts it meanwhile
		if err != nil {
			return err
		}
		err = m.DropSaved()
		lock.Unlock()
		if err != nil {
			return fmt.Errorf("cannot drop the saved state of machine %q: %w", m.Name, err)
		}
	}
	_, err = a.start(ctx, m, timeout)
	return err
}

func (a *app) saveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "save",
		Short: "Save the machine's state and switch it off",
		Long: `Save the machine's state to a file and switch the machine off. The next start goes
on from there: containers run on as if nothing had been, with the clock set. Only
connections break. The file takes as much of the disk as the machine has used of its
memory. A state is of no use any more once Berth, the hypervisor or the machine's
configuration has changed; then the machine boots as after a power cut.

Containers that use folders of the host which come by 9P (macOS, Windows, and Linux
with "streams: serial") have to be stopped first. QEMU saves machines with
"streams: serial" only.`,
		Example: "  berth machine save\n  berth start",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runSave(cmd.Context())
		},
	}
}

func (a *app) runSave(ctx context.Context) error {
	m, err := a.existing()
	if err != nil {
		return err
	}
	s, err := launch.Save(ctx, m)
	switch {
	case errors.Is(err, api.ErrUnreachable) && !m.LastState().State.Alive():
		return notRunning(m.Name)
	case err != nil:
		return fmt.Errorf("cannot save machine %q: %w", m.Name, err)
	case s.LastError != "":
		return errors.New(s.LastError)
	}
	return nil
}

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pause",
		Short: "Freeze the machine, until somebody uses it",
		Long: `Freeze the machine: its containers stop where they are and take no CPU, but keep
their memory. "berth machine resume" sets it going again, and so does whoever
connects to it, such as any of docker's commands.`,
		Example: "  berth machine pause",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.freeze(cmd.Context(), "pause", (*api.Client).Pause)
		},
	}
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "resume",
		Short:   "Set a paused machine going again",
		Example: "  berth machine resume",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.freeze(cmd.Context(), "resume", (*api.Client).Resume)
		},
	}
}

func (a *app) freeze(ctx context.Context, what string, call func(*api.Client, context.Context) error) error {
	m, err := a.existing()
	if err != nil {
		return err
	}
	s, err := launch.Status(ctx, m)
	if err != nil {
		return err
	}
	if !s.State.Alive() {
		return notRunning(m.Name)
	}
	if err := call(api.NewClient(m.APIAddress()), ctx); err != nil {
		return fmt.Errorf("cannot %s machine %q: %w", what, m.Name, err)
	}
	return nil
}

func (a *app) stopCommand() *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use:     "stop",
		Short:   "Switch the machine off",
		Long:    "Switch the machine off: containers are stopped first. When the time is over the plug is pulled.",
		Example: "  berth stop\n  berth stop --machine work --timeout 10s",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runStop(cmd.Context(), timeout)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 0, "Pull the plug after this time (default: stop-timeout of the configuration)")
	return c
}

func (a *app) runStop(ctx context.Context, timeout time.Duration) error {
	m, err := a.existing()
	if err != nil {
		return err
	}
	return a.stop(ctx, m, timeout)
}

func (a *app) stop(ctx context.Context, m machine.Machine, timeout time.Duration) error {
	if timeout < 0 {
		return usage("--timeout: %s is negative", timeout)
	}
	if timeout == 0 {
		c, err := m.LoadConfig()
		if err != nil {
			c = machine.DefaultConfig() // stopping must not depend on it
		}
		timeout = time.Duration(c.StopTimeout)
	}
	s, stopped, err := launch.Stop(ctx, m, timeout)
	if err != nil {
		return fmt.Errorf("cannot stop machine %q: %w", m.Name, err)
	}
	if stopped && s.LastError != "" {
		fmt.Fprintln(a.err, "berth: warning:", s.LastError)
	}
	return nil
}

func (a *app) restartCommand() *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use:     "restart",
		Short:   "Switch the machine off and boot it again",
		Long:    "Switch the machine off, if it runs, and boot it again with its configuration as it is now.",
		Example: "  berth restart",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runRestart(cmd.Context(), timeout)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 0, "Give up after this time (default: start-timeout of the configuration)")
	return c
}

func (a *app) runRestart(ctx context.Context, timeout time.Duration) error {
	m, err := a.existing()
	if err != nil {
		return err
	}
	if err := a.stop(ctx, m, 0); err != nil {
		return err
	}
	_, err = a.start(ctx, m, timeout)
	return err
}

func (a *app) logsCommand() *cobra.Command {
	var q api.LogQuery
	c := &cobra.Command{
		Use:     "logs",
		Short:   "Show the machine's logs: its daemon's and the guest's console",
		Example: "  berth machine logs --tail 50\n  berth machine logs --follow --source console",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runLogs(cmd.Context(), q)
		},
	}
	c.Flags().StringVar(&q.Source, "source", "", `"daemon" or "console" (default both)`)
	c.Flags().IntVarP(&q.Tail, "tail", "n", -1, "Show this many last lines of each (default all)")
	c.Flags().BoolVarP(&q.Follow, "follow", "f", false, "Show what comes until the machine stops")
	return c
}

// runLogs reads the files, or asks the daemon when the logs are to be followed.
func (a *app) runLogs(ctx context.Context, q api.LogQuery) error {
	m, err := a.existing()
	if err != nil {
		return err
	}
	sources := []string{api.LogDaemon, api.LogConsole}
	switch q.Source {
	case "":
	case api.LogDaemon, api.LogConsole:
		sources = []string{q.Source}
	default:
		return usage("--source: %q is neither daemon nor console", q.Source)
	}
	if q.Follow && m.LastState().State.Alive() {
		return a.followLogs(ctx, m, sources, q)
	}
	for i, source := range sources {
		if len(sources) > 1 {
			fmt.Fprintf(a.out, "%s==> %s <==\n", map[bool]string{true: "\n"}[i > 0], source)
		}
		file := m.ConsoleLog()
		if source == api.LogDaemon {
			file = m.DaemonLog()
		}
		if err := logfile.Tail(file, q.Tail, a.out); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) followLogs(ctx context.Context, m machine.Machine, sources []string, q api.LogQuery) error {
	client := api.NewClient(m.APIAddress())
	out := &lockedWriter{w: a.out}
	errs := make(chan error, len(sources))
	for _, source := range sources {
		q := q
		q.Source = source
		go func() { errs <- client.Logs(ctx, q, out) }()
	}
	var err error
	for range sources {
		err = errors.Join(err, <-errs)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (a *app) configCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "config [KEY=VALUE...]",
		Short: "Show or change the machine's configuration",
		Long: `Show the machine's configuration, defaults included, or change keys of it. The
file keeps its comments. KEY= takes a key out. Changes work from the next start.`,
		Example: "  berth machine config\n  berth machine config cpus=4 memory=8GiB",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			m, err := a.existing()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				return a.setConfig(m, args)
			}
			return a.showConfig(m, format)
		},
	}
	addFormat(c, &format)
	return c
}

func (a *app) setConfig(m machine.Machine, args []string) error {
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok || key == "" {
			return usage("%q is not KEY=VALUE", arg)
		}
		if err := m.Set(key, value); err != nil {
			return err
		}
	}
	if m.LastState().State.Alive() {
		fmt.Fprintf(a.err, "Run \"berth restart%s\" for the change to work.\n", operand(m.Name))
	}
	return nil
}

func (a *app) showConfig(m machine.Machine, format string) error {
	c, err := m.LoadConfig()
	if err != nil {
		return err
	}
	if format == "json" {
		return a.json(c)
	}
	body, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "# %s\n%s", m.ConfigFile, body)
	return nil
}
