package build

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/util/archiveutil"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// classicOpt is the frontend's option that says that the context is one of the classic
// builder's. Its value is the build's reference, or anything.
const classicOpt = "berth.classic"

// classicContext hides, from the steps of a classic build, the Dockerfile and the
// .dockerignore that .dockerignore excludes. A client sends both all the same, since
// the builder reads them; a Dockerfile from elsewhere comes under a name made up for
// the occasion, with which no step would ever find its result in the cache.
func classicContext(ctx context.Context, c client.Client) (client.Client, error) {
	opts := c.BuildOpts().Opts
	if opts[classicOpt] == "" {
		return c, nil
	}
	context, err := unpackedContext(ctx, c, opts["context"])
	if err != nil || context == nil {
		return c, err
	}
	ref, err := solved(ctx, c, *context)
	if err != nil {
		return nil, err
	}
	ignore, err := dockerui.ReadFile(ctx, ref, dockerui.DefaultDockerignoreName)
	if err != nil {
		return c, nil // there is none, or the frontend will say what is wrong with it
	}
	gone, err := excluded(ignore, opts["filename"])
	if err != nil || len(gone) == 0 {
		return c, err
	}
	rest := *context
	for _, name := range gone {
		rest = rest.File(llb.Rm("/"+name, llb.WithAllowNotFound(true)), dockerui.WithInternalName("leave "+name+" out"))
	}
	opts = maps.Clone(opts)
	delete(opts, "context")
	return &classicClient{Client: c, opts: opts, inputs: map[string]llb.State{
		dockerui.DefaultLocalNameContext: rest, dockerui.DefaultLocalNameDockerfile: *context,
	}}, nil
}

// unpackedContext is a context that comes by URL, or nil if it is none, or a
// Dockerfile alone.
func unpackedContext(ctx context.Context, c client.Client, url string) (*llb.State, error) {
	if st, ok, err := dockerui.DetectGitContext(url, nil); ok {
		return st, err
	}
	st, name, ok := dockerui.DetectHTTPContext(url)
	if !ok {
		return nil, nil
	}
	ref, err := solved(ctx, c, *st)
	if err != nil {
		return nil, err
	}
	head, err := ref.ReadFile(ctx, client.ReadRequest{Filename: name, Range: &client.FileRange{Length: 1024}})
	if err != nil {
		return nil, fmt.Errorf("read the context: %w", err)
	}
	if !archiveutil.IsArchive(head) {
		return nil, nil
	}
	files := llb.Scratch().File(llb.Copy(*st, path.Join("/", name), "/", &llb.CopyInfo{AttemptUnpack: true}))
	return &files, nil
}

func solved(ctx context.Context, c client.Client, st llb.State) (client.Reference, error) {
	def, err := st.Marshal(ctx, llb.WithCaps(c.BuildOpts().LLBCaps))
	if err != nil {
		return nil, err
	}
	res, err := c.Solve(ctx, client.SolveRequest{Definition: def.ToPB()})
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

// excluded returns which of the files that the builder reads itself a .dockerignore
// excludes.
func excluded(ignore []byte, dockerfile string) ([]string, error) {
	patterns, err := ignorefile.ReadAll(bytes.NewReader(ignore))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dockerui.DefaultDockerignoreName, err)
	}
	if dockerfile == "" {
		dockerfile = dockerui.DefaultDockerfileName
	}
	var out []string
	for _, name := range []string{dockerui.DefaultDockerignoreName, path.Join("/", dockerfile)[1:]} {
		match, err := patternmatcher.MatchesOrParentMatches(name, patterns)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dockerui.DefaultDockerignoreName, err)
		}
		if match {
			out = append(out, name)
		}
	}
	return out, nil
}

// classicClient gives the frontend a context and a Dockerfile that are there.
type classicClient struct {
	client.Client
	opts   map[string]string
	inputs map[string]llb.State
}

// BuildOpts implements client.Client.
func (c *classicClient) BuildOpts() client.BuildOpts {
	o := c.Client.BuildOpts()
	o.Opts = c.opts
	return o
}

// Inputs implements client.Client.
func (c *classicClient) Inputs(context.Context) (map[string]llb.State, error) { return c.inputs, nil }
