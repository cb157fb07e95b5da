package engine

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"syscall"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/stdio"
	"github.com/berthvm/berth/guest/keeper"
)

const (
	// drainTimeout bounds how long the end of the output is waited for once the
	// container is gone: somebody else may hold its pipes open.
	drainTimeout = 5 * time.Second
	minBackoff   = 100 * time.Millisecond
	maxBackoff   = time.Minute
	// steady is how long a container must have run for its next restart to be
	// prompt.
	steady = 10 * time.Second
)

// follow takes the ends of processes from the keeper until the engine ends.
func (e *Engine) follow() {
	exits := e.opts.Keeper.Exits()
	for {
		select {
		case x, ok := <-exits:
			if !ok {
				if e.ctx.Err() == nil {
					e.log.Error("the connection to PID 1 is lost: ends of containers go unnoticed until the engine is restarted")
				}
				return
			}
			e.goRun(func() { e.exited(x.Key, x.Process) })
		case <-e.ctx.Done():
			return
		}
	}
}

// exited handles the end of a process.
func (e *Engine) exited(key string, p keeper.Process) {
	kind, id, _ := strings.Cut(key, "/")
	e.mu.Lock()
	c, x := e.byID[id], e.execs[id]
	e.mu.Unlock()
	switch {
	case kind == "container" && c != nil:
		c.handleExit(p.PID, p.Status, p.At)
	case kind == "exec" && x != nil:
		x.handleExit(p.PID, p.Status)
	default:
		_ = e.opts.Keeper.Delete(key)
	}
}

// exitCode turns a wait status into a shell's exit code.
func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// handleExit takes down what the container needed while it ran and decides what
// comes next.
func (c *Container) handleExit(pid int, status syscall.WaitStatus, at time.Time) {
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil || r.pid != pid || c.e.ctx.Err() != nil {
		return
	}
	defer c.e.Spans.Begin("teardown", c.id)()
	oom := c.teardown(r)

	c.mu.Lock()
	st := &c.rec.State
	ran := at.Sub(st.StartedAt)
	st.PID, st.ExitCode, st.FinishedAt, st.OOMKilled = 0, exitCode(status), at.UTC(), oom
	c.run = nil
	streams := c.streams
	c.streams = stdio.NewSet()
	next, wait := c.decide(r, ran)
	if err := st.Status.Transition(next); err != nil {
		c.e.log.Error("exit in a wrong state", "container", c.id, "error", err)
	}
	if next == record.Restarting {
		st.RestartCount++
	}
	// The event first: a crash in between repeats it, the other order would lose it.
	c.event(events.ActionDie, "exitCode", strconv.Itoa(st.ExitCode), "execDuration", seconds(ran))
	remove := next == record.Exited && c.rec.HostConfig.AutoRemove
	if !remove {
		c.save(false)
	}
	c.notifyExit()
	// Only now: who was attached may ask at once how it ended, or remove its networks.
	streams.End()
	if next == record.Restarting {
		c.delay = time.AfterFunc(wait, func() { c.e.goRun(func() { c.restartByPolicy() }) })
	}
	c.mu.Unlock()
	if remove {
		c.vanish()
		return
	}
	c.cleanUp()
}

// answerFirst is how long the cleaning behind a container that removes itself
// leaves the processor to the answer its client waits for.
const answerFirst = 5 * time.Millisecond

// vanish removes the container that has just ended, as --rm asks for: from sight
// at once, with its name and volumes free; from the disk in the background. A
// crash in between leaves a record that Restore removes. The caller holds op.
func (c *Container) vanish() {
	e := c.e
	c.mu.Lock()
	if err := c.rec.State.Status.Transition(record.Removing); err != nil {
		e.log.Error("exit in a wrong state", "container", c.id, "error", err)
	}
	c.mu.Unlock()
	e.dropExecs(c)
	e.releaseVolumes(context.Background(), c.rec, true)
	e.unreserve(c)
	c.mu.Lock()
	c.streams.End()
	c.event(events.ActionDestroy)
	close(c.removed)
	c.mu.Unlock()
	e.goRun(func() {
		time.Sleep(answerFirst)
		defer e.Spans.Begin("remove", c.id)()
		c.cleanUp()
		if err := e.eraseFiles(context.Background(), c); err != nil {
			e.log.Warn("cannot remove container", "container", c.id, "error", err)
		}
	})
}

// cleanUp takes back what of an ended run nobody waits for.
func (c *Container) cleanUp() {
	c.e.unmountRootfs(c)
	if err := c.e.opts.Keeper.Delete(c.key()); err != nil && !errors.Is(err, keeper.ErrNotFound) {
		c.e.log.Warn("cannot forget container", "container", c.id, "error", err)
	}
}

// teardown ends what is left of a run, in the order in which it is safe; cleanUp
// does the rest. It reports whether the kernel killed a process for want of memory.
func (c *Container) teardown(r *run) (oom bool) {
	e, ctx := c.e, context.Background()
	r.stop()
	r.watch.Wait()
	if kills, err := r.task.OOMKills(); err == nil {
		oom = kills > 0
	}
	if err := r.task.Delete(ctx); err != nil { // kills what is left of it
		e.log.Warn("cannot delete container", "container", c.id, "error", err)
	}
	r.task.Close()
	c.drain(r)
	e.releaseNetwork(ctx, c)
	e.releaseMounts(ctx, c)
	for _, m := range c.rec.Mounts {
		if m.Type == mount.TypeVolume {
			e.publish(events.VolumeEventType, events.ActionUnmount, m.Name, map[string]string{"driver": m.Driver, "container": c.id})
		}
	}
	return oom
}

// drain waits for the rest of the output, and closes the log.
func (c *Container) drain(r *run) {
	timer := time.AfterFunc(drainTimeout, func() {
		for _, f := range r.pipes {
			f.Close()
		}
	})
	r.drained.Wait()
	timer.Stop()
	if c.log != nil {
		_ = c.log.Close()
	}
}

// notifyExit wakes those who wait for an exit. The caller holds mu.
func (c *Container) notifyExit() {
	close(c.exited)
	c.exited = make(chan struct{})
}

// decide says what an exit leads to, and after what wait. The caller holds mu.
func (c *Container) decide(r *run, ran time.Duration) (record.Status, time.Duration) {
	st := &c.rec.State
	if r.stopped || c.halting {
		return record.Exited, 0
	}
	if ran >= steady {
		c.backoff, c.failures = 0, 0
	}
	if !wantsRestart(c.rec.HostConfig.RestartPolicy, st.ExitCode, c.failures, false) {
		return record.Exited, 0
	}
	c.backoff = min(max(minBackoff, 2*c.backoff), maxBackoff)
	c.failures++
	return record.Restarting, c.backoff
}

// wantsRestart says whether a policy restarts a container that ended with code
// after so many restarts in a row.
func wantsRestart(p apicontainer.RestartPolicy, code, failures int, stopped bool) bool {
	switch p.Name {
	case apicontainer.RestartPolicyAlways:
		return true
	case apicontainer.RestartPolicyUnlessStopped:
		return !stopped
	case apicontainer.RestartPolicyOnFailure:
		return code != 0 && (p.MaximumRetryCount == 0 || failures < p.MaximumRetryCount)
	}
	return false
}

func (c *Container) restartByPolicy() {
	err := c.e.start(context.Background(), c, startPolicy)
	if err != nil && !errors.Is(err, ErrNotModified) {
		c.e.log.Warn("cannot restart container", "container", c.id, "error", err)
		c.retry()
	}
}

// retry tries once more to start a container whose policy wants it to run.
func (c *Container) retry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &c.rec.State
	if c.halting || st.Status != record.Exited ||
		!wantsRestart(c.rec.HostConfig.RestartPolicy, st.ExitCode, c.failures, st.Stopped) {
		return
	}
	if err := st.Status.Transition(record.Restarting); err != nil {
		return
	}
	c.failures++
	st.RestartCount++
	c.backoff = min(max(minBackoff, 2*c.backoff), maxBackoff)
	c.delay = time.AfterFunc(c.backoff, func() { c.e.goRun(func() { c.restartByPolicy() }) })
	c.save(false)
}
