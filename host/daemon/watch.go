package daemon

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/inside"
	"github.com/berthvm/berth/vm"
)

// errNotUp answers questions to a guest that is not up.
var errNotUp = errors.New("the machine is not up")

// The pauses between attempts to reach an engine that does not answer, though
// the machine runs: it is being started again.
const listenFirst, listenLast = 100 * time.Millisecond, 5 * time.Second

// guest is the machine's guest, which is asked only while the machine runs.
func (d *daemon) guest() (inside.Guest, error) {
	d.mu.Lock()
	m := d.machine
	d.mu.Unlock()
	s := d.progress.get()
	switch {
	case m == nil || s.State != api.Running:
		return inside.Guest{}, errNotUp
	case s.Paused:
		return inside.Guest{}, errPaused
	}
	return inside.Guest{Dial: func(ctx context.Context, port uint32) (net.Conn, error) { return m.Dial(ctx, port) }}, nil
}

func (d *daemon) setMachine(m vm.Machine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.machine = m
}

// Usage implements api.Backend.
func (d *daemon) Usage(ctx context.Context) (api.Usage, error) {
	g, err := d.guest()
	if err != nil {
		return api.Usage{}, err
	}
	return g.Usage(ctx)
}

// StopContainer implements api.Backend.
func (d *daemon) StopContainer(ctx context.Context, id string) error {
	g, err := d.guest()
	if err != nil {
		return err
	}
	return g.Stop(ctx, id)
}

// Watch implements api.Backend. The guest is asked for its containers only while
// somebody watches.
func (d *daemon) Watch(ctx context.Context, emit func(api.Snapshot) error) error {
	var (
		last       *api.Snapshot
		ears       *listener // nil while the machine does not run
		lists      = make(chan []api.Container)
		containers []api.Container
	)
	defer func() { ears.end() }()
	for {
		changed := d.progress.change()
		now := api.Snapshot{Status: d.Status()}
		switch running := now.Status.State == api.Running; {
		case running && ears == nil:
			ears = d.listen(ctx, lists)
		case !running && ears != nil:
			ears.end()
			ears, containers = nil, nil
		}
		now.Containers = containers
		if last == nil || differs(*last, now) {
			if err := emit(now); err != nil {
				return err
			}
			last = &now
		}
		if !now.Status.State.Alive() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case containers = <-lists:
		}
	}
}

// differs leaves out what changes by itself, such as the disk's use.
func differs(a, b api.Snapshot) bool {
	return a.Status.State != b.Status.State || a.Status.Paused != b.Status.Paused || a.Status.Phase != b.Status.Phase || a.Status.Since != b.Status.Since ||
		a.Status.LastError != b.Status.LastError || engineDiffers(a.Status.Engine, b.Status.Engine) ||
		!slices.EqualFunc(a.Containers, b.Containers, func(a, b api.Container) bool {
			return a.ID == b.ID && a.Name == b.Name && a.State == b.State && slices.Equal(a.Ports, b.Ports)
		})
}

func engineDiffers(a, b *api.Engine) bool {
	if a == nil || b == nil {
		return a != b
	}
	return *a != *b
}

// listener hears from the engine which containers run.
type listener struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// end joins it. A nil listener has ended.
func (l *listener) end() {
	if l != nil {
		l.cancel()
		<-l.done
	}
}

// listen sends the containers that run to lists, and again after each change.
func (d *daemon) listen(ctx context.Context, lists chan<- []api.Container) *listener {
	ctx, cancel := context.WithCancel(ctx)
	l := &listener{cancel, make(chan struct{})}
	go func() {
		defer close(l.done)
		for pause := listenFirst; ctx.Err() == nil; pause = min(2*pause, listenLast) {
			g, err := d.guest()
			if err == nil {
				err = g.Follow(ctx, func(list []api.Container) {
					pause = listenFirst
					select {
					case lists <- list:
					case <-ctx.Done():
					}
				})
			}
			d.log.Debug("the engine does not tell of its containers now", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}()
	return l
}
