// Berth-build is docker's buildx and compose as one program, for the commands of
// berth that build images and run stacks: "buildx" and "compose".
//
// It is no part of berth itself for what it costs: the packages behind these two
// commands are initialised whether they are used or not, and would double what
// every docker command takes to start on the host, and the program's size.
// Berth finds it beside itself, sees to it that the machine runs, and becomes it
// (see cmd/berth), with the machine's socket in DOCKER_HOST.
//
// Under the name docker-buildx it is the plugin that compose runs for builds:
// it answers a plugin's question for metadata, and takes buildx's commands without
// "buildx" before them. Compose is shown a link by that name, see plugin.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/docker/buildx/util/cobrautil"
	buildxversion "github.com/docker/buildx/version"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	dockerdebug "github.com/docker/cli/cli/debug"
	solver "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/stack"
	"go.opentelemetry.io/otel"
	"google.golang.org/grpc/codes"

	// The drivers of buildx: the machine's own builder, one in a container, and one
	// that listens elsewhere.
	_ "github.com/docker/buildx/driver/docker"
	_ "github.com/docker/buildx/driver/docker-container"
	_ "github.com/docker/buildx/driver/remote"

	// gRPC's codec that knows BuildKit's generated marshalers.
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto"
)

func main() {
	nameBuildx()
	otel.SetErrorHandler(dockerdebug.OTELErrorHandler)
	name := strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe")
	err := nameRemote()
	if err == nil {
		err = run(name, os.Args[1:])
	}
	prefix := "ERROR: "
	if len(os.Args) > 1 && os.Args[1] == "compose" {
		prefix = ""
	}
	tell(os.Stderr, prefix, err)
	os.Exit(exitCode(err))
}

// run is the program under one of its names.
func run(name string, args []string) error {
	dc, err := command.NewDockerCli()
	if err != nil {
		return err
	}
	if name == pluginName {
		if len(args) > 0 && args[0] == metadataCommand {
			return tellMetadata(os.Stdout)
		}
		root := standaloneBuildx(name, dc)
		root.SetArgs(args)
		return root.Execute()
	}
	os.Args[0] = "berth" // what buildx tells its user to type
	root := tree(dc)
	root.SetArgs(args)
	return root.Execute()
}

// nameBuildx tells buildx its version, which is that of the library. Compose is
// told when it is linked: its variable can be reached in no other way.
func nameBuildx() {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	for _, dep := range info.Deps {
		if dep.Path == "github.com/docker/buildx" {
			buildxversion.Version = dep.Version
		}
	}
	stack.SetVersionInfo(buildxversion.Version, buildxversion.Revision)
}

// tell prints an error as docker's clients do: buildx's after a prefix, with the
// lines of the Dockerfile that it is about.
func tell(w io.Writer, prefix string, err error) {
	var quiet cobrautil.ExitCodeError
	var status cli.StatusError
	switch {
	case err == nil, errors.As(err, &quiet):
	case errors.As(err, &status):
		if text := status.Error(); status.Status != "" || status.Cause != nil {
			fmt.Fprintln(w, text)
		}
	default:
		for _, source := range solver.Sources(err) {
			source.Print(w)
		}
		fmt.Fprintf(w, "%s%v\n", prefix, err)
	}
}

// exitCode is buildx's code for an error: scripts tell by it whether the builder
// is at fault (100), lacks something (102), or was interrupted (130).
func exitCode(err error) int {
	var quiet cobrautil.ExitCodeError
	var status cli.StatusError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &quiet):
		return int(quiet)
	case errors.As(err, &status):
		return max(status.StatusCode, 1)
	case errors.Is(err, context.Canceled):
		return 130
	}
	switch grpcerrors.Code(err) {
	case codes.Internal:
		return 100
	case codes.ResourceExhausted:
		return 102
	case codes.Canceled:
		return 130
	}
	return 1
}
