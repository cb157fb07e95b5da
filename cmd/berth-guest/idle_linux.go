package main

import (
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/cgroup"
)

// stage is something to do once nothing has happened for some time.
type stage struct {
	after time.Duration           // since the last use; more than the stage's before
	every time.Duration           // no sooner after the last time
	f     func(still func() bool) // still says whether nothing has happened since

	last time.Time
}

// idler does each of its stages once after the last use, and the first time after
// the start. Nothing polls: an idle engine has no timer running.
type idler struct {
	mu     sync.Mutex
	stages []stage
	next   int // of stages
	used   time.Time
	timer  *time.Timer
}

func newIdler(stages ...stage) *idler {
	i := &idler{stages: stages, used: time.Now()}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.timer = time.AfterFunc(stages[0].after, i.due)
	return i
}

// use begins the wait anew.
func (i *idler) use() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.used, i.next = time.Now(), 0
	i.timer.Reset(i.stages[0].after)
}

// serve serves as next does; a request is a use when it comes and when it ends.
func (i *idler) serve(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.use()
		defer i.use()
		next.ServeHTTP(w, r)
	})
}

// due does the next stage, if it is time.
func (i *idler) due() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.next == len(i.stages) {
		return
	}
	s := &i.stages[i.next]
	if wait := max(s.after-time.Since(i.used), s.every-time.Since(s.last)); wait > 0 {
		i.timer.Reset(wait)
		return
	}
	s.last = time.Now()
	if i.next++; i.next < len(i.stages) {
		i.timer.Reset(i.stages[i.next].after - time.Since(i.used))
	}
	used := i.used
	i.mu.Unlock()
	defer i.mu.Lock()
	s.f(func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.used.Equal(used)
	})
}

// freeHeap gives back to the kernel what a burst of requests has used.
func freeHeap() stage {
	return stage{after: 3 * time.Second, every: 15 * time.Second, f: func(func() bool) {
		runtime.GC() // what pools hold goes with the second collection
		debug.FreeOSMemory()
	}}
}

// freeCache gives unused page cache back to the kernel, and so, by free page
// reporting, to the host, which has no other way to it. Written pages become clean
// first.
func freeCache(log *slog.Logger) stage {
	return stage{after: 30 * time.Second, every: time.Minute, f: func(still func() bool) {
		unix.Sync()
		taken, err := cgroup.ReclaimCache(still)
		if err != nil {
			log.Warn("cannot give page cache back to the host", "error", err)
			return
		}
		log.Debug("gave page cache back to the host", "MiB", taken>>20)
	}}
}
