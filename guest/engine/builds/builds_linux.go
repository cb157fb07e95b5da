package builds

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	controlapi "github.com/moby/buildkit/api/services/control"
	apibuild "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/events"

	"github.com/berthvm/berth/guest/build"
	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/filter"
)

// Request is what is to be built.
type Request = build.Request

// Limits are those of a Request.
type Limits = build.Limits

// Service is the builds of one engine. It is safe for concurrent use.
type Service struct {
	builder *build.Builder
	engine  *engine.Engine

	mu   sync.Mutex
	jobs map[string]*job // by the ID a client chose
}

// job is a build that a client may cancel, or whose context comes with another
// request.
type job struct {
	cancel context.CancelFunc
	upload chan io.Reader // the context
	read   chan struct{}  // closed when the upload is not needed any more
}

// New returns the service of a builder.
func New(b *build.Builder, e *engine.Engine) *Service {
	return &Service{builder: b, engine: e, jobs: map[string]*job{}}
}

// Session serves a client's session on its connection, until it ends.
func (s *Service) Session(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	return s.builder.Session(ctx, w, r)
}

// ServeConn serves BuildKit's own API on a connection, which is the Service's.
func (s *Service) ServeConn(conn net.Conn) error { return s.builder.ServeConn(conn) }

// ServeHTTP serves BuildKit's own API to a client that speaks HTTP/2.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.builder.ServeHTTP(w, r) }

// job returns the job of a client's ID, and makes it if there is none.
func (s *Service) job(id string) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[id]
	if j == nil {
		j = &job{upload: make(chan io.Reader), read: make(chan struct{})}
		s.jobs[id] = j
	}
	return j
}

// drop forgets a job.
func (s *Service) drop(id string, j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs[id] == j {
		delete(s.jobs, id)
	}
	close(j.read)
}

// Cancel ends a build. One that is not there is no error.
func (s *Service) Cancel(id string) {
	s.mu.Lock()
	j := s.jobs[id]
	s.mu.Unlock()
	if j != nil && j.cancel != nil {
		j.cancel()
	}
}

// uploadTime is how long a build and the request that brings its context wait for
// each other.
const uploadTime = 5 * time.Second

// Upload hands a build the context that came with another request. It returns when
// the build has read it.
func (s *Service) Upload(ctx context.Context, id string, r io.Reader) error {
	j := s.job(id)
	wait, cancel := context.WithTimeout(ctx, uploadTime)
	defer cancel()
	select {
	case j.upload <- r:
	case <-wait.Done():
		return fmt.Errorf("no build %s takes the context: %w", id, context.Cause(wait))
	}
	select {
	case <-j.read:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Build runs a build. id, if not empty, is how Cancel and Upload call it; with
// uploaded, its context comes by Upload. out takes what happens.
func (s *Service) Build(ctx context.Context, id string, uploaded bool, r Request, out Output) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if id != "" {
		j := s.job(id)
		s.mu.Lock()
		j.cancel = cancel
		s.mu.Unlock()
		defer s.drop(id, j)
		if uploaded {
			wait, stop := context.WithTimeout(ctx, uploadTime)
			defer stop()
			select {
			case r.Context = <-j.upload:
			case <-wait.Done():
				return fmt.Errorf("the context of build %s does not come: %w", id, context.Cause(wait))
			}
		}
	}
	made, err := s.builder.Solve(ctx, r, out.status, out.planned)
	if err != nil {
		return out.failed(err)
	}
	return out.done(made, r.Tags)
}

// Output is how a client is told of a build: Trace or Classic.
type Output interface {
	planned([]build.Instruction) // while status may be called
	status(*controlapi.StatusResponse)
	failed(error) error
	done(made build.Result, tags []string) error
}

// DiskUsage is docker system df's part of the build cache.
func (s *Service) DiskUsage(ctx context.Context, verbose bool) (*apibuild.DiskUsage, error) {
	records, err := s.builder.DiskUsage(ctx)
	if err != nil {
		return nil, err
	}
	u := &apibuild.DiskUsage{TotalCount: int64(len(records))}
	for _, r := range records {
		if r.InUse {
			u.ActiveCount++
		}
		// What images have too is theirs.
		if !r.Shared {
			u.TotalSize += r.Size
			if !r.InUse {
				u.Reclaimable += r.Size
			}
		}
		if verbose {
			u.Items = append(u.Items, record(r))
		}
	}
	return u, nil
}

func record(r *controlapi.UsageRecord) apibuild.CacheRecord {
	c := apibuild.CacheRecord{
		ID: r.ID, Parents: r.Parents, Type: r.RecordType, Description: r.Description, InUse: r.InUse, Shared: r.Shared,
		Size: r.Size, CreatedAt: r.CreatedAt.AsTime(), UsageCount: int(r.UsageCount),
	}
	if r.LastUsedAt != nil {
		t := r.LastUsedAt.AsTime()
		c.LastUsedAt = &t
	}
	return c
}

// PruneOptions are docker's.
type PruneOptions struct {
	All                        bool
	Reserved, MaxUsed, MinFree int64 // bytes
	Filters                    filter.Set
}

var pruneFilters = []string{"until", "unused-for", "id", "parent", "type", "description", "inuse", "shared", "private"}

// Prune removes records of the build cache.
func (s *Service) Prune(ctx context.Context, o PruneOptions) (*apibuild.CachePruneReport, error) {
	opts, err := o.builders()
	if err != nil {
		return nil, err
	}
	records, err := s.builder.Prune(ctx, opts)
	if err != nil {
		return nil, err
	}
	report := &apibuild.CachePruneReport{}
	for _, r := range records {
		report.CachesDeleted = append(report.CachesDeleted, r.ID)
		report.SpaceReclaimed += uint64(r.Size)
	}
	s.engine.Journal.Publish(events.Message{Type: events.BuilderEventType, Action: events.ActionPrune, Scope: "local",
		Actor: events.Actor{Attributes: map[string]string{"reclaimed": strconv.FormatUint(report.SpaceReclaimed, 10)}}})
	return report, nil
}

// builders are the options as the builder takes them.
func (o PruneOptions) builders() (build.PruneOptions, error) {
	opts := build.PruneOptions{All: o.All, Reserved: o.Reserved, MaxUsed: o.MaxUsed, MinFree: o.MinFree}
	if err := o.Filters.Check(pruneFilters...); err != nil {
		return opts, err
	}
	for _, name := range []string{"until", "unused-for"} {
		values := o.Filters.Values(name)
		if len(values) > 1 {
			return opts, errdefs.ErrInvalidArgument.WithMessage("more than one value for filter " + name)
		}
		for _, v := range values {
			d, err := time.ParseDuration(v)
			if err != nil {
				return opts, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%q filter expects a duration (e.g., '24h'): %v", name, err))
			}
			opts.Unused = int64(d)
		}
	}
	// BuildKit's filters compare; one list holds what must all be true.
	var parts []string
	for _, name := range pruneFilters[2:] {
		for _, v := range o.Filters.Values(name) {
			switch name {
			case "id":
				parts = append(parts, fmt.Sprintf("id~=%s", strconv.Quote(v)))
			case "inuse", "shared", "private":
				parts = append(parts, name)
			default:
				parts = append(parts, fmt.Sprintf("%s==%s", name, strconv.Quote(v)))
			}
		}
	}
	if len(parts) > 0 {
		opts.Filters = []string{strings.Join(parts, ",")}
	}
	return opts, nil
}
