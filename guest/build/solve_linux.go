package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/berthvm/berth/guest/image"
)

// Request is a build as the engine's API asks for one. The zero values ask for
// nothing in particular.
type Request struct {
	// Session is the ID of the client's session; empty: it has none, and
	// Credentials answers registries.
	Session     string
	Credentials func(host string) (user, secret string)

	// Context is a tar of the context, compressed or not, or a Dockerfile. Remote, a
	// URL, goes before it. With neither the session has the context. What Classic's
	// .dockerignore excludes of the files that the builder reads itself is in the
	// context, and no step must see it.
	Context io.Reader
	Remote  string
	Classic bool

	Dockerfile string // its path in the context
	Target     string
	Args       map[string]string
	Labels     map[string]string
	Tags       []string
	CacheFrom  []string
	Platforms  string // as in "linux/amd64,linux/arm64"
	Network    string // "", "default", "host" or "none"
	ExtraHosts []string
	Ulimits    []string // as in "nofile=1024:2048"
	ShmSize    int64    // bytes
	Limits     Limits
	CgroupPath string
	NoCache    bool
	Pull       bool // look for newer base images
	Outputs    []Output
}

// Limits are those of each step, as docker has them for containers. Zero is none.
type Limits struct {
	Memory, MemorySwap             int64 // bytes; MemorySwap -1: no limit
	CPUShares, CPUPeriod, CPUQuota int64 // CPUPeriod and CPUQuota in microseconds
	CPUs, MemoryNodes              string
}

// attrs are the frontend's options for l.
func (l Limits) attrs() map[string]string {
	out := map[string]string{"cpusetcpus": l.CPUs, "cpusetmems": l.MemoryNodes}
	for name, n := range map[string]int64{
		"memory": l.Memory, "memswap": l.MemorySwap, "cpushares": l.CPUShares, "cpuperiod": l.CPUPeriod, "cpuquota": l.CPUQuota,
	} {
		if n > 0 || n == -1 && name == "memswap" {
			out[name] = strconv.FormatInt(n, 10)
		}
	}
	return out
}

// Output is where a build's result goes. None: an image of the store.
type Output struct {
	Type  string
	Attrs map[string]string
}

// Result is what a build has made.
type Result struct {
	ID    string // of the image; empty: it has made none
	Again bool   // a build before has made the same
}

// Solve runs a build to its end. report takes what happens, from one goroutine. plan is
// told of the Dockerfile's instructions before the first of them is carried out, from
// another goroutine, if the build is Classic, for one platform, and its Dockerfile is
// one of the built-in frontend that has a step at all.
func (b *Builder) Solve(ctx context.Context, r Request, report func(*controlapi.StatusResponse), plan func([]Instruction)) (made Result, err error) {
	o, err := b.get()
	if err != nil {
		return made, err
	}
	req, err := r.solve(b.opts.HostAlias)
	if err != nil {
		return made, err
	}
	ctx, span := o.traces.Tracer("").Start(ctx, "build")
	defer span.End()
	if r.Context != nil && r.Remote == "" {
		url, done := o.uploads.add(r.Context)
		defer done()
		req.FrontendAttrs["context"] = url
	}
	if r.Classic && !strings.Contains(r.Platforms, ",") {
		req.FrontendAttrs[classicOpt] = req.Ref
		o.plans.Store(req.Ref, plan)
		defer o.plans.Delete(req.Ref)
	}
	if r.Session == "" {
		done, err := o.ownSession(ctx, req, r.Credentials)
		if err != nil {
			return made, err
		}
		defer done()
	}
	var g errgroup.Group
	g.Go(func() error {
		defer o.room.begin(ctx)()
		resp, err := o.control.Solve(ctx, req)
		if err == nil {
			made = b.made(ctx, req.Ref, resp.ExporterResponse[exptypes.ExporterImageDigestKey])
		} else {
			b.sweep(o)
		}
		return err
	})
	// The status of a build that was cancelled is wanted to its end.
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	var followed errgroup.Group
	stream := &statusStream{ctx: following, report: report}
	followed.Go(func() error { return o.control.Status(&controlapi.StatusRequest{Ref: req.Ref}, stream) })
	err = g.Wait()
	if err != nil && !stream.begun.Load() {
		// A build that was refused has no status, and none that would end.
		defer time.AfterFunc(refusedTime, stop).Stop()
	}
	if serr := followed.Wait(); err == nil && serr != nil && !errors.Is(serr, context.Canceled) {
		err = serr
	}
	stop()
	return made, err
}

// made says what the build with a reference has made.
func (b *Builder) made(ctx context.Context, ref, id string) Result {
	r := Result{ID: id}
	if id != "" {
		from, err := b.opts.Images.Origin(ctx, digest.Digest(id))
		r.Again = err == nil && slices.ContainsFunc(from.Builds, func(b image.Build) bool { return b.Ref != ref })
	}
	return r
}

// refusedTime is how long a build that failed may have its first status yet to come.
const refusedTime = time.Second

// statusStream is the server's side of a status call without a client.
type statusStream struct {
	grpc.ServerStream
	ctx    context.Context
	begun  atomic.Bool
	report func(*controlapi.StatusResponse)
}

// SetHeader implements grpc.ServerStream.
func (s *statusStream) SetHeader(metadata.MD) error { return nil }

// SendHeader implements grpc.ServerStream.
func (s *statusStream) SendHeader(metadata.MD) error { return nil }

// Context implements grpc.ServerStream.
func (s *statusStream) Context() context.Context { return s.ctx }

// Send implements controlapi.Control_StatusServer.
func (s *statusStream) Send(r *controlapi.StatusResponse) error {
	s.begun.Store(true)
	s.report(r)
	return nil
}

// SendMsg implements grpc.ServerStream.
func (s *statusStream) SendMsg(m any) error {
	if r, ok := m.(*controlapi.StatusResponse); ok {
		return s.Send(r)
	}
	return fmt.Errorf("status: %T", m)
}

// ownSession gives a build a session in this process, which holds credentials only.
func (o *opened) ownSession(ctx context.Context, req *controlapi.SolveRequest, credentials func(string) (string, string)) (done func(), err error) {
	s, err := session.NewSession(ctx, "")
	if err != nil {
		return nil, err
	}
	if credentials != nil {
		s.Allow(credentialServer{get: credentials})
	}
	req.Session = s.ID()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(func() error {
		return s.Run(ctx, func(_ context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			client, server := net.Pipe()
			g.Go(func() error { return o.sessions.HandleConn(ctx, server, meta) })
			return client, nil
		})
	})
	return func() {
		_ = s.Close()
		cancel()
		_ = g.Wait()
	}, nil
}

// credentialServer answers for a client that sent its credentials beforehand.
type credentialServer struct {
	auth.UnimplementedAuthServer
	get func(host string) (user, secret string)
}

// Register implements session.Attachable.
func (s credentialServer) Register(srv *grpc.Server) { auth.RegisterAuthServer(srv, s) }

// Credentials implements auth.AuthServer.
func (s credentialServer) Credentials(_ context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	user, secret := s.get(r.Host)
	return &auth.CredentialsResponse{Username: user, Secret: secret}, nil
}

// ErrRequest is wrapped by errors that lie in a Request. It is an
// errdefs.ErrInvalidArgument.
var ErrRequest = errdefs.ErrInvalidArgument.WithMessage("invalid build request")

// solve makes BuildKit's request.
func (r *Request) solve(hostAlias netip.Addr) (*controlapi.SolveRequest, error) {
	req := &controlapi.SolveRequest{Ref: identity.NewID(), Session: r.Session, Frontend: "dockerfile.v0", Cache: &controlapi.CacheOptions{}}
	attrs := map[string]string{"image-resolve-mode": "local"}
	set := func(key, value string) {
		if value != "" {
			attrs[key] = value
		}
	}
	set("target", r.Target)
	if r.Dockerfile != "." {
		set("filename", r.Dockerfile)
	}
	set("context", r.Remote)
	if r.Context != nil && r.Remote == "" {
		set(nameArg, r.name())
	}
	set("platform", r.Platforms)
	set("cache-from", strings.Join(r.CacheFrom, ","))
	set("ulimit", strings.Join(r.Ulimits, ","))
	set("cgroup-parent", r.CgroupPath)
	for k, v := range r.Limits.attrs() {
		set(k, v)
	}
	if r.Classic {
		attrs[classicOpt] = "1"
	}
	if r.ShmSize > 0 {
		attrs["shm-size"] = strconv.FormatInt(r.ShmSize, 10)
	}
	for k, v := range r.Args {
		attrs["build-arg:"+k] = v
	}
	for k, v := range r.Labels {
		attrs["label:"+k] = v
	}
	if r.NoCache {
		attrs["no-cache"] = ""
	}
	if r.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	switch r.Network {
	case "", "default":
	case "host":
		attrs["force-network-mode"] = r.Network
		req.Entitlements = append(req.Entitlements, "network.host")
	case "none":
		attrs["force-network-mode"] = r.Network
	default:
		return req, fmt.Errorf("network mode %q not supported by buildkit, only default, host and none: %w", r.Network, ErrRequest)
	}
	hosts, err := extraHosts(r.ExtraHosts, hostAlias)
	if err != nil {
		return req, err
	}
	set("add-hosts", strings.Join(hosts, ","))
	if on, _ := strconv.ParseBool(r.Args["BUILDKIT_INLINE_CACHE"]); on {
		req.Cache.Exports = append(req.Cache.Exports, &controlapi.CacheOptionsEntry{Type: "inline"})
	}
	req.FrontendAttrs = attrs
	req.Exporters = r.exporters()
	return req, nil
}

// nameArg is the frontend's option by which the history knows a build, and which a user
// may set as well.
const nameArg = "build-arg:BUILDKIT_BUILD_NAME"

// name is what the history calls a build whose context came with the request: that has
// no name itself, so it is the image's.
func (r *Request) name() string {
	name := "untagged"
	if len(r.Tags) > 0 {
		name = r.Tags[0]
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			name = reference.FamiliarString(named)
		}
	}
	if r.Target != "" {
		name += " (" + r.Target + ")"
	}
	return name
}

// exporters says where the result goes. "cacheonly" is nowhere.
func (r *Request) exporters() []*controlapi.Exporter {
	outputs := r.Outputs
	if len(outputs) == 0 {
		outputs = []Output{{Type: exporterMoby}}
	}
	var out []*controlapi.Exporter
	for _, o := range outputs {
		if o.Type == "cacheonly" {
			continue
		}
		e := &controlapi.Exporter{Type: o.Type, Attrs: map[string]string{}}
		for k, v := range o.Attrs {
			e.Attrs[k] = v
		}
		if len(r.Tags) > 0 && (o.Type == exporterMoby || o.Type == client.ExporterImage) {
			e.Attrs[string(exptypes.OptKeyName)] = strings.Join(r.Tags, ",")
		}
		out = append(out, e)
	}
	return out
}

// extraHosts turns docker's "name:address" into BuildKit's "name=address".
func extraHosts(in []string, hostAlias netip.Addr) ([]string, error) {
	var out []string
	for _, h := range in {
		name, addr, ok := strings.Cut(h, ":")
		if n, a, eq := strings.Cut(h, "="); eq && !strings.Contains(n, ":") {
			name, addr, ok = n, a, true
		}
		// The list is one of values between commas, some in quotes.
		if !ok || name == "" || strings.ContainsAny(h, ",\"\r\n") {
			return nil, fmt.Errorf("invalid host %q: %w", h, ErrRequest)
		}
		if addr == "host-gateway" {
			if !hostAlias.IsValid() {
				return nil, fmt.Errorf("unable to derive the IP value for host-gateway: %w", ErrRequest)
			}
			addr = hostAlias.String()
		}
		out = append(out, name+"="+addr)
	}
	return out, nil
}

// PruneOptions say what Prune removes.
type PruneOptions struct {
	All      bool     // also what other records stand on
	Filters  []string // BuildKit's
	Reserved int64    // bytes that are kept in any case
	MaxUsed  int64    // bytes that may stay used; zero: no aim
	MinFree  int64    // bytes that should be free; zero: no aim
	Unused   int64    // nanoseconds that a record must have been unused
}

// Prune removes records of the cache and returns them. What running builds and
// images use stays.
func (b *Builder) Prune(ctx context.Context, opts PruneOptions) ([]*controlapi.UsageRecord, error) {
	if !b.Used() {
		return nil, nil
	}
	o, err := b.get()
	if err != nil {
		return nil, err
	}
	s := &pruneStream{ctx: ctx}
	err = o.control.Prune(&controlapi.PruneRequest{
		All: opts.All, Filter: opts.Filters, KeepDuration: opts.Unused,
		ReservedSpace: opts.Reserved, MaxUsedSpace: opts.MaxUsed, MinFreeSpace: opts.MinFree,
	}, s)
	return s.records, err
}

// pruneStream is the server's side of a prune call without a client.
type pruneStream struct {
	grpc.ServerStream
	ctx     context.Context
	records []*controlapi.UsageRecord
}

// Context implements grpc.ServerStream.
func (s *pruneStream) Context() context.Context { return s.ctx }

// Send implements controlapi.Control_PruneServer. Calls do not overlap.
func (s *pruneStream) Send(r *controlapi.UsageRecord) error {
	s.records = append(s.records, r)
	return nil
}
