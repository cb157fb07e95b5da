package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/sys/signal"

	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/engine/record"
)

// killWait bounds how long an exit is waited for after SIGKILL.
const killWait = 10 * time.Second

// StopOptions say how to stop a container.
type StopOptions struct {
	Signal  string // empty: the container's stop signal
	Timeout *int   // seconds until SIGKILL; nil: the container's, negative: never
}

// stopReason says who stops a container.
type stopReason int

const (
	stopUser stopReason = iota
	stopShutdown
	stopRestart
)

type stopOptions struct {
	StopOptions
	reason stopReason
}

// Stop asks the container to end, and kills it when it does not. ErrNotModified:
// it has no process.
func (e *Engine) Stop(ctx context.Context, name string, o StopOptions) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	// A client that goes does not change how long the container has.
	err = e.stop(context.WithoutCancel(ctx), c, stopOptions{StopOptions: o})
	if err != nil && !errors.Is(err, ErrNotModified) {
		return fmt.Errorf("cannot stop container: %s: %w", name, err)
	}
	return err
}

func (e *Engine) stop(ctx context.Context, c *Container, o stopOptions) error {
	sig, timeout, err := c.stopWay(o.StopOptions)
	if err != nil {
		return err
	}
	exited, alive := c.willStop(o.reason)
	if !alive {
		return ErrNotModified
	}
	c.awaitHandler(ctx, sig)
	if c.signal(sig, true) == nil && c.waitExit(ctx, exited, timeout) {
		c.afterStop(o.reason)
		return nil
	}
	if err := c.signal(syscall.SIGKILL, true); err != nil && !errors.Is(err, container.ErrNotRunning) {
		return err
	}
	// Nothing may leave a container half stopped: not even a client that went.
	if !c.waitExit(context.WithoutCancel(ctx), exited, killWait) {
		return errors.New("tried to kill container, but did not receive an exit event")
	}
	c.afterStop(o.reason)
	return nil
}

func (c *Container) afterStop(why stopReason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if why != stopRestart {
		c.event(events.ActionStop)
	}
}

// stopWay works out the signal and the time to wait for its effect.
func (c *Container) stopWay(o StopOptions) (syscall.Signal, time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := o.Signal
	if name == "" {
		name = c.rec.Config.StopSignal
	}
	sig := syscall.SIGTERM
	if name != "" {
		var err error
		if sig, err = signal.ParseSignal(name); err != nil {
			return 0, 0, invalid("%v", err)
		}
	}
	secs := defaultStop
	if c.rec.Config.StopTimeout != nil {
		secs = *c.rec.Config.StopTimeout
	}
	if o.Timeout != nil {
		secs = *o.Timeout
	}
	if secs < 0 {
		return sig, -1, nil
	}
	return sig, time.Duration(secs) * time.Second, nil
}

// willStop marks the next exit as wanted, and ends a restart that waits. It
// returns what the exit closes, and whether there is a process.
func (c *Container) willStop(why stopReason) (<-chan struct{}, bool) {
	c.mu.Lock()
	restarting := c.rec.State.Status == record.Restarting
	c.mu.Unlock()
	if restarting { // a start that has begun must end before it can be undone
		c.op.Lock()
		defer c.op.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &c.rec.State
	if why == stopUser {
		st.Stopped = true
	}
	if st.Status == record.Restarting {
		if c.delay != nil {
			c.delay.Stop()
		}
		if why != stopShutdown && st.Status.Transition(record.Exited) == nil {
			c.notifyExit()
		}
		c.save(false)
		return nil, false
	}
	if !st.Status.Alive() || c.run == nil {
		return nil, false
	}
	c.run.stopped = true
	return c.exited, true
}

// waitExit waits for an exit; a negative timeout means without end.
func (c *Container) waitExit(ctx context.Context, exited <-chan struct{}, timeout time.Duration) bool {
	var late <-chan time.Time
	if timeout >= 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-exited:
		return true
	case <-late:
	case <-ctx.Done():
	}
	return false
}

// signal sends a signal to the container's first process. With resume a paused
// container is resumed, so that it can act on it.
func (c *Container) signal(sig syscall.Signal, resume bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil || !c.rec.State.Status.Alive() {
		return container.ErrNotRunning
	}
	if err := c.run.task.Signal(sig); err != nil {
		return err
	}
	c.event(events.ActionKill, "signal", strconv.Itoa(int(sig)))
	if c.rec.State.Status == record.Paused && resume {
		if err := c.run.task.Resume(c.e.ctx); err != nil {
			return err
		}
		return c.rec.State.Status.Transition(record.Running)
	}
	return nil
}

// Kill sends a signal, SIGKILL by default, and waits for the end after SIGKILL.
func (e *Engine) Kill(ctx context.Context, name, sigName string) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	sig := syscall.SIGKILL
	if sigName != "" {
		if sig, err = signal.ParseSignal(sigName); err != nil {
			return invalid("%v", err)
		}
	}
	c.mu.Lock()
	st := &c.rec.State
	if st.Status == record.Restarting {
		c.mu.Unlock()
		if _, alive := c.willStop(stopUser); !alive {
			return nil
		}
		c.mu.Lock()
	}
	if !st.Status.Alive() || c.run == nil {
		full := c.id
		c.mu.Unlock()
		return conflict("cannot kill container: %s: container %s is not running", name, full)
	}
	stopSignal := syscall.SIGTERM
	if c.rec.Config.StopSignal != "" {
		stopSignal, _ = signal.ParseSignal(c.rec.Config.StopSignal)
	}
	ends := sig == syscall.SIGKILL || c.rec.Config.StopSignal == "" || sig == stopSignal
	if ends {
		c.run.stopped = true
	}
	st.Stopped = true
	exited := c.exited
	c.mu.Unlock()
	c.awaitHandler(context.WithoutCancel(ctx), sig)
	if err := c.signal(sig, ends); err != nil {
		if errors.Is(err, container.ErrNotRunning) {
			return conflict("cannot kill container: %s: container %s is not running", name, c.id)
		}
		return fmt.Errorf("cannot kill container %s: %w", name, err)
	}
	if sig == syscall.SIGKILL && !c.waitExit(context.WithoutCancel(ctx), exited, killWait) {
		return fmt.Errorf("cannot kill container %s: it has not ended", name)
	}
	return nil
}

// Restart stops the container if it runs, and starts it.
func (e *Engine) Restart(ctx context.Context, name string, o StopOptions) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	c.mu.Lock()
	autoRemove := c.rec.HostConfig.AutoRemove
	c.rec.HostConfig.AutoRemove = false // a restart is not its end
	c.mu.Unlock()
	err = e.stop(ctx, c, stopOptions{o, stopRestart})
	c.mu.Lock()
	c.rec.HostConfig.AutoRemove = autoRemove
	c.mu.Unlock()
	if err == nil || errors.Is(err, ErrNotModified) {
		err = e.start(ctx, c, startUser)
	}
	if err != nil && !errors.Is(err, ErrNotModified) {
		return fmt.Errorf("Cannot restart container %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.event(events.ActionRestart)
	return nil
}

// Pause freezes the container's processes.
func (e *Engine) Pause(ctx context.Context, name string) error {
	return e.freeze(ctx, name, record.Paused)
}

// Unpause thaws them.
func (e *Engine) Unpause(ctx context.Context, name string) error {
	return e.freeze(ctx, name, record.Running)
}

func (e *Engine) freeze(ctx context.Context, name string, to record.Status) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &c.rec.State
	switch {
	case !st.Status.Alive() || c.run == nil:
		return conflict("container %s is not running", c.id)
	case to == record.Paused && st.Status == record.Paused:
		return conflict("container %s is already paused", c.id)
	case to == record.Running && st.Status == record.Running:
		return fmt.Errorf("Container %s is not paused", c.id)
	}
	action, f := events.ActionPause, c.run.task.Pause
	if to == record.Running {
		action, f = events.ActionUnPause, c.run.task.Resume
	}
	if err := f(ctx); err != nil {
		return fmt.Errorf("cannot %s container %s: %w", action, c.id, err)
	}
	if err := st.Status.Transition(to); err != nil {
		return err
	}
	c.save(false)
	c.event(action)
	return nil
}

// RemoveOptions say what removal may do.
type RemoveOptions struct {
	Force   bool // kill it if it runs
	Volumes bool // remove its anonymous volumes
}

// Remove removes a container.
func (e *Engine) Remove(ctx context.Context, name string, o RemoveOptions) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	removing := c.rec.State.Status == record.Removing
	c.mu.Unlock()
	if removing {
		return conflict("removal of container %s is already in progress", name)
	}
	if err := e.remove(context.WithoutCancel(ctx), c, o); err != nil {
		return fmt.Errorf("cannot remove container %q: %w", name, err)
	}
	return nil
}

func (e *Engine) remove(ctx context.Context, c *Container, o RemoveOptions) error {
	if err := e.stopToRemove(ctx, c, o.Force); err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	st := &c.rec.State
	switch {
	case st.Status.Alive():
		c.mu.Unlock()
		return conflict("container is running: stop the container before removing or force remove")
	case isClosed(c.removed):
		c.mu.Unlock()
		return nil
	}
	defer e.Spans.Begin("remove", c.id)()
	if st.Status != record.Removing {
		if err := st.Status.Transition(record.Removing); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	c.mu.Unlock()
	if err := e.erase(ctx, c, o.Volumes); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		_ = st.Status.Transition(record.Dead)
		st.Error = err.Error()
		c.save(true)
		return err
	}
	e.unreserve(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams.End()
	c.event(events.ActionDestroy)
	close(c.removed)
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// stopToRemove makes sure that the container has no process, or says why it must
// not be removed.
func (e *Engine) stopToRemove(ctx context.Context, c *Container, force bool) error {
	c.mu.Lock()
	status := c.rec.State.Status
	c.mu.Unlock()
	switch {
	case status == record.Removing:
		return conflict("removal of container %s is already in progress", c.id)
	case !status.Alive() && status != record.Restarting:
		return nil
	case !force && status == record.Paused:
		return conflict("container is paused and must be unpaused first")
	case !force:
		return conflict("container is %v: stop the container before removing or force remove", status)
	}
	exited, alive := c.willStop(stopUser)
	if !alive {
		return nil
	}
	if err := c.signal(syscall.SIGKILL, true); err != nil && !errors.Is(err, container.ErrNotRunning) {
		return fmt.Errorf("could not kill container: %w", err)
	}
	if !c.waitExit(ctx, exited, killWait) {
		return errors.New("could not kill container: tried to kill container, but did not receive an exit event")
	}
	return nil
}

// erase removes what lies on the disk of a container. The record goes last: a
// crash before leaves it to be removed again.
func (e *Engine) erase(ctx context.Context, c *Container, volumes bool) error {
	e.dropExecs(c)
	e.releaseVolumes(ctx, c.rec, volumes)
	return e.eraseFiles(ctx, c)
}

func (e *Engine) eraseFiles(ctx context.Context, c *Container) error {
	if err := e.removeRoots(ctx, c.rec); err != nil {
		return err
	}
	if c.log != nil {
		_ = c.log.Close()
	}
	return e.store.Remove(c.id)
}

// Rename gives the container a new name.
func (e *Engine) Rename(ctx context.Context, name, newName string) error {
	name, newName = strings.TrimSpace(name), strings.TrimPrefix(strings.TrimSpace(newName), "/")
	if strings.TrimPrefix(name, "/") == "" || newName == "" {
		return invalid("Neither old nor new names may be empty")
	}
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.rec.Name
	if old == newName {
		return invalid("Renaming a container with the same name as its current name")
	}
	if !validName(newName) {
		return invalid("Error when allocating new name: Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", newName)
	}
	e.mu.Lock()
	if other := e.byName[newName]; other != nil {
		e.mu.Unlock()
		return fmt.Errorf("Error when allocating new name: %w", nameTaken(newName, other.id))
	}
	delete(e.byName, old)
	e.byName[newName] = c
	c.rec.Name = newName
	e.mu.Unlock()
	if c.run != nil {
		if err := e.opts.Networks.Rename(ctx, c.id, newName); err != nil {
			e.log.Warn("cannot rename on the networks", "container", c.id, "error", err)
		}
	}
	c.save(true)
	c.event(events.ActionRename, "oldName", "/"+old)
	return nil
}

// WaitResult is how a container ended.
type WaitResult struct {
	Code int
}

// Wait waits for a condition: "not-running" (the default), "next-exit" or
// "removed". It returns when the waiting has begun; the result, if ctx does not
// end first, comes by the channel.
func (e *Engine) Wait(ctx context.Context, name string, cond apicontainer.WaitCondition) (<-chan WaitResult, error) {
	switch cond {
	case "", apicontainer.WaitConditionNotRunning, apicontainer.WaitConditionNextExit, apicontainer.WaitConditionRemoved:
	default:
		return nil, invalid("invalid condition: %q", cond)
	}
	c, err := e.find(ctx, name)
	if err != nil {
		return nil, err
	}
	result := make(chan WaitResult, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.rec.State
	until := c.exited
	switch cond {
	case apicontainer.WaitConditionRemoved:
		until = c.removed
	case apicontainer.WaitConditionNextExit:
	default:
		if !st.Status.Alive() && st.Status != record.Restarting {
			result <- WaitResult{Code: st.ExitCode}
			return result, nil
		}
	}
	removed := c.removed
	ok := e.goRun(func() {
		for {
			select {
			case <-until:
			case <-removed:
			case <-ctx.Done():
				return
			case <-e.ctx.Done():
				return
			}
			c.mu.Lock()
			st := c.rec.State
			again := cond == apicontainer.WaitConditionNotRunning && st.Status == record.Restarting && !isClosed(removed)
			until = c.exited
			c.mu.Unlock()
			if !again {
				result <- WaitResult{Code: st.ExitCode}
				return
			}
		}
	})
	if !ok {
		return nil, errors.New("the engine is shutting down")
	}
	return result, nil
}

// Prune removes stopped containers that match, and returns their IDs and how
// many bytes of theirs are free now.
func (e *Engine) Prune(ctx context.Context, match func(*Container) bool) (ids []string, reclaimed int64, err error) {
	all, err := e.all(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, c := range all {
		if ctx.Err() != nil {
			return ids, reclaimed, ctx.Err()
		}
		c.mu.Lock()
		s := c.rec.State.Status
		c.mu.Unlock()
		if s.Alive() || s == record.Restarting || s == record.Removing || !match(c) {
			continue
		}
		usage, _ := e.opts.Images.Usage(ctx, c.id)
		if err := e.remove(context.WithoutCancel(ctx), c, RemoveOptions{}); err != nil {
			e.log.Warn("cannot prune container", "container", c.id, "error", err)
			continue
		}
		ids = append(ids, c.id)
		reclaimed += usage.RW
	}
	e.publish(events.ContainerEventType, events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatInt(reclaimed, 10)})
	return ids, reclaimed, nil
}

func dup(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, derr := -1, error(nil)
	err = raw.Control(func(old uintptr) { fd, derr = dupFD(int(old)) })
	if err = errors.Join(err, derr); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
