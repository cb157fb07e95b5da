package engine

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/stdio"
	"github.com/berthvm/berth/guest/keeper"
)

// Restore takes up the containers that an earlier engine left: those that still
// run are followed again, those that ended meanwhile are brought to where they
// belong, and restart policies are applied. It is called once.
func (e *Engine) Restore(ctx context.Context) error {
	// ready also when it fails: better to answer with what there is.
	defer close(e.ready)
	defer e.Spans.Begin("restore", "")()
	records, broken, err := e.store.Load()
	if err != nil {
		return err
	}
	entries, err := e.opts.Keeper.List()
	if err != nil {
		return err
	}
	byKey := map[string]keeper.Entry{}
	for _, entry := range entries {
		byKey[entry.Key] = entry
	}
	for _, rec := range records {
		e.restoreName(rec)
		c := newContainer(e, rec)
		e.mu.Lock()
		e.byID[rec.ID], e.byName[rec.Name] = c, c
		e.mu.Unlock()
		for _, m := range rec.Mounts { // of those that do not run they are released below
			if m.Type == mount.TypeVolume {
				e.opts.Volumes.Hold(m.Name, rec.ID)
			}
		}
	}
	alive := func(id string) bool {
		entry, ok := byKey["container/"+id]
		return ok && entry.Process != nil && e.byID[id] != nil
	}
	if err := e.opts.Networks.Restore(ctx, alive); err != nil {
		e.log.Error("cannot restore the networks", "error", err)
	}
	e.removeLeftovers(ctx, broken, byKey)
	var again []*Container
	for _, c := range e.byID {
		entry, ok := byKey[c.key()]
		if c.restore(ctx, entry, ok && entry.Process != nil) {
			again = append(again, c)
		}
	}
	e.restoreExecs(byKey)
	e.goRun(e.follow)
	for key, entry := range byKey { // ends that came while no engine was there
		if entry.Process != nil && entry.Process.Exited {
			e.goRun(func() { <-e.ready; e.exited(key, *entry.Process) })
		}
	}
	slices.SortFunc(again, func(a, b *Container) int { return a.rec.Created.Compare(b.rec.Created) })
	for _, c := range again {
		c.again = make(chan struct{})
		e.goRun(func() {
			defer close(c.again)
			<-e.ready
			c.startAgain()
		})
	}
	return nil
}

// settleTime is how long Settle waits at most.
const settleTime = 10 * time.Second

// Settle waits until the boot has started what restart policies want: the container
// of that name or, without one, all. A client that finds the engine up may then rely
// on them, as it may where dockerd starts them before it answers.
func (e *Engine) Settle(ctx context.Context, name string) {
	var list []*Container
	if name == "" {
		list, _ = e.all(ctx)
	} else if c, err := e.find(ctx, name); err == nil {
		list = []*Container{c}
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for _, c := range list {
		if c.again == nil {
			continue
		}
		select {
		case <-c.again:
		case <-ctx.Done():
			return
		}
	}
}

// restoreName gives a container whose name is taken another one: that cannot
// happen but by a crash between two writes of a rename.
func (e *Engine) restoreName(rec *record.Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byName[rec.Name] != nil {
		rec.Name = randomName(func(n string) bool { return e.byName[n] != nil }, rec.ID)
	}
}

// removeLeftovers removes what belongs to no container.
func (e *Engine) removeLeftovers(ctx context.Context, broken []string, kept map[string]keeper.Entry) {
	for _, id := range broken {
		e.log.Warn("a container whose creation did not finish is removed", "container", id)
		if err := errors.Join(e.opts.Images.RemoveRootfs(ctx, id), e.store.Remove(id)); err != nil {
			e.log.Warn("cannot remove container", "container", id, "error", err)
		}
	}
	for _, id := range e.opts.Images.RootfsKeys() {
		owner, _, _ := strings.Cut(id, keySeparator)
		if e.byID[owner] == nil {
			if err := e.opts.Images.RemoveRootfs(ctx, id); err != nil {
				e.log.Warn("cannot remove a root file system", "container", id, "error", err)
			}
		}
	}
	for key := range kept {
		kind, id, _ := strings.Cut(key, "/")
		if kind == "container" && e.byID[id] == nil {
			if task, err := e.opts.Runtime.Load(e.stateDir(), id); err == nil {
				_ = task.Delete(ctx)
				task.Close()
			}
			_ = e.opts.Keeper.Delete(key)
			delete(kept, key)
		}
	}
}

// restore brings one container to its true state. It reports whether the restart
// policy wants it started. Nothing else has the engine's containers yet.
func (c *Container) restore(ctx context.Context, entry keeper.Entry, kept bool) (again bool) {
	st := &c.rec.State
	sameBoot := st.Boot == c.e.opts.BootID
	if sameBoot {
		c.failures = st.RestartCount
	}
	if kept {
		if err := c.takeUp(entry); err == nil {
			return false
		} else if !errors.Is(err, errNotStarted) {
			c.e.log.Error("cannot follow a running container: it is stopped", "container", c.id, "error", err)
		}
	}
	if task, err := c.e.opts.Runtime.Load(c.e.stateDir(), c.id); err == nil {
		_ = task.Delete(ctx)
		task.Close()
	}
	_ = c.e.opts.Keeper.Delete(c.key())
	c.e.releaseNetwork(ctx, c)
	c.e.releaseMounts(ctx, c)
	c.e.unmountRootfs(c)
	was := st.Status
	switch was {
	case record.Running, record.Paused:
		// The machine ended without telling us.
		st.ExitCode, st.FinishedAt, st.PID = 255, time.Now().UTC(), 0
		_ = st.Status.Transition(record.Exited)
		c.event(events.ActionDie, "exitCode", "255", "execDuration", seconds(st.FinishedAt.Sub(st.StartedAt)))
	case record.Restarting:
		_ = st.Status.Transition(record.Exited)
	case record.Removing, record.Dead:
		return c.removeLater()
	}
	if c.rec.HostConfig.AutoRemove && (was != record.Created || kept) { // kept: it was started
		return c.removeLater()
	}
	if was != st.Status {
		c.save(false)
	}
	if sameBoot && was == record.Restarting {
		return true // it was decided already, and counted
	}
	return was != record.Created && wantsRestart(c.rec.HostConfig.RestartPolicy, st.ExitCode, st.RestartCount, st.Stopped)
}

func (c *Container) removeLater() bool {
	c.e.goRun(func() {
		<-c.e.ready
		c.mu.Lock()
		if c.rec.State.Status == record.Removing { // half removed: begin anew
			_ = c.rec.State.Status.Transition(record.Dead)
		}
		c.mu.Unlock()
		err := c.e.remove(context.Background(), c, RemoveOptions{Force: true, Volumes: c.rec.HostConfig.AutoRemove})
		if err != nil {
			c.e.log.Warn("cannot remove container", "container", c.id, "error", err)
		}
	})
	return false
}

var errNotStarted = errors.New("the container was not started yet")

// takeUp follows a container that ran on while there was no engine, or that ended
// and has not been dealt with to the end: its output is drained and its exit
// handled like any other's.
func (c *Container) takeUp(listed keeper.Entry) error {
	if !c.rec.State.Status.Alive() && c.rec.State.Status != record.Created && c.rec.State.Status != record.Exited &&
		c.rec.State.Status != record.Restarting {
		return errNotStarted
	}
	task, err := c.e.opts.Runtime.Load(c.e.stateDir(), c.id)
	if err != nil && listed.Process.Exited {
		task, err = endedTask(listed.Process.PID), nil
	}
	if err != nil {
		return err
	}
	at, executed := executed(task)
	if !c.rec.State.Status.Alive() && !executed {
		task.Close()
		return errNotStarted
	}
	entry, err := c.e.opts.Keeper.Get(listed.Key)
	if err != nil {
		task.Close()
		return err
	}
	var k kept
	if err := json.Unmarshal(entry.Record, &k); err != nil {
		task.Close()
		return err
	}
	en, err := endsOf(k, entry.Files)
	if err != nil {
		task.Close()
		return err
	}
	pid := listed.Process.PID
	if c.log != nil {
		if err := c.log.Open(); err != nil {
			c.e.log.Error("log entries are lost", "container", c.id, "error", err)
		}
	}
	r := &run{pid: pid, task: task, stop: func() {}}
	if err := c.adopt(r, en); err != nil {
		return err
	}
	c.agreeOnNetworks()
	c.e.publishAgain(c.e.ctx, c)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.rec.State.Status.Alive() { // the crash came between the start and its record
		if err := c.begun(r, at.UTC()); err != nil {
			return err
		}
		c.save(true)
	}
	c.watch(r)
	return nil
}

// agreeOnNetworks finishes what an earlier engine had begun to connect or disconnect:
// a connection that the record does not know is taken back, one that the networks do
// not know is none. Where they know nothing of the container the record is believed.
func (c *Container) agreeOnNetworks() {
	c.mu.Lock()
	defer c.mu.Unlock()
	on, recorded := map[string]bool{}, map[string]bool{}
	for key := range c.rec.Endpoints {
		name, _ := c.e.networkName(key, "")
		recorded[name] = true
	}
	for _, ep := range c.e.opts.Networks.Endpoints(c.id) {
		on[ep.NetworkName] = true
		if !recorded[ep.NetworkName] {
			if err := c.e.opts.Networks.Detach(c.e.ctx, c.id, ep.NetworkID); err != nil {
				c.e.log.Error("a container stays on a network that it was to be connected to", "container", c.id, "network", ep.NetworkName, "error", err)
			}
		}
	}
	for key := range c.rec.Endpoints {
		if name, _ := c.e.networkName(key, ""); len(on) > 0 && !on[name] {
			c.leave(key)
			c.save(true)
		}
	}
}

// executed says whether and when a task's program was executed: only then it is
// worth keeping, also if it has ended since.
func executed(t Task) (at time.Time, ok bool) {
	if e, is := t.(interface{ Executed() (time.Time, bool) }); is {
		return e.Executed()
	}
	return time.Time{}, false
}

// restoreExecs takes up the execs of containers that run.
func (e *Engine) restoreExecs(byKey map[string]keeper.Entry) {
	for key, listed := range byKey {
		kind, id, _ := strings.Cut(key, "/")
		if kind != "exec" {
			continue
		}
		if err := e.restoreExec(key, id, listed); err != nil {
			_ = e.opts.Keeper.Delete(key)
		}
	}
}

func (e *Engine) restoreExec(key, id string, listed keeper.Entry) error {
	var k kept
	if err := json.Unmarshal(listed.Record, &k); err != nil {
		return err
	}
	if k.Exec == nil || listed.Process == nil {
		return errNotStarted
	}
	c := e.byID[k.Exec.Container]
	if c == nil || c.run == nil {
		return errNotStarted
	}
	entry, err := e.opts.Keeper.Get(key)
	if err != nil {
		return err
	}
	en, err := endsOf(k, entry.Files)
	if err != nil {
		return err
	}
	x := &Exec{e: e, c: c, id: id, state: *k.Exec, streams: stdio.NewSet(), started: make(chan struct{}), done: make(chan struct{})}
	close(x.started)
	x.state.Started, x.state.Running, x.state.PID = true, true, listed.Process.PID
	c.execs[id] = x
	e.mu.Lock()
	e.execs[id] = x
	e.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.adopt(en)
}

// startAgain applies a restart policy after a boot.
func (c *Container) startAgain() {
	err := c.e.start(context.Background(), c, startRestore)
	if err != nil && !errors.Is(err, ErrNotModified) {
		c.e.log.Warn("cannot restart container", "container", c.id, "error", err)
		c.retry()
	}
}
