package main

import (
	"os"
	"strings"

	"github.com/docker/buildx/commands"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli-plugins/plugin"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/debug"
	"github.com/docker/cli/cli/flags"
	composecmd "github.com/docker/compose/v5/cmd/compose"
	"github.com/docker/compose/v5/cmd/prompt"
	"github.com/docker/compose/v5/pkg/compose"
	"github.com/spf13/cobra"
)

// tree is the command line below the name berth, as far as it is answered here.
func tree(dc *command.DockerCli) *cobra.Command {
	root := &cobra.Command{
		Use:                   "berth [OPTIONS] COMMAND [ARG...]",
		Short:                 "Builds images and runs stacks for berth",
		SilenceUsage:          true,
		SilenceErrors:         true,
		TraverseChildren:      true,
		DisableFlagsInUseLine: true,
		PersistentPreRunE:     func(*cobra.Command, []string) error { return connect(dc) },
	}
	cli.SetupRootCommand(root)
	root.ResetFlags()
	root.PersistentFlags().BoolP("help", "h", false, "Print usage")
	root.PersistentFlags().MarkShorthandDeprecated("help", "use --help")
	root.PersistentFlags().Lookup("help").Hidden = true
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.Annotations = nil
	root.SetIn(dc.In())
	root.SetOut(dc.Out())
	root.SetErr(dc.Err())

	// In a plugin, buildx leaves the connection to this function of the library.
	plugin.PersistentPreRunE = root.PersistentPreRunE
	root.AddCommand(commands.NewRootCmd("buildx", true, dc), composeCommand(dc))
	rename(root)
	return root
}

// composeCommand is compose, which finds its builds' plugin in a folder of ours.
func composeCommand(dc *command.DockerCli) *cobra.Command {
	backend := &composecmd.BackendOptions{Options: []compose.Option{
		compose.WithPrompt(prompt.NewPrompt(dc.In(), dc.Out()).Confirm),
	}}
	c := composecmd.RootCommand(dc, backend)
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return cli.StatusError{StatusCode: 1, Status: err.Error()}
	})
	prepare := c.PersistentPreRunE
	c.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		if err := prepare(cmd, args); err != nil { // connects, by way of the root's
			return err
		}
		return offerBuildx(dc)
	}
	return c
}

// standaloneBuildx is the tree under the plugin's name.
func standaloneBuildx(name string, dc *command.DockerCli) *cobra.Command {
	plugin.PersistentPreRunE = func(*cobra.Command, []string) error { return connect(dc) }
	c := commands.NewRootCmd(name, true, dc)
	c.SilenceUsage, c.SilenceErrors, c.TraverseChildren = true, true, true
	return c
}

// connect presets the endpoint. Without DOCKER_HOST it is that of docker's current
// context: somebody else than berth has started this program.
func connect(dc *command.DockerCli) error {
	o := &flags.ClientOptions{LogLevel: "info", Debug: debug.IsEnabled()}
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		o.Hosts = []string{host}
	}
	return dc.Initialize(o)
}

// rename gives the aliases that help shows the name of the program that is run.
func rename(c *cobra.Command) {
	c.DisableFlagsInUseLine = true
	if names, ok := c.Annotations["aliases"]; ok {
		c.Annotations["aliases"] = strings.ReplaceAll(names, "docker ", "berth ")
	}
	for _, sub := range c.Commands() {
		rename(sub)
	}
}
