package vz

import (
	"context"
	"fmt"
)

// await runs one of the framework's calls, for as long as ctx allows. The call
// itself cannot be taken back.
func (m *machine) await(ctx context.Context, what string, call func(instance) error) error {
	if err := m.life.Up(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	inst, done := m.instance(), make(chan error, 1)
	go func() { done <- call(inst) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
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

// freeze pauses or resumes, if that changes anything: the framework refuses
// what does not.
func (m *machine) freeze(inst instance, paused bool) error {
	m.mu.Lock()
	same := m.paused == paused
	m.mu.Unlock()
	if same {
		return nil
	}
	call := inst.resume
	if paused {
		call = inst.pause
	}
	if err := call(); err != nil {
		return err
	}
	m.mu.Lock()
	m.paused = paused
	m.mu.Unlock()
	return nil
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
	m.pull(nil)
	return m.gone()
}

// SetMemory implements vm.Ballooner.
func (m *machine) SetMemory(ctx context.Context, mebibytes int) error {
	if mebibytes < 1 || mebibytes > m.cfg.MemoryMiB {
		return fmt.Errorf("memory: %d MiB: machine %q has 1 to %d", mebibytes, m.cfg.Name, m.cfg.MemoryMiB)
	}
	return m.await(ctx, "change the memory of", func(inst instance) error {
		inst.setMemory(uint64(mebibytes) << 20)
		return nil
	})
}
