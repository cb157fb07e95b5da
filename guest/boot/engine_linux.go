package boot

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire"
)

const (
	engineCgroup = "/sys/fs/cgroup/engine"
	readyFD      = 3

	restartFirst = 100 * time.Millisecond
	restartMost  = 10 * time.Second
	// stableAfter is how long an engine must have run for its end to be an
	// accident and not a habit.
	stableAfter = time.Minute
)

// engine supervises the engine's process. It is safe for concurrent use.
type engine struct {
	reaper *reaper
	host   *host
	log    *slog.Logger

	mu       sync.Mutex // guards what follows
	pid      int        // 0: it does not run
	stopping bool
	restarts int
	stopped  chan struct{} // closed when it has ended and will not be restarted
}

func newEngine(r *reaper, h *host, log *slog.Logger) *engine {
	return &engine{reaper: r, host: h, log: log, stopped: make(chan struct{})}
}

// start starts the engine and sees to it from then on. ready is called once: with
// nil when it first serves, or with the reason why it cannot be started at all.
func (e *engine) start(whenReady func(error)) error {
	if err := os.Mkdir(engineCgroup, 0o755); err != nil {
		whenReady(err)
		return err
	}
	var once sync.Once
	ready := func(err error) { once.Do(func() { whenReady(err) }) }
	ended, err := e.launch(ready)
	if err != nil {
		ready(err)
		return err
	}
	go e.supervise(ended, ready)
	return nil
}

// tell tells the host how it is: the host is another one.
func (e *engine) tell() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.host.note(wire.Note{Engine: &wire.Engine{Running: e.pid != 0, Restarts: e.restarts}})
}

// launch starts one process of it.
func (e *engine) launch(ready func(error)) (<-chan syscall.WaitStatus, error) {
	cgroup, err := unix.Open(engineCgroup, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(cgroup)
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(null)
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer writer.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopping {
		reader.Close()
		return nil, errors.New("the machine is going down")
	}
	pid, ended, err := e.reaper.start([]string{enginePath}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   slices.Concat(environment(), tuning(e.host.welcome.Machine.Acceleration, runtime.GOARCH), []string{fmt.Sprintf("BERTH_READY_FD=%d", readyFD)}),
		Files: []uintptr{uintptr(null), 1, 2, writer.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: cgroup},
	})
	if err != nil {
		reader.Close()
		return nil, err
	}
	e.pid = pid
	e.host.note(wire.Note{Engine: &wire.Engine{Running: true, Restarts: e.restarts}})
	go func() {
		defer reader.Close()
		// The end without a byte is that of an engine that never served.
		if n, _ := reader.Read(make([]byte, 1)); n == 1 {
			ready(nil)
		}
	}()
	return ended, nil
}

// tuning is what the engine is told about an emulated processor: there, Go's hashes are
// faster in plain instructions than in AVX2's, SHA-256 by a quarter and of little data
// by half, and hashing is most of what a build or a pull takes.
func tuning(acceleration, arch string) []string {
	if acceleration != "tcg" || arch != "amd64" {
		return nil
	}
	return []string{"GODEBUG=cpu.avx2=off"}
}

// supervise restarts the engine whenever it ends, until stop.
func (e *engine) supervise(ended <-chan syscall.WaitStatus, ready func(error)) {
	defer close(e.stopped)
	delay := restartFirst
	for {
		began := time.Now()
		status := <-ended
		e.mu.Lock()
		e.pid = 0
		stopping := e.stopping
		e.restarts++
		reason := describe(status)
		e.host.note(wire.Note{Engine: &wire.Engine{Restarts: e.restarts, Reason: reason}})
		e.mu.Unlock()
		if stopping {
			return
		}
		e.log.Error("the engine ended; restarting it", "reason", reason)
		if time.Since(began) > stableAfter {
			delay = restartFirst
		}
		for {
			time.Sleep(delay)
			delay = min(2*delay, restartMost)
			var err error
			if ended, err = e.launch(ready); err == nil {
				break
			}
			e.mu.Lock()
			stopping := e.stopping
			e.mu.Unlock()
			if stopping {
				return
			}
			e.log.Error("cannot restart the engine", "err", err)
		}
	}
}

// stop asks the engine to stop its containers and end, and returns when it has,
// or when patience is over.
func (e *engine) stop(patience time.Duration) {
	e.mu.Lock()
	e.stopping = true
	pid := e.pid
	if pid != 0 {
		unix.Kill(pid, unix.SIGTERM)
	}
	e.mu.Unlock()
	if pid == 0 {
		return
	}
	select {
	case <-e.stopped:
	case <-time.After(patience):
		e.log.Error("the engine did not end in time", "after", patience)
	}
}

func describe(status syscall.WaitStatus) string {
	switch {
	case status.Signaled():
		return "signal " + unix.SignalName(status.Signal())
	default:
		return fmt.Sprintf("exit status %d", status.ExitStatus())
	}
}
