package main

import (
	"strings"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"
)

// setupHelp gives the whole tree docker's way of showing help, so that its
// commands and ours look alike. Docker's global flags are left out: the endpoint
// is the machine's.
func (a *app) setupHelp(root *cobra.Command) {
	cli.SetupRootCommand(root)
	root.ResetFlags()
	root.PersistentFlags().BoolP("help", "h", false, "Print usage")
	root.PersistentFlags().MarkShorthandDeprecated("help", "use --help")
	root.PersistentFlags().Lookup("help").Hidden = true
	root.Flags().BoolP("version", "v", false, "Print version information and quit")
	root.SetVersionTemplate("Berth version {{.Version}}\n")
	root.Annotations = nil
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if keepsDockerCodes(cmd) {
			return cli.FlagErrorFunc(cmd, err)
		}
		return usage("%w: see '%s --help'", err, cmd.CommandPath())
	})
}

// usageLine writes the usage of our own commands as docker writes its own's.
func usageLine(c *cobra.Command) {
	for _, sub := range c.Commands() {
		usageLine(sub)
	}
	if c.DisableFlagsInUseLine || c.HasSubCommands() {
		return
	}
	name, operands, _ := strings.Cut(c.Use, " ")
	c.Use = strings.TrimSpace(name + " [OPTIONS] " + operands)
	c.DisableFlagsInUseLine = true
}

// keepsDockerCodes reports whether scripts expect docker's 125 of the command.
func keepsDockerCodes(cmd *cobra.Command) bool {
	path := strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "berth "), "container ")
	return path == "run" || path == "create" || path == "exec"
}
