package build

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/disk"
)

// lookTime is between two looks at the disk while something is built.
const lookTime = time.Second

// beginTime bounds how long a build waits for room. A client that asks for the progress
// of a build is told after some seconds that there is no such build.
const beginTime = 3 * time.Second

// retryTime is after a collection that could not make room enough, when nothing more
// was written since. BuildKit itself looks as often.
const retryTime = time.Minute

// room has the cache make room on the disk before and during builds, as soon as there
// is less than a build may expect. BuildKit looks once a minute at most, in which a few
// builds have filled a disk. Its methods are safe for concurrent use.
type room struct {
	log     *slog.Logger
	want    int64                           // bytes that should be free
	free    func() (bytes int64, err error) // on the disk now
	collect func(context.Context) error     // removes what is used least, and nothing in use

	collecting chan struct{} // of one, taken for a collection; guards what follows
	left       int64         // what was free after the last one
	tried      time.Time     // when that was

	mu     sync.Mutex // guards what follows
	builds int
	stop   context.CancelFunc
	tasks  sync.WaitGroup // those of the builds
}

// begin makes room for a build, and takes no longer than a client waits for the build
// to be there. Until end is called the disk is looked at.
func (r *room) begin(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	if r.builds++; r.builds == 1 {
		looking, stop := context.WithCancel(context.Background())
		r.stop = stop
		r.tasks.Go(func() { r.look(looking) })
	}
	made := make(chan struct{})
	r.tasks.Go(func() {
		defer close(made)
		r.clear(ctx, false)
	})
	r.mu.Unlock()
	select {
	case <-made:
	case <-time.After(beginTime):
	case <-ctx.Done():
	}
	return func() {
		cancel()
		r.end()
	}
}

// end does not wait for a collection to notice: the next build would wait with it.
func (r *room) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.builds--; r.builds == 0 {
		r.stop()
	}
}

// close ends what builds have begun, and waits for it.
func (r *room) close() {
	r.mu.Lock()
	if r.stop != nil {
		r.stop()
	}
	r.mu.Unlock()
	r.tasks.Wait()
}

func (r *room) look(ctx context.Context) {
	ticks := time.NewTicker(lookTime)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return
		}
		r.clear(ctx, true)
	}
}

// clear collects if there is too little room. What could not be helped a moment ago is
// not tried again while a build is under way, unless there is still less.
func (r *room) clear(ctx context.Context, again bool) {
	if free, err := r.free(); err != nil || free >= r.want {
		return
	}
	select {
	case r.collecting <- struct{}{}:
		defer func() { <-r.collecting }()
	case <-ctx.Done():
		return
	}
	free, err := r.free() // another build may have waited for the same
	if err != nil || free >= r.want {
		return
	}
	if again && free > r.left-r.want/20 && time.Since(r.tried) < retryTime {
		return
	}
	if err := r.collect(ctx); err != nil && ctx.Err() == nil {
		r.log.Warn("cannot make room for builds", "error", err)
	}
	if free, err = r.free(); err == nil {
		r.left, r.tried = free, time.Now()
	}
}

// newRoom returns the room of the disk that the builder is on, which its cache makes as
// BuildKit's own policy has it.
func (b *Builder) newRoom(w *buildWorker, links solver.CacheManager) *room {
	policy := w.GCPolicy()
	return &room{
		log: b.opts.Log, want: policy[len(policy)-1].MinFreeSpace, collecting: make(chan struct{}, 1),
		free: func() (int64, error) {
			stat, err := disk.GetDiskStat(b.opts.Root)
			return stat.Free, err
		},
		collect: func(ctx context.Context) error {
			gone := make(chan client.UsageInfo)
			var some bool
			var told sync.WaitGroup
			told.Go(func() {
				for range gone {
					some = true
				}
			})
			err := w.Prune(ctx, gone, policy...)
			close(gone)
			told.Wait()
			if some {
				err = errors.Join(err, links.ReleaseUnreferenced(ctx))
			}
			return err
		},
	}
}
