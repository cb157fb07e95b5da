// Package launch starts and stops machines from the outside: it spawns a
// machine's daemon, detached, and follows it through the control API. Any number
// of processes may do so at once; the machine's locks put them in order.
package launch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/machine"
)

const (
	// spawnTimeout bounds the time from a daemon's exec to its control API.
	spawnTimeout = 30 * time.Second
	// endTimeout bounds the wait for a daemon to be gone once its machine is off.
	endTimeout = 10 * time.Second
	// cancelTimeout bounds the wait for a start that was given up.
	cancelTimeout = 20 * time.Second
)

// Error is a start that failed in the daemon.
type Error struct {
	Kind    api.Kind
	Message string
}

func (e *Error) Error() string { return e.Message }

// Hello is the one line of JSON that a daemon writes to its standard output,
// which it then closes: either its control API answers, or it has failed.
type Hello struct {
	Error string   `json:"error,omitempty"`
	Kind  api.Kind `json:"kind,omitempty"`
}

// Options say what to start and how.
type Options struct {
	Machine machine.Machine
	// Daemon is the command line of the machine's daemon.
	Daemon []string
	// Env is added to this process's environment for the daemon.
	Env []string
	// Report, if set, is called with every phase that begins or ends.
	Report func(api.Phase)
}

// Start brings the machine up, or joins a start that is under way, and returns
// once its engine answers. When ctx ends, a start that this call began is
// canceled, unless others wait for it too. A running machine is left as it is.
func Start(ctx context.Context, o Options) (api.Status, error) {
	if o.Report == nil {
		o.Report = func(api.Phase) {}
	}
	// Nobody else's sockets are believed, nor may anybody else make the directory now.
	if err := o.Machine.MakeSocketDir(); err != nil {
		return api.Status{}, fmt.Errorf("cannot start machine %q: %w", o.Machine.Name, err)
	}
	client := api.NewClient(o.Machine.APIAddress())
	if s, err := client.Status(ctx); err == nil && s.State == api.Running {
		return s, nil // and there is nothing to report
	}
	for {
		s, err := client.Follow(ctx, o.Report)
		switch {
		case errors.Is(err, api.ErrUnreachable):
			began, err := spawn(ctx, o)
			if err != nil {
				return api.Status{}, err
			}
			if began {
				return own(ctx, o, client)
			}
		case errors.Is(err, api.ErrEnded):
			// It ended without a word, or while it was ending anyway.
			if err := awaitEnd(ctx, o.Machine); err != nil {
				return api.Status{}, err
			}
			if last := o.Machine.LastState(); last.State == api.Failed {
				return last, failed(o.Machine, last)
			}
		case err != nil:
			return api.Status{}, err
		case s.State == api.Running:
			return s, nil
		case s.State == api.Failed:
			return s, failed(o.Machine, s)
		default: // it is stopping: then start it anew
			if err := awaitEnd(ctx, o.Machine); err != nil {
				return api.Status{}, err
			}
		}
	}
}

// own follows a start that this process began. The following outlives ctx, so
// that a cancel is seen through.
func own(ctx context.Context, o Options, client *api.Client) (api.Status, error) {
	type result struct {
		api.Status
		err error
	}
	follow, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan result, 1)
	go func() {
		s, err := client.Follow(follow, o.Report)
		ended <- result{s, err}
	}()
	var r result
	select {
	case r = <-ended:
	case <-ctx.Done():
		patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
		defer cancel()
		err := client.Cancel(patience)
		if err == nil {
			select {
			case r = <-ended:
			case <-patience.Done():
			}
		}
		if r.State == api.Running { // too late to cancel
			return r.Status, nil
		}
		if r.State == api.Failed {
			awaitEnd(patience, o.Machine)
		}
		return api.Status{}, context.Cause(ctx)
	}
	if r.err == nil && r.State == api.Running {
		return r.Status, nil
	}
	if err := awaitEnd(ctx, o.Machine); err != nil {
		return api.Status{}, err
	}
	last := o.Machine.LastState()
	if last.State == api.Failed {
		return last, failed(o.Machine, last)
	}
	return last, &Error{api.KindCanceled, fmt.Sprintf("machine %q was stopped while it was starting", o.Machine.Name)}
}

func failed(m machine.Machine, s api.Status) error {
	return &Error{s.LastErrorKind, fmt.Sprintf("cannot start machine %q: %s", m.Name, s.LastError)}
}

// spawn starts a daemon, unless there is one, which it reports by false.
func spawn(ctx context.Context, o Options) (began bool, err error) {
	lock, err := machine.WaitLock(ctx, o.Machine.StartLock())
	if err != nil {
		return false, err
	}
	defer lock.Unlock()
	if _, err := api.NewClient(o.Machine.APIAddress()).Status(ctx); err == nil {
		return false, nil // whoever held the lock has done it
	}
	// A daemon that holds its lock but does not listen is about to end.
	if err := awaitEnd(ctx, o.Machine); err != nil {
		return false, err
	}
	return true, run(o)
}

// awaitEnd waits until the machine has no daemon.
func awaitEnd(ctx context.Context, m machine.Machine) error {
	wait, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	lock, err := machine.WaitLock(wait, m.DaemonLock())
	if err == nil {
		return lock.Unlock()
	}
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the daemon of machine %q (pid %d) holds it but does not answer: end that process and try again", m.Name, m.LastState().PID)
	}
	return err
}

// run executes the daemon and waits until its control API answers. It does not
// heed a context: it is short, and a daemon must not be left half made.
func run(o Options) error {
	crash, err := os.OpenFile(o.Machine.CrashLog(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot start the machine's daemon: %w", err)
	}
	defer crash.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot start the machine's daemon: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(o.Daemon[0], o.Daemon[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = w, crash, o.Machine.DataDir
	cmd.Env = append(os.Environ(), o.Env...)
	detach(cmd)
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("cannot start the machine's daemon: %w", err)
	}
	exited := make(chan struct{})
	go func() { // reaps it when it ends before we do
		cmd.Wait()
		close(exited)
	}()
	r.SetReadDeadline(time.Now().Add(spawnTimeout))
	line, err := bufio.NewReader(r).ReadBytes('\n')
	var h Hello
	if err == nil {
		err = json.Unmarshal(line, &h)
	}
	if err != nil {
		cmd.Process.Kill()
		<-exited
		return &Error{api.KindFailure, fmt.Sprintf("cannot start machine %q: its daemon ended at once%s: see %s",
			o.Machine.Name, LastWords(o.Machine.CrashLog()), o.Machine.DaemonLog())}
	}
	if h.Error != "" {
		<-exited
		return &Error{h.Kind, fmt.Sprintf("cannot start machine %q: %s", o.Machine.Name, h.Error)}
	}
	return nil
}

// Detached starts a program that outlives this one. What it prints goes to the
// file, which is made anew. The channel is closed when the program ends.
func Detached(argv []string, file string) (ended <-chan struct{}, err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	detach(cmd)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", argv[0], err)
	}
	end := make(chan struct{})
	go func() {
		cmd.Wait()
		close(end)
	}()
	return end, nil
}

// LastWords is the first line of what a program wrote to the file, in brackets and
// with a space before, or nothing.
func LastWords(file string) string {
	body, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	line, _, _ := bytes.Cut(bytes.TrimSpace(body), []byte{'\n'})
	if len(line) == 0 {
		return ""
	}
	return " (" + string(line[:min(len(line), 300)]) + ")"
}

// Stop switches the machine off, politely for at most timeout, and returns when
// its daemon is gone. stopped is false when the machine was off already.
func Stop(ctx context.Context, m machine.Machine, timeout time.Duration) (s api.Status, stopped bool, err error) {
	s, err = api.NewClient(m.APIAddress()).Stop(ctx, timeout)
	switch {
	case errors.Is(err, api.ErrUnreachable):
		if !machine.Locked(m.DaemonLock()) {
			return m.LastState(), false, nil
		}
	case err != nil && !errors.Is(err, api.ErrEnded):
		return s, false, err
	}
	if err := awaitEnd(ctx, m); err != nil {
		return s, false, err
	}
	return m.LastState(), true, nil
}

// Save saves the machine's state and returns when its daemon is gone.
func Save(ctx context.Context, m machine.Machine) (api.Status, error) {
	s, err := api.NewClient(m.APIAddress()).Save(ctx)
	if err != nil {
		return s, err
	}
	return m.LastState(), awaitEnd(ctx, m)
}

// Status asks the daemon, or the files when there is none.
func Status(ctx context.Context, m machine.Machine) (api.Status, error) {
	s, err := api.NewClient(m.APIAddress()).Status(ctx)
	if err == nil {
		return s, nil
	}
	if ctx.Err() != nil {
		return s, ctx.Err()
	}
	return m.LastState(), nil
}
