package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/berthvm/berth/vm"
)

const (
	// stateSocket is the name of the socket in a machine's directory through which
	// its state leaves or enters QEMU. Its sandbox lets it write no file of its own.
	stateSocket = "state.sock"
	// pollEvery is how often QEMU is asked how far it is.
	pollEvery = 20 * time.Millisecond
	// undoWithin bounds what it takes to set a machine going again whose saving failed.
	undoWithin = 10 * time.Second
)

// errVhostUser is why a machine with vhost-user devices cannot be saved.
var errVhostUser = fmt.Errorf("%w: QEMU cannot save what its vhost-user devices for streams and folders know: "+
	"a machine with \"streams: serial\" has none", errors.ErrUnsupported)

// Save implements vm.Saver. The state is QEMU's stream of a migration.
func (m *machine) Save(ctx context.Context, path string) error {
	err := m.save(ctx, path)
	if err != nil {
		return fmt.Errorf("cannot save machine %q: %w", m.cfg.Name, err)
	}
	m.mu.Lock()
	m.saved = true
	m.mu.Unlock()
	m.fail(nil)
	return m.gone()
}

func (m *machine) save(ctx context.Context, path string) (err error) {
	if err := m.life.Up(); err != nil {
		return err
	}
	if !m.serial {
		return errVhostUser
	}
	m.mu.Lock()
	paused := m.paused
	m.mu.Unlock()
	if err := m.freeze(ctx, true); err != nil { // nothing changes while it is written
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
		defer cancel()
		os.Remove(path)
		m.mon.run(undo, "migrate_cancel") // does nothing once it has failed by itself
		if !paused {
			err = errors.Join(err, m.freeze(undo, false))
		}
	}()
	return m.write(ctx, path)
}

// write has QEMU send its state, and puts it into a file that is whole when write
// returns.
func (m *machine) write(ctx context.Context, path string) error {
	socket := filepath.Join(m.dir, stateSocket)
	os.Remove(socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// The machine stands still, so nothing has to be left of the bandwidth.
	err = m.mon.call(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": int64(math.MaxInt64 / 2)}, nil)
	if err != nil {
		return err
	}
	if err := m.mon.call(ctx, "migrate", map[string]any{"uri": "unix:" + socket}, nil); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	conn, err := l.Accept()
	if err != nil {
		return errors.Join(ctx.Err(), err)
	}
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(f, struct{ io.Reader }{conn})
		if err == nil {
			err = f.Sync()
		}
		conn.Close() // QEMU must not wait for who reads no more
		copied <- err
	}()
	err = migrated(ctx, m.mon)
	if err != nil {
		conn.Close()
	}
	return errors.Join(err, <-copied)
}

// migrated waits until QEMU's migration, out or in, has ended.
func migrated(ctx context.Context, mon *monitor) error {
	for {
		var state struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := mon.call(ctx, "query-migrate", nil, &state); err != nil {
			return err
		}
		switch state.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			if state.Desc == "" {
				state.Desc = "the state does not fit this machine, or is damaged"
			}
			return errors.New("QEMU: " + state.Desc)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// Restore implements vm.Saver.
func (m *machine) Restore(ctx context.Context, path string) error {
	if !m.serial {
		return errVhostUser
	}
	m.device.Resume()
	return m.begin(ctx, path)
}

// load has QEMU, which waits, take the state in a file.
func (m *machine) load(ctx context.Context, mon *monitor, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	socket := filepath.Join(m.dir, stateSocket)
	os.Remove(socket)
	if err := mon.call(ctx, "migrate-incoming", map[string]any{"uri": "unix:" + socket}, nil); err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	os.Remove(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	// QEMU ends by itself over a state that is not good, and says why.
	if _, err := io.Copy(conn, bufio.NewReaderSize(f, 1<<20)); err != nil {
		return err
	}
	return migrated(ctx, mon)
}

// SetMemory implements vm.Ballooner.
func (m *machine) SetMemory(ctx context.Context, mebibytes int) error {
	if err := m.cfg.CheckMemory(mebibytes); err != nil {
		return err
	}
	if err := m.life.Up(); err != nil {
		return err
	}
	if err := m.mon.call(ctx, "balloon", map[string]any{"value": int64(mebibytes) << 20}, nil); err != nil {
		return fmt.Errorf("cannot change the memory of machine %q: %w", m.cfg.Name, err)
	}
	return nil
}

var (
	_ vm.Pauser    = (*machine)(nil)
	_ vm.Saver     = (*machine)(nil)
	_ vm.Ballooner = (*machine)(nil)
)
