package main

import (
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berthvm/berth/host/api"
)

// onlyFlags refuses the flags that mean nothing for a machine, on a command that
// has no operand and so means the machine.
func onlyFlags(cmd *cobra.Command, allowed []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if err == nil && cmd.InheritedFlags().Lookup(f.Name) == nil && !slices.Contains(allowed, f.Name) {
			err = usage("--%s is for containers: name one, or leave it out to %s the machine", f.Name, cmd.Name())
		}
	})
	return err
}

// secondsFlag is docker's --timeout of a stop, which is a number of seconds.
func secondsFlag(cmd *cobra.Command) time.Duration {
	for _, name := range []string{"timeout", "time"} {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
			n, err := strconv.Atoi(f.Value.String())
			if err == nil && n >= 0 {
				return max(time.Duration(n)*time.Second, time.Millisecond)
			}
		}
	}
	return 0
}

// logQuery reads docker's flags of logs for the machine's.
func logQuery(cmd *cobra.Command) (api.LogQuery, error) {
	q := api.LogQuery{Tail: -1}
	if f := cmd.Flags().Lookup("follow"); f != nil {
		q.Follow = f.Value.String() == "true"
	}
	if f := cmd.Flags().Lookup("tail"); f != nil && f.Value.String() != "all" {
		n, err := strconv.Atoi(f.Value.String())
		if err != nil {
			return q, usage("--tail: %q is neither a number nor all", f.Value)
		}
		q.Tail = n
	}
	return q, nil
}
