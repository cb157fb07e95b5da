// Package daemon is the process behind a running machine: it opens the guest's
// image, boots it with the driver it is given, answers the guest's hello, leads
// the user's connections into the guest, and serves the control API. There is
// one daemon for each running machine, and none for one that is stopped.
//
// The daemon ends with its machine. It leaves a state file that says how it
// went, and nothing else: no socket, no process.
//
// While the machine is idle the daemon only waits: nothing in this package
// polls once the engine has answered for the first time.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/logfile"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
)

// Options are all that a daemon needs to know and use.
type Options struct {
	Machine machine.Machine
	Config  machine.Config
	Version string // of this program
	Log     *slog.Logger
	// DaemonLog is where Log goes, for those who follow it.
	DaemonLog *logfile.Log

	Driver vm.Driver
	// Image opens the guest's image and verifies it.
	Image func(context.Context) (Image, error)
	// Network makes the host's end of the guest's network.
	Network func(context.Context) (Network, error)
	// Listen opens one of the machine's addresses, for this user alone. A stale
	// socket is replaced.
	Listen func(address string) (net.Listener, error)
	// Forward gives each connection to l one from dial, until l is closed and
	// every connection has ended or ctx is done.
	Forward func(ctx context.Context, l net.Listener, dial func(context.Context) (net.Conn, error)) error
	// Loopback serves the guest's wishes to dial the host's loopback, likewise.
	// secret is what a stream must begin with now; nil matches nothing.
	Loopback func(ctx context.Context, l net.Listener, secret func() []byte) error

	// Folders opens the host's folders that the guest may mount, if there are any:
	// with a Server where machines have a device for them, else with a Stream, or with
	// neither where the hypervisor is to serve them (caps says what there is). Those
	// that are an io.Closer are closed when the machine has ended.
	Folders func(ctx context.Context, caps vm.Caps) ([]Folder, error)
	// Streams gives the guest's streams that ask for a folder to its Stream, by the
	// tag, likewise.
	Streams func(ctx context.Context, l net.Listener, secret func() []byte, folder func(tag string) FolderStream) error

	// Publish serves the guest's wishes to listen on the host for containers.
	// Without it nothing is published.
	Publish Publisher

	// Listening, if set, is called once the control API answers.
	Listening func()
	// KeepLock leaves the machine's lock to the end of the process, so that
	// whoever waits for the lock knows the process to be gone.
	KeepLock bool
	// StartTimeout replaces the configuration's, when it is not zero.
	StartTimeout time.Duration
	// Proxy is the host's own setting, for a machine whose configuration has none.
	Proxy machine.Proxy
}

// Folder is one folder of the host that is lent to the guest.
type Folder struct {
	vm.Share              // without a Server and a Stream, the hypervisor serves it
	Names    []string     // on the host, Share.Path among them
	Stream   FolderStream // instead of Share.Server
}

// FolderStream serves a folder by 9P over streams of the guest's.
type FolderStream interface {
	Serve(conn net.Conn) error // until conn ends; closes it
}

// Image is what a driver boots.
type Image struct {
	Version string
	Arch    string // as GOARCH spells it
	Kernel  string
	Initrd  string
	Cmdline []string
	Root    string // the system disk, read-only
	ID      string // differs between images that differ
}

// Network is the host's end of the guest's network cable.
type Network interface {
	vm.Network
	// Guest is how the guest configures its end.
	Guest() wire.Network
	Close() error
}

// GuestDialer is found by assertion: a Network by which the host reaches the guest
// and its containers. DialGuest fails with errors.ErrUnsupported when the machine's
// network device makes that the slower way.
type GuestDialer interface {
	DialGuest(ctx context.Context, to netip.AddrPort) (net.Conn, error)
}

// Publisher listens on the host for the guest's containers.
type Publisher interface {
	// Serve is like Options.Loopback; portal opens a portal stream into the guest.
	// direct, which may be nil, connects to a container without one, or fails with
	// errors.ErrUnsupported.
	Serve(ctx context.Context, l net.Listener, secret func() []byte, portal func(context.Context) (net.Conn, error),
		direct func(ctx context.Context, to netip.AddrPort) (net.Conn, error)) error
	// List is what is published now, each as "tcp 0.0.0.0:8080".
	List() []string
}

// The disks' serials, by which the guest finds them.
const (
	SerialRoot = "berth-root"
	SerialData = "berth-data"
)

// consoleRate is what a guest may write to its console in the long run, in
// bytes per second.
const consoleRate = 256 << 10

// ErrRunning is returned by Run when the machine has a daemon already.
var ErrRunning = errors.New("another daemon runs this machine")

// Why a life ends, besides by itself.
var (
	errStop     = errors.New("stop was asked for")
	errCanceled = &Error{api.KindCanceled, errors.New("the start was canceled")}
)

type daemon struct {
	o        Options
	log      *slog.Logger
	progress *progress
	console  *logfile.Log
	keys     machine.Keys
	network  Network
	folders  []Folder
	disk     string // the data disk's file
	caps     vm.Caps
	hello    *hello

	fingerprint string // of what a saved state depends on, once the machine is made

	resets   chan struct{} // the guest was reset; holds one
	sessions chan *session // a session has got its Welcome
	lost     chan *session // a session has ended
	ready    chan *session // the engine of that boot answers
	refused  chan error    // guest and host do not belong together; holds one
	saves    chan saving
	running  chan struct{} // closed at the first Running: connections wait for it
	deaf     chan struct{} // closed when nobody listens to the guest any more
	over     chan struct{} // closed when the machine is off and the last state is set
	end      context.CancelCauseFunc

	freezing sync.Mutex // serializes pauses; before mu

	mu      sync.Mutex      // guards below
	polite  context.Context // bounds the polite part of a stop; nil before one
	machine vm.Machine      // that has been powered on; nil before and after
}

// Run runs the machine until it is off and returns why it ended: nil when it
// was stopped, by anybody. When ctx ends, the machine is stopped in an orderly way.
func Run(ctx context.Context, o Options) error {
	lock, err := takeLock(ctx, o.Machine)
	if err != nil {
		return err
	}
	defer func() {
		if !o.KeepLock {
			lock.Unlock()
		}
		runtime.KeepAlive(lock) // else its file is closed when it is collected
	}()
	if err := o.Machine.MakeSocketDir(); err != nil {
		return err
	}
	release, err := o.Machine.HoldSocketDir()
	if err != nil {
		return err
	}
	defer release()
	d, err := newDaemon(o)
	if err != nil {
		return err
	}
	defer d.console.Close()
	return d.run(ctx)
}

// takeLock waits a moment: others look at the lock by taking it.
func takeLock(ctx context.Context, m machine.Machine) (*machine.Lock, error) {
	wait, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	lock, err := machine.WaitLock(wait, m.DaemonLock())
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, ErrRunning
	}
	return lock, err
}

func newDaemon(o Options) (*daemon, error) {
	console, err := logfile.Open(o.Machine.ConsoleLog(), consoleRate)
	if err != nil {
		return nil, err
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = time.Duration(o.Config.StartTimeout)
	}
	d := &daemon{
		o: o, log: o.Log, console: console,
		resets: make(chan struct{}, 1), sessions: make(chan *session), lost: make(chan *session), ready: make(chan *session),
		refused: make(chan error, 1), saves: make(chan saving), running: make(chan struct{}), deaf: make(chan struct{}), over: make(chan struct{}),
	}
	d.progress = newProgress(o.Log, d.initialStatus(), o.Machine.SaveState)
	d.hello = &hello{log: o.Log, welcome: d.welcome, began: d.sessionBegan, note: d.note, ended: d.sessionEnded}
	return d, nil
}

func (d *daemon) initialStatus() api.Status {
	m := d.o.Machine
	return api.Status{
		Name: m.Name, State: api.Stopped, PID: os.Getpid(), Version: d.o.Version,
		CPUs: d.o.Config.CPUs, MemoryMiB: int(d.o.Config.Memory >> 20), DiskBytes: int64(d.o.Config.Disk),
		DockerHost: m.DockerHost(), DockerSocket: m.DockerAddress(), Config: m.ConfigFile,
		Console: m.ConsoleLog(), Log: m.DaemonLog(),
	}
}

// run serves the control API around the machine's life.
func (d *daemon) run(ctx context.Context) error {
	l, err := d.o.Listen(d.o.Machine.APIAddress())
	if err != nil {
		return fmt.Errorf("cannot open the control API: %w", err)
	}
	life, end := context.WithCancelCause(ctx)
	defer end(nil)
	d.end = end
	d.progress.transition(api.Starting, nil)
	server := &http.Server{Handler: api.NewHandler(d), ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	if d.o.Listening != nil {
		d.o.Listening()
	}

	err = d.live(life)
	if err == nil {
		d.progress.transition(api.Stopped, nil)
	} else {
		d.progress.transition(api.Failed, err)
	}
	close(d.over)

	// Whoever follows is told how it ended; whoever does not listen is left.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := server.Shutdown(last); err != nil {
		server.Close()
	}
	<-served
	return err
}

// classify says what kind of failure an error is that does not say it itself.
func classify(err error) api.Kind {
	switch {
	case errors.Is(err, vm.ErrUnavailable):
		return api.KindUnsupported
	case errors.Is(err, machine.ErrAtRisk), errors.Is(err, syscall.ENOSPC):
		return api.KindAtRisk
	case errors.Is(err, context.DeadlineExceeded):
		return api.KindTimeout
	}
	return api.KindFailure
}

// Status implements api.Backend.
func (d *daemon) Status() api.Status {
	s := d.progress.get()
	size, used := d.o.Machine.DiskUsage()
	s.DiskUsed = used
	if size > 0 {
		s.DiskBytes = size
	}
	if d.o.Publish != nil {
		for _, port := range d.o.Publish.List() {
			s.Lent = append(s.Lent[:len(s.Lent):len(s.Lent)], api.Lent{What: "port", Detail: port})
		}
	}
	return s
}

// Follow implements api.Backend.
func (d *daemon) Follow(ctx context.Context, emit func(api.Event) error) error {
	return d.progress.follow(ctx, emit)
}

// Cancel implements api.Backend.
func (d *daemon) Cancel() {
	if d.progress.mayCancel() {
		d.end(errCanceled)
	}
}

// Stop implements api.Backend.
func (d *daemon) Stop(ctx context.Context) (api.Status, error) {
	d.mu.Lock()
	if d.polite == nil {
		d.polite = ctx
	}
	d.mu.Unlock()
	d.end(errStop)
	<-d.over
	return d.progress.get(), nil
}

// Logs implements api.Backend.
func (d *daemon) Logs(ctx context.Context, q api.LogQuery, w io.Writer) error {
	l := d.console
	if q.Source == api.LogDaemon {
		l = d.o.DaemonLog
	}
	if !q.Follow {
		return l.Tail(q.Tail, w)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a log that nobody writes any more does not keep the daemon
		select {
		case <-d.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	return l.Follow(ctx, q.Tail, w)
}
