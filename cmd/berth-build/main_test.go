package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/buildx/driver"
	"github.com/docker/buildx/util/cobrautil"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli-plugins/metadata"
	"github.com/docker/cli/cli/command"
	"github.com/moby/buildkit/client"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		text string
		code int
	}{
		{nil, "", 0},
		{errors.New("no"), "ERROR: no\n", 1},
		{cobrautil.ExitCodeError(7), "", 7},
		{cli.StatusError{StatusCode: 3}, "", 3},
		{cli.StatusError{Status: "unknown flag: --x"}, "unknown flag: --x\n", 1},
		{context.Canceled, "ERROR: context canceled\n", 130},
		{status.Error(codes.Canceled, "x"), "ERROR: rpc error: code = Canceled desc = x\n", 130},
		{status.Error(codes.ResourceExhausted, "x"), "ERROR: rpc error: code = ResourceExhausted desc = x\n", 102},
		{status.Error(codes.Internal, "x"), "ERROR: rpc error: code = Internal desc = x\n", 100},
	} {
		var out bytes.Buffer
		tell(&out, "ERROR: ", c.err)
		if out.String() != c.text || exitCode(c.err) != c.code {
			t.Errorf("%v: %q and %d, want %q and %d", c.err, out.String(), exitCode(c.err), c.text, c.code)
		}
	}
}

// TestTree: everything is there under berth's name, and the driver that Berth
// leaves out is not.
func TestTree(t *testing.T) {
	dc, err := command.NewDockerCli()
	if err != nil {
		t.Fatal(err)
	}
	root := tree(dc)
	for _, line := range []string{"buildx build", "buildx bake", "buildx imagetools create", "buildx du", "buildx prune", "buildx history logs",
		"buildx inspect", "buildx ls", "compose up", "compose watch", "compose build"} {
		c, rest, err := root.Find(strings.Fields(line))
		if err != nil || len(rest) > 0 || c.CommandPath() != "berth "+line {
			t.Errorf("%s: found %v, left %q, %v", line, c.CommandPath(), rest, err)
		}
	}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if strings.Contains(c.Annotations["aliases"], "docker ") {
			t.Errorf("%s is an alias of %q", c.CommandPath(), c.Annotations["aliases"])
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// TestMetadata: compose takes what the plugin says of itself.
func TestMetadata(t *testing.T) {
	var out bytes.Buffer
	if err := tellMetadata(&out); err != nil {
		t.Fatal(err)
	}
	var m metadata.Metadata
	if err := json.Unmarshal(out.Bytes(), &m); err != nil {
		t.Fatal(err)
	}
	if m.SchemaVersion != "0.1.0" || m.Vendor == "" || !strings.HasPrefix(m.Version, "v") {
		t.Errorf("%+v", m)
	}
}

// TestLink: the link is made, kept, and follows a program that has moved.
func TestLink(t *testing.T) {
	dir := t.TempDir()
	plugins := filepath.Join(dir, "plugins")
	for _, text := range []string{"first", "second"} {
		program := filepath.Join(dir, text)
		if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := link(program, plugins); err != nil {
				t.Fatal(err)
			}
		}
		found, err := filepath.Glob(filepath.Join(plugins, "*"))
		if err != nil || len(found) != 1 || !strings.HasPrefix(filepath.Base(found[0]), pluginName) {
			t.Fatalf("%q, %v", found, err)
		}
		if got, err := os.ReadFile(found[0]); err != nil || string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := link(filepath.Join(dir, "missing"), plugins); err == nil {
		t.Error("a missing program was linked")
	}
}

// TestRemoteUnreachable: it is said which builder could not be reached.
func TestRemoteUnreachable(t *testing.T) {
	f, err := driver.GetFactory("remote", false)
	if err != nil {
		t.Fatal(err)
	}
	const address = "tcp://127.0.0.1:1"
	d, err := remoteFactory{f}.New(t.Context(), driver.InitConfig{EndpointAddr: address})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = d.Bootstrap(ctx, func(*client.SolveStatus) {})
	if err == nil || !strings.Contains(err.Error(), "cannot reach the builder at "+address) {
		t.Error(err)
	}
}
