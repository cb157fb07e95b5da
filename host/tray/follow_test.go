package tray

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/forward"
	"github.com/berthvm/berth/host/machine"
)

// patience bounds what should come about soon.
const patience = 20 * time.Second

func testHome(t *testing.T) machine.Home {
	t.Helper()
	dir := t.TempDir()
	home, err := machine.Locate(func(key string) string { return map[string]string{machine.EnvHome: dir}[key] })
	if err != nil {
		t.Fatal(err)
	}
	return home
}

// daemon is what Follow sees of one: its lock, its state file and its API.
type daemon struct {
	t      *testing.T
	m      machine.Machine
	lock   *machine.Lock
	server *http.Server

	mu      sync.Mutex
	now     api.Snapshot
	changed chan struct{}
}

func (d *daemon) Watch(ctx context.Context, emit func(api.Snapshot) error) error {
	for {
		d.mu.Lock()
		now, changed := d.now, d.changed
		d.mu.Unlock()
		if err := emit(now); err != nil || !now.Status.State.Alive() {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
func (d *daemon) Status() api.Status                                        { return d.now.Status }
func (d *daemon) Follow(context.Context, func(api.Event) error) error       { return nil }
func (d *daemon) Cancel()                                                   {}
func (d *daemon) Stop(context.Context) (api.Status, error)                  { return api.Status{}, nil }
func (d *daemon) Logs(context.Context, api.LogQuery, io.Writer) error       { return nil }
func (d *daemon) Pause(context.Context) error                               { return nil }
func (d *daemon) Resume(context.Context) error                              { return nil }
func (d *daemon) Save(context.Context) (api.Status, error)                  { return api.Status{}, nil }
func (d *daemon) Usage(context.Context) (api.Usage, error)                  { return api.Usage{}, nil }
func (d *daemon) StopContainer(ctx context.Context, container string) error { return nil }

// become changes the state, in the file too.
func (d *daemon) become(state api.State, containers ...api.Container) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = api.Snapshot{Status: api.Status{State: state, PID: 1}, Containers: containers}
	close(d.changed)
	d.changed = make(chan struct{})
	if err := d.m.SaveState(d.now.Status); err != nil {
		d.t.Error(err)
	}
}

// start does it in a daemon's order: lock, socket, state.
func start(t *testing.T, m machine.Machine) *daemon {
	t.Helper()
	lock, err := machine.TryLock(m.DaemonLock())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.MakeSocketDir(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(m.SocketDir) })
	l, err := forward.Listen(m.APIAddress())
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, m: m, lock: lock, changed: make(chan struct{})}
	d.server = &http.Server{Handler: api.NewHandler(d)}
	go d.server.Serve(l)
	d.become(api.Starting)
	return d
}

// die is a process's end.
func (d *daemon) die() {
	d.server.Close()
	d.lock.Unlock()
}

// TestFollow: whatever happens to the machine is seen, from before it exists.
func TestFollow(t *testing.T) {
	defer goleak.VerifyNone(t)
	m, err := testHome(t).Machine("default")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	seen, ended := make(chan api.Snapshot, 1000), make(chan error, 1)
	go func() { ended <- Follow(ctx, m, func(s api.Snapshot) { seen <- s }) }()

	await := func(want api.State, containers int) {
		t.Helper()
		timeout := time.After(patience)
		for {
			select {
			case s := <-seen:
				if s.Status.State == want && len(s.Containers) == containers {
					return
				}
			case <-timeout:
				t.Fatalf("never seen: %s with %d containers", want, containers)
			}
		}
	}
	await(api.Stopped, 0)
	if err := m.Create(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		d := start(t, m)
		await(api.Starting, 0)
		d.become(api.Running)
		await(api.Running, 0)
		d.become(api.Running, api.Container{ID: "1"})
		await(api.Running, 1)
		d.become(api.Stopping)
		await(api.Stopping, 0)
		d.become(api.Stopped)
		d.die()
		await(api.Stopped, 0)
	}
	d := start(t, m)
	d.become(api.Running)
	await(api.Running, 0)
	d.die() // without a word
	await(api.Failed, 0)
	os.RemoveAll(m.DataDir)
	os.RemoveAll(m.StateDir)
	await(api.Stopped, 0)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestSingle(t *testing.T) {
	defer goleak.VerifyNone(t)
	home := testHome(t)
	if err := Dismiss(t.Context(), home); err != nil {
		t.Errorf("nothing is shown, and dismissing it: %v", err)
	}
	lock, err := Hold(home)
	if err != nil || !Shown(home) {
		t.Fatal(err)
	}
	if _, err := Hold(home); !errors.Is(err, ErrShown) {
		t.Errorf("a second icon: %v", err)
	}
	gone := make(chan error, 1)
	go func() {
		err := Dismissed(context.Background(), home)
		lock.Unlock()
		gone <- err
	}()
	if err := Dismiss(t.Context(), home); err != nil {
		t.Error(err)
	}
	if err := <-gone; err != nil {
		t.Error(err)
	}
	left, _ := os.ReadDir(home.State)
	if len(left) > 0 || Shown(home) {
		t.Errorf("left: %v", left)
	}
}
