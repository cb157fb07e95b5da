package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestHandedOffline(t *testing.T) {
	named := map[string]handed{}
	for _, h := range handedCommands {
		name, _, _ := strings.Cut(h.use, " ")
		named[name] = h
	}
	for _, c := range []struct {
		line string
		want bool
	}{
		{"build", true}, // a usage error
		{"build --help", true},
		{"build . --help", true},
		{"build -t x .", false},
		{"build -", false},
		{"bake", false},
		{"bake --help", true},
		{"builder", true},
		{"builder prune", false},
		{"buildx --builder x version", true},
		{"buildx ls", false},
		{"compose --version", true},
		{"compose -f a --profile b config --services", true},
		{"compose -f config up", false},
		{"compose --file=config up", false},
		{"compose run web --help", false},
		{"compose exec --help web", true},
		{"compose -- up --help", false},
	} {
		args := strings.Fields(c.line)
		if got := named[args[0]].isOffline(args[1:]); got != c.want {
			t.Errorf("%s: offline %v, want %v", c.line, got, c.want)
		}
	}
}

func TestParseCompletion(t *testing.T) {
	for _, c := range []struct {
		out  string
		want []string
		dir  cobra.ShellCompDirective
	}{
		{"build\tStart a build\nbake\n:4\n", []string{"build\tStart a build", "bake"}, cobra.ShellCompDirectiveNoFileComp},
		{":0\n", []string{}, cobra.ShellCompDirectiveDefault},
		{"", nil, cobra.ShellCompDirectiveError},
		{"build\n", nil, cobra.ShellCompDirectiveError},
		{"x\n:-1\n", nil, cobra.ShellCompDirectiveError},
		{"x\n:y", nil, cobra.ShellCompDirectiveError},
	} {
		got, dir := parseCompletion([]byte(c.out))
		if dir != c.dir || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q and %d, want %q and %d", c.out, got, dir, c.want, c.dir)
		}
	}
}
