package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/vm"
)

// errPaused answers questions to a guest that would have to be waked for them.
var errPaused = errors.New("the machine is paused")

// Pause implements api.Backend. A machine that is paused stays so.
func (d *daemon) Pause(ctx context.Context) error { return d.freeze(ctx, true) }

// Resume implements api.Backend. A machine that runs goes on.
func (d *daemon) Resume(ctx context.Context) error { return d.freeze(ctx, false) }

// freeze pauses the machine or sets it going again.
func (d *daemon) freeze(ctx context.Context, pause bool) error {
	d.freezing.Lock()
	defer d.freezing.Unlock()
	d.mu.Lock()
	m := d.machine
	d.mu.Unlock()
	s := d.progress.get()
	switch {
	case m == nil || pause && s.State != api.Running:
		return errNotUp
	case s.Paused == pause:
		return nil
	}
	pauser, ok := m.(vm.Pauser)
	if !ok {
		return fmt.Errorf("machines of the driver %q cannot be paused", d.caps.Driver)
	}
	call := pauser.Resume
	if pause {
		call = pauser.Pause
	}
	if err := call(ctx); err != nil {
		return err
	}
	d.progress.update(func(s *api.Status) { s.Paused = pause })
	if !pause {
		d.sendTime(ctx) // the guest's clock stood still
	}
	return nil
}

// wake sets a paused machine going, for somebody who wants something of it.
func (d *daemon) wake(ctx context.Context) error {
	if !d.progress.get().Paused {
		return nil
	}
	d.log.Info("the machine is waked: somebody connects to it")
	return d.freeze(ctx, false)
}
