package main

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/commands"
	"github.com/docker/cli/cli/flags"
	dockerversion "github.com/docker/cli/cli/version"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/version"
)

// absent are docker's commands that make no sense here, with the reason.
var absent = map[string]string{
	"swarm":      noSwarm,
	"node":       noSwarm,
	"service":    noSwarm,
	"stack":      noSwarm,
	"secret":     noSwarm,
	"config":     noSwarm + `; a machine's configuration is "berth machine config"`,
	"plugin":     "its engine takes no plugins",
	"context":    `it talks to one machine, which --machine names; use "docker context" for docker's`,
	"checkpoint": "its engine makes no checkpoints",
	"trust":      "docker has retired content trust",
}

const noSwarm = "its engine is a single one, not a swarm"

// addDocker adds docker's own commands. Where docker and the machine share a
// verb, the operand decides.
func (a *app) addDocker(ctx context.Context, root *cobra.Command) {
	dc, err := command.NewDockerCli(command.WithBaseContext(ctx), command.WithInputStream(a.in),
		command.WithOutputStream(a.out), command.WithErrorStream(a.err))
	if err != nil { // none of these options fails
		panic(err)
	}
	a.docker = dc
	nameClient()
	logrus.SetOutput(a.err)
	holder := &cobra.Command{}
	commands.AddCommands(holder, dc)
	for _, c := range holder.Commands() {
		holder.RemoveCommand(c)
		if _, ok := absent[c.Name()]; ok {
			continue
		}
		a.lead(c)
		a.share(c)
		root.AddCommand(c)
	}
	a.addHanded(root)
}

// nameClient is what "berth version" says of the client. docker's own version is
// that of the library.
func nameClient() {
	dockerversion.PlatformName = "Berth " + version.String()
	dockerversion.Version, dockerversion.GitCommit, dockerversion.BuildTime = "29", "", ""
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	for _, dep := range info.Deps {
		if dep.Path == "github.com/docker/cli" {
			dockerversion.Version = strings.TrimSuffix(strings.TrimPrefix(dep.Version, "v"), "+incompatible")
		}
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			dockerversion.GitCommit = s.Value[:12]
		case s.Key == "vcs.time":
			dockerversion.BuildTime = s.Value
		}
	}
}

// lead makes every docker command below c talk to the machine, and start it.
func (a *app) lead(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.lead(sub)
	}
	if names, ok := c.Annotations["aliases"]; ok {
		c.Annotations["aliases"] = strings.ReplaceAll(names, "docker ", "berth ")
	}
	if orig := c.RunE; orig != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if c.HasSubCommands() { // shows its help, or refuses an operand
				return fromDocker(orig(cmd, args))
			}
			if err := a.connect(cmd.Context(), true); err != nil {
				return err
			}
			return fromDocker(orig(cmd, args))
		}
	}
	if orig := c.ValidArgsFunction; orig != nil {
		c.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if err := a.connect(context.Background(), false); err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return orig(cmd, args, word)
		}
	}
}

// connect presets docker's endpoint and, with autostart, makes sure that it
// answers. Without, a machine that does not run is an error.
//
// Whether it runs is known from its lock and state file, which costs less than a
// connection into the guest would.
func (a *app) connect(ctx context.Context, autostart bool) error {
	m, err := a.ready(ctx, autostart)
	if err != nil {
		return err
	}
	return a.docker.Initialize(&flags.ClientOptions{Hosts: []string{m.DockerHost()}, LogLevel: "info"})
}

// ready is the machine that is meant, which runs.
func (a *app) ready(ctx context.Context, autostart bool) (machine.Machine, error) {
	m, err := a.existing()
	if err != nil || m.LastState().State == api.Running {
		return m, err
	}
	if !autostart {
		return m, notRunning(m.Name)
	}
	c, err := m.LoadConfig()
	if err != nil {
		return m, fmt.Errorf("cannot start machine %q: %w", m.Name, err)
	}
	if !c.Autostart {
		return m, notRunning(m.Name)
	}
	_, err = a.start(ctx, m, 0)
	return m, err
}

// share turns docker's start, stop, restart and logs into commands that mean the
// machine when they have no operand.
func (a *app) share(c *cobra.Command) {
	var ofMachine func(cmd *cobra.Command) error
	var flags []string // docker's that mean something for a machine too
	long := "With containers' names: "
	switch c.Name() {
	case "start":
		timeout := c.Flags().Duration("timeout", 0, "Machine: give up after this time")
		anew := c.Flags().Bool("anew", false, "Machine: drop a saved state")
		ofMachine = func(cmd *cobra.Command) error { return a.runStart(cmd.Context(), *timeout, *anew) }
		flags = []string{"timeout", "anew"}
		long = "Without an operand: boot the machine, as 'berth machine start' does.\n" + long
	case "stop":
		ofMachine = func(cmd *cobra.Command) error { return a.runStop(cmd.Context(), secondsFlag(cmd)) }
		flags = []string{"time", "timeout"}
		long = "Without an operand: switch the machine off, as 'berth machine stop' does.\n" + long
	case "restart":
		ofMachine = func(cmd *cobra.Command) error { return a.runRestart(cmd.Context(), 0) }
		long = "Without an operand: restart the machine, as 'berth machine restart' does.\n" + long
	case "logs":
		ofMachine = func(cmd *cobra.Command) error {
			q, err := logQuery(cmd)
			if err != nil {
				return err
			}
			return a.runLogs(cmd.Context(), q)
		}
		flags = []string{"follow", "tail"}
		long = "Without an operand: show the machine's logs, as 'berth machine logs' does.\n" + long
	default:
		return
	}
	forContainers, checkArgs := c.RunE, c.Args
	c.Use = strings.Replace(c.Use, "CONTAINER [CONTAINER...]", "[CONTAINER...]", 1)
	c.Use = strings.Replace(c.Use, "OPTIONS] CONTAINER", "OPTIONS] [CONTAINER]", 1)
	c.Long = long + strings.ToLower(c.Short[:1]) + c.Short[1:] + "."
	c.Short = map[string]string{
		"start": "Boot the machine, or start containers", "stop": "Switch the machine off, or stop containers",
		"restart": "Restart the machine, or containers", "logs": "Show the logs of the machine, or of a container",
	}[c.Name()]
	c.Annotations = top(c.Annotations)
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return onlyFlags(cmd, flags)
		}
		return checkArgs(cmd, args)
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return ofMachine(cmd)
		}
		return forContainers(cmd, args)
	}
}
