package build

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/attestations"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
)

// frontendTime is how long a registry may take to say that it has a frontend.
const frontendTime = 15 * time.Second

// buildDockerfile is the built-in Dockerfile frontend. A Dockerfile that asks for
// the published one gets it, if a registry has it; if none can be reached, it gets
// the built-in one, and is told.
func (o *opened) buildDockerfile(ctx context.Context, c client.Client) (*client.Result, error) {
	plan, wanted := o.plans.Load(c.BuildOpts().Opts[classicOpt])
	c, err := classicContext(ctx, c)
	if err != nil {
		return nil, err
	}
	if wanted {
		c = &plannedClient{c, plan.(func([]Instruction))}
	}
	return dockerfile.Build(ctx, &offlineClient{Client: c})
}

// offlineClient answers a request for the published Dockerfile frontend where
// there is no registry.
type offlineClient struct {
	client.Client
	dockerfile digest.Digest // of the step that reads the Dockerfile
}

// Solve implements client.Client.
func (c *offlineClient) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	if c.dockerfile == "" {
		c.dockerfile = head(req.Definition)
	}
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
	text := fmt.Sprintf("%s cannot be fetched, the built-in Dockerfile frontend is used in its place", ref)
	if c.dockerfile != "" {
		_ = c.Warn(ctx, c.dockerfile, text, client.WarnOpts{Level: 1, Detail: [][]byte{[]byte(err.Error())}})
	}
	return dockerfile.Build(ctx, &builtinClient{c.Client})
}

// ResolveSourceMetadata implements client.Client. That a generator of SBOMs cannot be
// had is no fault of the Dockerfile's, in which its name does not stand.
func (c *offlineClient) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	resp, err := c.Client.ResolveSourceMetadata(ctx, op, opt)
	if generator := sbomGenerator(c.BuildOpts().Opts); err != nil && generator != "" && op.GetIdentifier() == "docker-image://"+generator {
		err = fmt.Errorf("the image that generates the SBOM cannot be fetched (name another with --attest type=sbom,generator=IMAGE): %w", err)
	}
	return resp, err
}

// sbomGenerator returns the image that a build's options name for making an SBOM, or
// "".
func sbomGenerator(opts map[string]string) string {
	attests, err := attestations.Parse(attestations.Filter(opts))
	if err != nil {
		return ""
	}
	named, err := reference.ParseNormalizedNamed(attests[attestations.KeyTypeSbom]["generator"])
	if err != nil {
		return ""
	}
	return reference.TagNameOnly(named).String()
}

// head returns the digest of the step whose result a definition is, or "".
func head(def *pb.Definition) digest.Digest {
	if def == nil || len(def.Def) == 0 {
		return ""
	}
	var op pb.Op
	if proto.Unmarshal(def.Def[len(def.Def)-1], &op) != nil || len(op.Inputs) == 0 {
		return ""
	}
	return digest.Digest(op.Inputs[0].Digest)
}

// published says whether ref is a release of the Dockerfile frontend that the
// built-in one can stand for.
func published(ref string) bool {
	named, err := reference.ParseNormalizedNamed(ref)
	return err == nil && named.Name() == "docker.io/docker/dockerfile"
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
