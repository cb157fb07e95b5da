package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/cli/cli-plugins/metadata"
	"github.com/spf13/cobra"
)

// builderProgram is the program that buildx and compose are in; see its package
// documentation for why it is another one.
const builderProgram = "berth-build"

// handed is a command that is handed on to builderProgram as it was typed.
type handed struct {
	use, short string
	to         []string // the builder's command
	// ofMachine says that it builds with the machine's own builder, whichever other
	// one "buildx use" has chosen.
	ofMachine bool
	// bare says that it does something without an operand too.
	bare bool
	// values are the flags before its operand that take a value.
	values []string
	// offline are its subcommands that need no engine.
	offline []string
}

var handedCommands = []handed{
	{use: "build [OPTIONS] PATH | URL | -", short: "Build an image from a Dockerfile", to: []string{"buildx", "build"}, ofMachine: true},
	{use: "bake [OPTIONS] [TARGET...]", short: "Build from a file", to: []string{"buildx", "bake"}, ofMachine: true, bare: true},
	{use: "builder", short: "Manage builds", to: []string{"buildx"}, ofMachine: true, values: []string{"--builder"}},
	{use: "buildx", short: "Docker Buildx", to: []string{"buildx"}, values: []string{"--builder"}, offline: []string{"version"}},
	{use: "compose", short: "Docker Compose", to: []string{"compose"}, offline: []string{"version", "config", "convert"},
		values: []string{"-f", "--file", "-p", "--project-name", "--profile", "--env-file", "--project-directory", "--workdir",
			"--ansi", "--progress", "--parallel", "--insecure-registry"}},
}

// addHanded puts what builderProgram does in the place of docker's own commands.
// With DOCKER_BUILDKIT=0 docker's own ones stay: they speak to the classic
// endpoint.
func (a *app) addHanded(root *cobra.Command) {
	classic, err := strconv.ParseBool(a.getenv("DOCKER_BUILDKIT"))
	classic = err == nil && !classic
	for _, h := range handedCommands {
		c := a.handedCommand(h)
		name := c.Name()
		if classic && (name == "build" || name == "builder") {
			continue
		}
		replaceCommand(root, c)
		if name == "build" {
			if image, _, err := root.Find([]string{"image"}); err == nil {
				replaceCommand(image, a.handedCommand(h))
			}
		}
	}
}

// replaceCommand adds a command in the place of one with its name.
func replaceCommand(parent, c *cobra.Command) {
	for _, old := range parent.Commands() {
		if old.Name() == c.Name() {
			c.Annotations = old.Annotations
			parent.RemoveCommand(old)
		}
	}
	parent.AddCommand(c)
}

func (a *app) handedCommand(h handed) *cobra.Command {
	c := &cobra.Command{
		Use:                h.use,
		Short:              h.short,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.hand(cmd.Context(), h, args)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			return a.completeHanded(h, append(args, word))
		},
	}
	c.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		if err := a.hand(context.Background(), h, []string{"--help"}); err != nil {
			fmt.Fprintln(a.err, message(err))
		}
	})
	return c
}

// hand makes this process the builder, with the machine running if the command
// needs it.
func (a *app) hand(ctx context.Context, h handed, args []string) error {
	program, err := a.builder()
	if err != nil {
		return err
	}
	if v := a.getenv("DOCKER_BUILDKIT"); v != "" && h.ofMachine {
		if _, err := strconv.ParseBool(v); err != nil {
			return usage("DOCKER_BUILDKIT environment variable expects boolean value: %w", err)
		}
	}
	m, err := a.existing()
	if err != nil {
		return err
	}
	if !h.isOffline(args) {
		if m, err = a.ready(ctx, true); err != nil {
			return err
		}
	}
	return become(program, append(slices.Clone(h.to), args...), h.env(os.Environ(), m.DockerHost(), args))
}

// findBuilder finds the builder beside this program, behind links too.
func findBuilder() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot find this program: %w", err)
	}
	name := builderProgram
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	beside := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		program := filepath.Join(filepath.Dir(real), name)
		if _, err := os.Stat(program); err == nil {
			return program, nil
		}
	}
	return "", fmt.Errorf("builds and compose need %s, which is missing: install Berth anew: %w", beside, fs.ErrNotExist)
}

// isOffline reports whether the command surely needs no engine: it shows help, or
// is one of those that know.
func (h handed) isOffline(args []string) bool {
	operands := 0
	for i := 0; i < len(args) && operands < 2; i++ {
		switch arg := args[i]; {
		case arg == "--help" || arg == "-h":
			return true
		case arg == "--":
			return false
		case slices.Contains(h.values, arg):
			i++
		case strings.HasPrefix(arg, "-") && arg != "-":
		default:
			if operands++; operands == 1 && slices.Contains(h.offline, arg) {
				return true
			}
		}
	}
	return operands == 0 && !h.bare
}

// env is the builder's environment: the machine is docker's default, and nothing
// that was meant for another docker decides how it is reached.
func (h handed) env(environ []string, host string, args []string) []string {
	chosen := slices.ContainsFunc(args, func(arg string) bool { return arg == "--builder" || strings.HasPrefix(arg, "--builder=") })
	env := []string{"DOCKER_HOST=" + host}
	for _, kv := range environ {
		key, value, _ := strings.Cut(kv, "=")
		switch key {
		case "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", metadata.ReexecEnvvar:
			continue
		case "BUILDX_BUILDER":
			chosen = chosen || value != ""
		}
		env = append(env, kv)
	}
	if h.ofMachine && !chosen {
		env = append(env, "BUILDX_BUILDER=default")
	}
	return env
}

// completeHanded asks the builder, by the protocol that cobra's scripts use: one
// candidate on a line, and a colon with a directive at the end. It never starts the
// machine.
func (a *app) completeHanded(h handed, args []string) ([]string, cobra.ShellCompDirective) {
	program, err := a.builder()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	m, err := a.existing()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	cmd := exec.Command(program, slices.Concat([]string{cobra.ShellCompRequestCmd}, h.to, args)...)
	cmd.Env = h.env(os.Environ(), m.DockerHost(), args)
	out, err := cmd.Output()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return parseCompletion(out)
}

func parseCompletion(out []byte) ([]string, cobra.ShellCompDirective) {
	lines := strings.Split(string(bytes.TrimRight(out, "\n")), "\n")
	last := lines[len(lines)-1]
	n, err := strconv.Atoi(strings.TrimPrefix(last, ":"))
	if err != nil || !strings.HasPrefix(last, ":") || n < 0 {
		return nil, cobra.ShellCompDirectiveError
	}
	return lines[:len(lines)-1], cobra.ShellCompDirective(n)
}
