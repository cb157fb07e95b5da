package engine

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/berthvm/berth/guest/engine/logfile"
	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/stdio"
	"github.com/berthvm/berth/guest/network"
)

// ErrNotModified is returned by calls that find the container as they would make
// it: started or stopped already.
var ErrNotModified = errors.New("not modified")

// Container is one container. Its ID never changes.
type Container struct {
	e   *Engine
	id  string
	dir string // of its durable files
	log *logfile.Log

	// op serialises what changes the container's processes; it goes before mu.
	op sync.Mutex

	again chan struct{} // closed when the boot has tried to start it; nil: it does not. Set by Restore

	links atomic.Pointer[[]record.Link] // the record's, for those who may not wait for mu

	mu       sync.Mutex // guards what follows
	rec      *record.Record
	run      *run          // nil when it has no process
	streams  *stdio.Set    // of this run, or of the next when there is none
	exited   chan struct{} // closed by the next exit, and then replaced
	removed  chan struct{} // closed when it is gone
	delay    *time.Timer   // until it is restarted, in status Restarting
	backoff  time.Duration
	failures int  // restarts in a row, for on-failure's limit
	halting  bool // the machine shuts down: no restarts
	execs    map[string]*Exec
	ports    []published
	ways     network.Ways // by which they are reached
}

// run is a container's processes, from clone to exit.
type run struct {
	pid     int
	task    Task
	master  *os.File // of the terminal, if it has one
	drained sync.WaitGroup
	pipes   []*os.File         // what is being drained
	stop    context.CancelFunc // ends the health check and the watch for memory
	watch   sync.WaitGroup
	stopped bool // an exit was asked for: no restart policy
}

func newContainer(e *Engine, rec *record.Record) *Container {
	dir := e.store.Dir(rec.ID)
	c := &Container{e: e, id: rec.ID, dir: dir, rec: rec, streams: stdio.NewSet(),
		exited: make(chan struct{}), removed: make(chan struct{}), execs: map[string]*Exec{}}
	c.setLinks(rec.Links)
	if driver := rec.HostConfig.LogConfig.Type; driver != "none" {
		opts, err := logfile.ParseOptions(driver, rec.HostConfig.LogConfig.Config)
		if err != nil {
			opts = logfile.Options{MaxFiles: 1}
		}
		opts.Attrs = logAttrs(rec)
		c.log = logfile.New(filepath.Join(dir, rec.ID+"-json.log"), opts)
	}
	return c
}

// logAttrs are what the log's options add to its entries. The options were checked
// when the container was made.
func logAttrs(rec *record.Record) map[string]string {
	o := logfile.Origin{FullID: rec.ID, Name: rec.Name, ImageFullID: rec.ImageID, ImageName: rec.Config.Image, DaemonName: "berth",
		Command: strings.Join(slices.Concat(rec.Config.Entrypoint, rec.Config.Cmd), " "), Env: rec.Config.Env, Labels: rec.Config.Labels}
	attrs, _ := logfile.Attributes(rec.HostConfig.LogConfig.Config, o)
	return attrs
}

func sortNewestFirst(list []*Container) {
	slices.SortFunc(list, func(a, b *Container) int {
		if n := b.rec.Created.Compare(a.rec.Created); n != 0 {
			return n
		}
		return cmp.Compare(a.id, b.id)
	})
}

// rootfs is where the container's root file system is mounted while it runs.
func (c *Container) rootfs() string { return filepath.Join(c.e.opts.RunDir, "rootfs", c.id) }

// key is the container's key in the keeper.
func (c *Container) key() string { return "container/" + c.id }

// save writes the record. The caller holds mu. Containers that go with their
// exit need no durability: a crash of the machine removes them anyway.
func (c *Container) save(durable bool) {
	if err := c.e.store.Save(c.rec, durable && !c.rec.HostConfig.AutoRemove); err != nil {
		c.e.log.Error("cannot save container", "container", c.id, "error", err)
	}
}

// event records something that happened to the container. The caller holds mu.
func (c *Container) event(action events.Action, more ...string) {
	attrs := maps.Clone(c.rec.Config.Labels)
	if attrs == nil {
		attrs = map[string]string{}
	}
	attrs["name"] = c.rec.Name
	attrs["image"] = c.rec.Config.Image
	for i := 0; i+1 < len(more); i += 2 {
		attrs[more[i]] = more[i+1]
	}
	c.e.publish(events.ContainerEventType, action, c.id, attrs)
}

// letGo gives up what this process holds of the container; it runs on.
func (c *Container) letGo() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.delay != nil {
		c.delay.Stop()
	}
	c.streams.End()
	if c.run == nil {
		return
	}
	c.run.stop()
	for _, p := range c.run.pipes {
		p.Close()
	}
	if c.run.master != nil {
		c.run.master.Close()
	}
	c.run.task.Close()
}

// halt keeps the container from being restarted, without touching its record.
func (c *Container) halt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.halting = true
	if c.delay != nil {
		c.delay.Stop()
	}
}

// seconds formats a duration as events carry it.
func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }
