package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/launch"
	"github.com/berthvm/berth/host/machine"
)

func addFormat(c *cobra.Command, format *string) {
	c.Flags().StringVar(format, "format", "table", `Output: "table" or "json"`)
	c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func checkFormat(format string) error {
	if format != "table" && format != "json" {
		return usage("--format: %q is neither table nor json", format)
	}
	return nil
}

func (a *app) json(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func (a *app) statusCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show the machine's state, its sockets and what it is lent",
		Example: "  berth status\n  berth status --format json | jq -r .dockerSocket",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			m, err := a.existing()
			if err != nil {
				return err
			}
			s, err := launch.Status(cmd.Context(), m)
			if err != nil {
				return err
			}
			s = complete(m, s)
			if format == "json" {
				return a.json(s)
			}
			return a.statusTable(s, usageOf(cmd.Context(), m, s))
		},
	}
	addFormat(c, &format)
	return c
}

// complete fills in what is known of a machine without a daemon.
func complete(m machine.Machine, s api.Status) api.Status {
	s.Name, s.Config, s.Console, s.Log = m.Name, m.ConfigFile, m.ConsoleLog(), m.DaemonLog()
	s.DockerHost, s.DockerSocket = m.DockerHost(), m.DockerAddress()
	size, used := m.DiskUsage()
	s.DiskUsed = used
	if size > 0 {
		s.DiskBytes = size
	}
	if c, err := m.LoadConfig(); err == nil && !s.State.Alive() {
		s.CPUs, s.MemoryMiB, s.DiskBytes = c.CPUs, int(c.Memory>>20), int64(c.Disk)
	}
	return s
}

// usageTimeout bounds a question that a status can do without.
const usageTimeout = 3 * time.Second

// usageOf asks the guest what it uses; nil when it does not say.
func usageOf(ctx context.Context, m machine.Machine, s api.Status) *api.Usage {
	if s.State != api.Running {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	u, err := api.NewClient(m.APIAddress()).Usage(ctx)
	if err != nil {
		return nil
	}
	return &u
}

func (a *app) statusTable(s api.Status, u *api.Usage) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	row := func(key, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s:\t%s\n", key, value)
		}
	}
	state := string(s.State)
	if s.Paused {
		state += ", paused"
	}
	if !s.Since.IsZero() {
		state += ", for " + units.HumanDuration(time.Since(s.Since))
	}
	if s.Phase != "" {
		state += ", in phase " + strconv.Quote(s.Phase)
	}
	if !s.Saved.IsZero() {
		state += ", saved " + units.HumanDuration(time.Since(s.Saved)) + " ago"
	}
	row("Machine", s.Name)
	row("State", state)
	row("Last error", s.LastError)
	if s.State.Alive() {
		row("Daemon", fmt.Sprintf("berth %s, pid %d", s.Version, s.PID))
		row("Hypervisor", strings.TrimSpace(s.Hypervisor+" "+acceleration(s)))
		row("Kernel", s.Kernel)
	}
	row("CPUs", strconv.Itoa(s.CPUs))
	memory := machine.Size(int64(s.MemoryMiB) << 20).String()
	if u != nil {
		memory += fmt.Sprintf(", of which %dMiB used", u.MemoryUsed>>20)
	}
	row("Memory", memory)
	row("Disk", machine.Size(s.DiskBytes).String()+", of which "+machine.Size(s.DiskUsed).String()+" occupied")
	if e := s.Engine; e != nil && s.State.Alive() && (!e.Running || e.Restarts > 0) {
		row("Engine", fmt.Sprintf("running: %t, restarted %d times, last because: %s", e.Running, e.Restarts, e.Reason))
	}
	row("Docker", s.DockerHost)
	row("Config", s.Config)
	row("Logs", s.Log+", "+s.Console)
	if s.State.Alive() {
		for _, l := range s.Lent {
			row("Lent", l.What+": "+l.Detail)
		}
	}
	return w.Flush()
}

func acceleration(s api.Status) string {
	if s.Acceleration == "" {
		return ""
	}
	if s.Reason == "" {
		return "with " + s.Acceleration
	}
	return "with " + s.Acceleration + " (" + s.Reason + ")"
}

func (a *app) listCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:     "list",
		Aliases: nil,
		Short:   "List machines",
		Example: "  berth list\n  berth list --format json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			names, err := a.home.Names()
			if err != nil {
				return err
			}
			all := []api.Status{}
			for _, name := range names {
				m, err := a.home.Machine(name)
				if err != nil {
					return err
				}
				all = append(all, complete(m, m.LastState()))
			}
			if format == "json" {
				return a.json(all)
			}
			if len(all) == 0 {
				fmt.Fprintln(a.err, `There is no machine yet: "berth start" makes one.`)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "NAME\tSTATE\tCPUS\tMEMORY\tDISK\tOCCUPIED")
			for _, s := range all {
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", s.Name, s.State, s.CPUs,
					machine.Size(int64(s.MemoryMiB)<<20), machine.Size(s.DiskBytes), machine.Size(s.DiskUsed))
			}
			return w.Flush()
		},
	}
	addFormat(c, &format)
	return c
}
