package vz

import (
	"context"
	"fmt"
)

// await runs one of the framework's calls, for as long as ctx allows.
func (m *machine) await(ctx context.Context, what string, call func(instance) error) error {
	err := m.life.Await(ctx, func() error { return call(m.instance()) })
	if err != nil {
		return fmt.Errorf("cannot %s machine %q: %w", what, m.cfg.Name, err)
	}
	return nil
}

// Pause implements vm.Pauser.
func (m *machine) Pause(ctx context.Context) error {
	return m.await(ctx, "pause", func(inst instance) error { return m.freeze(inst, true) })
}

// Resume implements vm.Pauser.
func (m *machine) Resume(ctx context.Context) error {
	return m.await(ctx, "resume", func(inst instance) error { return m.freeze(inst, false) })
}

func (m *machine) freeze(inst instance, paused bool) error {
	if paused {
		return m.frost.Set(true, inst.pause)
	}
	return m.frost.Set(false, inst.resume)
}

// Save implements vm.Saver. A machine that cannot be saved runs on.
func (m *machine) Save(ctx context.Context, path string) error {
	err := m.await(ctx, "save", func(inst instance) error {
		if err := inst.canSave(); err != nil {
			return err
		}
		if err := m.freeze(inst, true); err != nil {
			return err
		}
		if err := inst.save(path); err != nil {
			if err := m.freeze(inst, false); err != nil {
				m.log.Error("the machine does not go on", "error", err)
			}
			return err
		}
		return nil
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
	return m.await(ctx, "change the memory of", func(inst instance) error {
		inst.setMemory(uint64(mebibytes) << 20)
		return nil
	})
}
