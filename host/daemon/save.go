package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
)

const (
	// stayWithin bounds telling the guest that it was not saved.
	stayWithin = 30 * time.Second
	// saveSpare is what stays free on the host's disk beside a saved state, in bytes.
	saveSpare = 512 << 20
)

// saving is a wish to save the machine.
type saving struct {
	ctx  context.Context
	done chan error // holds one
}

// Save implements api.Backend.
func (d *daemon) Save(ctx context.Context) (api.Status, error) {
	if d.progress.get().State != api.Running {
		return api.Status{}, errNotUp
	}
	s := saving{ctx, make(chan error, 1)}
	select {
	case d.saves <- s:
	case <-d.deaf:
		return api.Status{}, errNotUp
	case <-ctx.Done():
		return api.Status{}, ctx.Err()
	}
	if err := <-s.done; err != nil {
		return api.Status{}, err
	}
	<-d.over
	return d.progress.get(), nil
}

// save saves the machine and ends it with that, or leaves it as it is. It is for the
// goroutine that watches the machine.
func (d *daemon) save(ctx context.Context, m vm.Machine) error {
	saver, ok := m.(vm.Saver)
	switch {
	case d.progress.get().State != api.Running:
		return errNotUp
	case !ok:
		return fmt.Errorf("%w: machines of the driver %q cannot be saved", errors.ErrUnsupported, d.caps.Driver)
	}
	free, err := machine.FreeBytes(d.o.Machine.DataDir)
	if err != nil {
		return err
	}
	if need := int64(d.o.Config.Memory) + saveSpare; free < need {
		return fmt.Errorf("%s of space left for %s, up to %s are needed: free some", machine.Size(free), d.o.Machine.SavedFile(), machine.Size(need))
	}
	if err := d.wake(ctx); err != nil { // the guest has to get ready
		return err
	}
	d.freezing.Lock()
	defer d.freezing.Unlock()
	if err := d.o.Machine.DropSaved(); err != nil {
		return err
	}
	s := d.hello.session()
	if err := s.order(ctx, wire.Order{Op: wire.OpSave}); err != nil {
		return err
	}
	if err := saver.Save(ctx, d.o.Machine.SavedFile()); err != nil {
		stay, cancel := context.WithTimeout(context.WithoutCancel(ctx), stayWithin)
		defer cancel()
		return errors.Join(err, s.order(stay, wire.Order{Op: wire.OpStay}))
	}
	d.log.Info("the machine's state is saved")
	if err := d.o.Machine.RecordSaved(d.fingerprint); err != nil {
		d.progress.warn(fmt.Sprintf("the machine's state is lost: %v: it was switched off as by a power cut", err))
		return nil
	}
	d.progress.update(func(s *api.Status) { s.Saved = d.o.Machine.Saved() })
	return nil
}

// identify sets the fingerprint of all that a saved state depends on.
func (d *daemon) identify(image Image) error {
	body, err := json.Marshal(struct {
		Berth   string
		Caps    vm.Caps
		Image   string
		Config  machine.Config
		Shares  []wire.Share
		Network wire.Network
	}{d.o.Version, d.caps, image.ID, d.o.Config, d.welcomeShares(), d.network.Guest()})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	d.fingerprint = hex.EncodeToString(sum[:])
	return nil
}

// powerOn boots the machine, or has it go on from its saved state. A state that cannot
// be used is dropped, and the user told.
func (d *daemon) powerOn(ctx context.Context, image Image) (m vm.Machine, cleanup []func(), err error) {
	defer func() {
		if err == nil {
			d.progress.begin("boot") // ended by the hello
		}
	}()
	if err := d.identify(image); err != nil {
		return nil, nil, err
	}
	why := d.o.Machine.TakeSaved(d.fingerprint)
	if why == nil {
		if m, cleanup, why = d.assemble(ctx, image); why == nil {
			end := d.progress.begin(api.PhaseRestore)
			why = d.restore(ctx, m)
			end(why)
		}
		if why == nil || ctx.Err() != nil {
			return m, cleanup, why
		}
		undo(cleanup)
	} else if !errors.Is(why, machine.ErrNoSaved) {
		d.progress.begin(api.PhaseRestore)(why)
	}
	if !errors.Is(why, machine.ErrNoSaved) {
		d.log.Warn("the saved state is not used: the machine boots anew", "reason", why)
	}
	if err := d.o.Machine.DropSaved(); err != nil {
		d.log.Warn("cannot remove the saved state", "error", err)
	}
	if m, cleanup, err = d.assemble(ctx, image); err != nil {
		return m, cleanup, err
	}
	return m, cleanup, d.phase(ctx, "power on", func() error { return m.Start(ctx) })
}

// restore has the machine go on. The state is of no use to anybody then.
func (d *daemon) restore(ctx context.Context, m vm.Machine) error {
	saver, ok := m.(vm.Saver)
	if !ok {
		return fmt.Errorf("machines of the driver %q cannot be restored", d.caps.Driver)
	}
	d.hello.resume()
	if err := saver.Restore(ctx, d.o.Machine.SavedFile()); err != nil {
		return err
	}
	if err := d.o.Machine.DropSaved(); err != nil {
		d.log.Warn("cannot remove the saved state", "error", err)
	}
	return nil
}

// undo runs what cleans up, backwards.
func undo(cleanup []func()) {
	for i := len(cleanup) - 1; i >= 0; i-- {
		cleanup[i]()
	}
}
