package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/distribution/reference"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/util/progress"
	digest "github.com/opencontainers/go-digest"
)

// frontendTime is how long a registry may take to say that it has a frontend.
const frontendTime = 15 * time.Second

// buildDockerfile is the built-in Dockerfile frontend. A Dockerfile that asks for
// the published one gets it, if a registry has it; if none can be reached, it gets
// the built-in one, and is told.
func buildDockerfile(ctx context.Context, c client.Client) (*client.Result, error) {
	return dockerfile.Build(ctx, &offlineClient{Client: c})
}

// offlineClient answers a request for the published Dockerfile frontend where
// there is no registry.
type offlineClient struct{ client.Client }

// Solve implements client.Client.
func (c *offlineClient) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	ref := req.FrontendOpt["source"]
	if req.Frontend != "gateway.v0" || !published(ref) {
		return c.Client.Solve(ctx, req)
	}
	look, cancel := context.WithTimeout(ctx, frontendTime)
	defer cancel()
	_, _, _, err := c.ResolveImageConfig(look, ref, sourceresolver.Opt{ImageOpt: &sourceresolver.ResolveImageOpt{}})
	if err == nil || ctx.Err() != nil {
		return c.Client.Solve(ctx, req)
	}
	say(ctx, fmt.Sprintf("%s cannot be fetched, using the built-in Dockerfile frontend instead (%s)", ref, lastLine(err)))
	return dockerfile.Build(ctx, &builtinClient{c.Client})
}

// published says whether ref is a release of the Dockerfile frontend that the
// built-in one can stand for.
func published(ref string) bool {
	named, err := reference.ParseNormalizedNamed(ref)
	return err == nil && named.Name() == "docker.io/docker/dockerfile"
}

// say shows a line among the steps of the build.
func say(ctx context.Context, text string) {
	w, ok, _ := progress.NewFromContext(ctx)
	if !ok {
		return
	}
	defer w.Close()
	now := time.Now()
	v := bkclient.Vertex{Digest: digest.FromString(identity.NewID()), Name: text, Started: &now, Completed: &now}
	_ = w.Write(v.Digest.String(), v)
}

func lastLine(err error) string {
	var last error
	for e := err; e != nil; e = errors.Unwrap(e) {
		last = e
	}
	text := last.Error()
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	return text
}

// builtinClient hides the directive from the frontend: it takes an option that
// says so for the sign that it was started by the directive itself.
type builtinClient struct{ client.Client }

// BuildOpts implements client.Client.
func (c *builtinClient) BuildOpts() client.BuildOpts {
	o := c.Client.BuildOpts()
	o.Opts = maps.Clone(o.Opts)
	if o.Opts == nil {
		o.Opts = map[string]string{}
	}
	o.Opts["cmdline"] = "built-in"
	return o
}
