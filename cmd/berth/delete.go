package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/moby/term"
	"github.com/spf13/cobra"

	"github.com/berthvm/berth/host/autostart"
	"github.com/berthvm/berth/host/dockercontext"
	"github.com/berthvm/berth/host/launch"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/tray"
)

func (a *app) deleteCommand() *cobra.Command {
	var force, all bool
	c := &cobra.Command{
		Use:   "delete",
		Short: "Delete the machine with all its containers, images and volumes",
		Long: `Delete the machine with all its containers, images and volumes. With --all, delete
every machine, and with them all that Berth has left on this host: its
configuration, logs and caches, its docker contexts, what starts the icon at login,
and on Windows the service. All of it is listed first. Only the programs stay, with
the shells' completions, for your package manager to remove.`,
		Example: "  berth delete\n  berth delete --machine work --force\n  berth delete --all",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all {
				return a.deleteAll(cmd.Context(), force)
			}
			return a.deleteOne(cmd.Context(), force)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not ask")
	c.Flags().BoolVarP(&all, "all", "a", false, "Delete every machine, and all that Berth has left on this host")
	return c
}

func (a *app) deleteOne(ctx context.Context, force bool) error {
	m, err := a.machine()
	if err != nil {
		return err
	}
	if m.Name != machine.Default || m.Exists() {
		// What a newer Berth has written can be deleted too.
		if err := m.Check(); errors.Is(err, machine.ErrUnknown) {
			return err
		}
	}
	if !force {
		what := fmt.Sprintf("machine %q with all its containers, images and volumes", m.Name)
		if err := a.confirm(what); err != nil {
			return err
		}
	}
	return a.remove(ctx, m)
}

// deleteAll says what there is, asks, and removes it.
func (a *app) deleteAll(ctx context.Context, force bool) error {
	if a.machineName != "" {
		return usage("--all deletes every machine: leave --machine out")
	}
	names, err := a.home.Traces()
	if err != nil {
		return err
	}
	machines := make([]machine.Machine, len(names))
	for i, name := range names {
		if machines[i], err = a.home.Machine(name); err != nil {
			return err
		}
	}
	list := a.leftovers(machines)
	if len(list) == 0 {
		fmt.Fprintln(a.err, "There is nothing to delete.")
		return nil
	}
	fmt.Fprintln(a.err, "This will be deleted:")
	for _, what := range list {
		fmt.Fprintln(a.err, "  "+what)
	}
	if !force {
		if err := a.confirm("all of it"); err != nil {
			return err
		}
	}
	for _, m := range machines {
		if err := a.remove(ctx, m); err != nil {
			return err
		}
	}
	err = errors.Join(tray.Dismiss(ctx, a.home), autostart.Disable(tray.LoginName(a.home)), dockercontext.Open().RemoveBelow(a.home.Data))
	for _, part := range a.systemLeft() {
		if e := part.remove(ctx, a); e != nil {
			err = errors.Join(err, fmt.Errorf("%s is left: %w", part.what, e))
		}
	}
	return errors.Join(err, a.home.Remove())
}

// systemLeft is what of Berth there is in the system, which is all homes' and goes
// with the platform's own.
func (a *app) systemLeft() []installed {
	var left []installed
	for _, part := range a.system {
		if a.home.ID() == "" && part.there() {
			left = append(left, part)
		}
	}
	return left
}

// leftovers is what deleteAll removes, in the user's words.
func (a *app) leftovers(machines []machine.Machine) []string {
	var list []string
	for _, m := range machines {
		what := fmt.Sprintf("machine %q", m.Name)
		if m.LastState().State.Alive() {
			what += ", which is running,"
		}
		what += " with all its containers, images and volumes"
		if _, used := m.DiskUsage(); used > 0 {
			what += " (" + machine.Size(used).String() + ")"
		}
		list = append(list, what)
	}
	for _, name := range dockercontext.Open().Below(a.home.Data) {
		list = append(list, fmt.Sprintf("docker context %q", name))
	}
	for _, part := range a.systemLeft() {
		list = append(list, part.what)
	}
	if tray.Shown(a.home) {
		list = append(list, "the icon in the status area")
	}
	if name := tray.LoginName(a.home); autostart.Enabled(name) {
		list = append(list, "start at login: "+autostart.Where(name))
	}
	return append(list, a.home.Directories()...)
}

// confirm asks on a terminal, and refuses elsewhere.
func (a *app) confirm(what string) error {
	if a.in == nil || !term.IsTerminal(a.in.Fd()) {
		return &codeError{exitAtRisk, fmt.Errorf("this deletes %s: pass --force", what)}
	}
	fmt.Fprintf(a.err, "Delete %s? [y/N] ", what)
	answer, _ := bufio.NewReader(a.in).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return &codeError{exitFailure, errors.New("nothing was deleted")}
	}
	return nil
}

// deleteGrace is how long a guest may take to stop whose data is not wanted.
const deleteGrace = 5 * time.Second

func (a *app) remove(ctx context.Context, m machine.Machine) error {
	if !m.Exists() {
		if _, err := os.Stat(m.StateDir); err != nil {
			return nil
		}
	}
	lock, err := machine.WaitLock(ctx, m.StartLock()) // nobody starts it meanwhile
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if _, _, err := launch.Stop(ctx, m, deleteGrace); err != nil {
		return fmt.Errorf("cannot stop machine %q: %w", m.Name, err)
	}
	if err := dockercontext.Open().Remove(m); err != nil {
		fmt.Fprintln(a.err, "berth: warning:", err)
	}
	if runtime.GOOS == "windows" { // where nobody can remove a lock that is held, this one neither
		lock.Unlock()
	}
	return m.Delete()
}
