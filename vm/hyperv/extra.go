package hyperv

import (
	"context"
	"errors"
	"fmt"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/hyperv/compute"
)

// await has the system carry out an order, for as long as ctx allows.
func (m *machine) await(ctx context.Context, what string, call func() error) error {
	if err := m.life.Await(ctx, call); err != nil {
		return fmt.Errorf("cannot %s machine %q: %w", what, m.cfg.Name, err)
	}
	return nil
}

// Pause implements vm.Pauser.
func (m *machine) Pause(ctx context.Context) error {
	return m.await(ctx, "pause", func() error { return m.freeze(ctx, true) })
}

// Resume implements vm.Pauser.
func (m *machine) Resume(ctx context.Context) error {
	return m.await(ctx, "resume", func() error { return m.freeze(ctx, false) })
}

func (m *machine) freeze(ctx context.Context, paused bool) error {
	op := compute.OpResume
	if paused {
		op = compute.OpPause
	}
	return m.frost.Set(paused, func() error { return m.do(ctx, compute.Order{Op: op}) })
}

// Save implements vm.Saver.
func (m *machine) Save(ctx context.Context, path string) error {
	err := m.await(ctx, "save", func() error {
		if err := m.freeze(ctx, true); err != nil {
			return err
		}
		err := m.do(ctx, compute.Order{Op: compute.OpSave, Path: path})
		if err != nil {
			err = errors.Join(err, m.freeze(context.WithoutCancel(ctx), false))
		}
		return err
	})
	if err != nil {
		return err
	}
	m.plug.Pull(nil)
	return m.gone()
}

// SetMemory implements vm.Ballooner.
func (m *machine) SetMemory(ctx context.Context, mebibytes int) error {
	if err := m.cfg.CheckMemory(mebibytes); err != nil {
		return err
	}
	return m.await(ctx, "change the memory of", func() error {
		return m.do(ctx, compute.Order{Op: compute.OpMemory, MemoryMiB: mebibytes})
	})
}

var (
	_ vm.Pauser    = (*machine)(nil)
	_ vm.Saver     = (*machine)(nil)
	_ vm.Ballooner = (*machine)(nil)
	_ vm.DiskMaker = (*Driver)(nil)
)
