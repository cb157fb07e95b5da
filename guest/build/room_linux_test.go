package build

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// smallDisk is a disk with a cache on it.
type smallDisk struct {
	mu          sync.Mutex
	free, cache int64
	collections int
}

func (d *smallDisk) room(want int64) *room {
	return &room{log: slog.New(slog.DiscardHandler), want: want, collecting: make(chan struct{}, 1), free: func() (int64, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.free, nil
	}, collect: func(context.Context) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.collections++
		n := min(d.cache, max(0, want-d.free))
		d.free, d.cache = d.free+n, d.cache-n
		return nil
	}}
}

func (d *smallDisk) write(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free -= n
}

func (d *smallDisk) expect(t *testing.T, when string, free int64, collections int) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.free != free || d.collections != collections {
		t.Errorf("%s: %d are free after %d collections, want %d after %d", when, d.free, d.collections, free, collections)
	}
}

// TestRoom: a build finds room, and gets it while it writes, as long as the cache has
// something to give.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &smallDisk{free: 300, cache: 500}
		r := d.room(200)
		end := r.begin(t.Context())
		d.expect(t, "with room", 300, 0)
		end()
		d.write(250)
		end = r.begin(t.Context())
		d.expect(t, "before a build", 200, 1)
		other := r.begin(t.Context())
		d.write(150)
		time.Sleep(2 * lookTime)
		d.expect(t, "during builds", 200, 2)
		other()
		d.write(300) // more than the cache has left
		time.Sleep(2 * lookTime)
		d.expect(t, "when the cache is empty", 100, 3)
		time.Sleep(5 * lookTime)
		d.expect(t, "when nothing changes", 100, 3)
		d.write(50)
		time.Sleep(2 * lookTime)
		d.expect(t, "when there is still less", 50, 4)
		time.Sleep(retryTime)
		d.expect(t, "after a while", 50, 5)
		end()
		d.write(40)
		time.Sleep(5 * lookTime)
		d.expect(t, "when nothing is built", 10, 5)
	})
}

// TestRoomSlow: a build does not wait for ever, and its end ends what it waited for.
func TestRoomSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := (&smallDisk{}).room(1)
		r.collect = func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		start := time.Now()
		end := r.begin(t.Context())
		if took := time.Since(start); took != beginTime {
			t.Errorf("the build began after %v", took)
		}
		end()
	})
}

// TestRoomStubborn: neither the end of a build nor the next one waits for a collection
// that is slow to stop.
func TestRoomStubborn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := (&smallDisk{}).room(1)
		enough := make(chan struct{})
		r.collect = func(context.Context) error { <-enough; return nil }
		start := time.Now()
		r.begin(t.Context())()
		end := r.begin(t.Context())
		if took := time.Since(start); took != 2*beginTime {
			t.Errorf("the second build began after %v", took)
		}
		end()
		close(enough)
		r.close()
	})
}

// TestRoomUnknown: a disk that says nothing stops no build.
func TestRoomUnknown(t *testing.T) {
	r := (&smallDisk{}).room(1)
	r.free = func() (int64, error) { return 0, errors.New("no such disk") }
	r.begin(t.Context())()
	r.free = func() (int64, error) { return 0, nil }
	r.collect = func(context.Context) error { return errors.New("no such cache") }
	r.begin(t.Context())()
}
