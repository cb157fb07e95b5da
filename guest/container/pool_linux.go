package container

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/cgroup"
	"github.com/berthvm/berth/guest/container/fork"
	"github.com/berthvm/berth/guest/container/order"
)

// A Pool keeps one process begun: berth-exec in a cgroup and in namespaces of its
// own, waiting for an order. Beginning one takes half of what creating a container
// takes, and does not depend on which container it will be. Its methods are safe
// for concurrent use, also on a nil Pool, which never has a process.
//
// The process waits in a system call and costs no time, about 2 MB of memory, and
// nothing of the machine's mounts. It ends when its creator does.
type Pool struct {
	cfg PoolConfig

	mu     sync.Mutex
	ready  *warm
	timer  *time.Timer // for the next fill; nil: none is due
	filler sync.WaitGroup
	closed bool
}

// PoolConfig describes the containers that a Pool is good for: those whose Config
// has the same values.
type PoolConfig struct {
	Parent      string // of the containers' cgroups: "/berth"
	ExecPath    string
	CloneParent bool
	// Delay is how long after a container's start the next process is begun, so as
	// not to be in its way: 50 ms if zero.
	Delay time.Duration
}

// warmPrefix begins the names of a pool's cgroups.
const warmPrefix = "warm-"

// warmFlags are the namespaces that every warm process has.
const warmFlags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP

// warm is a process that has begun.
type warm struct {
	process
	group   *cgroup.Group
	sibling bool
}

// NewPool makes a pool, which is empty until Refill. It removes the empty cgroups
// that an earlier one has left.
func NewPool(cfg PoolConfig) (*Pool, error) {
	if cfg.Delay == 0 {
		cfg.Delay = 50 * time.Millisecond
	}
	parent, err := cgroup.At(cfg.Parent)
	if err != nil {
		return nil, fmt.Errorf("container pool: %w", err)
	}
	cfg.Parent = parent.Path()
	entries, err := os.ReadDir(parent.Dir())
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("container pool: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), warmPrefix) {
			_ = unix.Rmdir(parent.Dir() + "/" + e.Name()) // fails for those in use
		}
	}
	return &Pool{cfg: cfg}, nil
}

// Refill begins a process after the pool's delay, if there is none.
func (p *Pool) Refill() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.ready != nil || p.timer != nil {
		return
	}
	p.filler.Add(1)
	p.timer = time.AfterFunc(p.cfg.Delay, func() {
		defer p.filler.Done()
		p.fill()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.timer = nil
	})
}

// fill begins a process. A failure is not reported: it will come again, and to
// somebody's ears, when a container is created without the pool.
func (p *Pool) fill() {
	w, err := p.begin()
	p.mu.Lock()
	wanted := err == nil && !p.closed && p.ready == nil
	if wanted {
		p.ready = w
	}
	p.mu.Unlock()
	if err == nil && !wanted {
		w.discard()
	}
}

func (p *Pool) begin() (*warm, error) {
	g, err := cgroup.Create(path.Join(p.cfg.Parent, warmPrefix+rand.Text()), nil)
	if err != nil {
		return nil, err
	}
	w := &warm{group: g, sibling: p.cfg.CloneParent}
	dir, err := g.Open()
	if err == nil {
		defer dir.Close()
		w.process, err = spawn(p.cfg.ExecPath, fork.Command{
			Flags: warmFlags, Cgroup: dir, Sibling: p.cfg.CloneParent, Env: []string{order.Warm + "=1"},
		})
	}
	if err != nil {
		_ = unix.Rmdir(g.Dir())
		return nil, err
	}
	return w, nil
}

// discard ends the process and removes its cgroup.
func (w *warm) discard() {
	if w.pidfd != nil {
		w.conn.close()
		kill(w.pid, w.pidfd, w.sibling)
		w.pidfd = nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = w.group.Delete(ctx)
}

// Close ends the process and waits for what Refill has begun.
func (p *Pool) Close() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	p.closed = true
	if p.timer != nil && p.timer.Stop() {
		p.timer = nil
		p.filler.Done()
	}
	w := p.ready
	p.ready = nil
	p.mu.Unlock()
	if w != nil {
		w.discard()
	}
	p.filler.Wait()
	return nil
}

// take returns the process if it is alive and fits what pl wants.
func (p *Pool) take(pl *plan) *warm {
	if p == nil || !p.fits(pl) {
		return nil
	}
	p.mu.Lock()
	w := p.ready
	p.ready = nil
	p.mu.Unlock()
	if w == nil {
		return nil
	}
	if exited(w.pidfd) {
		w.discard()
		p.Refill()
		return nil
	}
	return w
}

// fits reports whether a warm process can become pl's container.
func (p *Pool) fits(pl *plan) bool {
	flags := pl.flags &^ unix.CLONE_NEWNET
	for _, ns := range pl.joins {
		switch ns.Type {
		case specs.NetworkNamespace:
		case specs.UTSNamespace, specs.IPCNamespace:
			flags |= cloneFlags[ns.Type] // it leaves its own for the other
		default:
			return false
		}
	}
	return flags == warmFlags && pl.group != nil && path.Dir(pl.group.Path()) == p.cfg.Parent &&
		pl.cfg.ExecPath == p.cfg.ExecPath && pl.cfg.CloneParent == p.cfg.CloneParent &&
		!pl.order.ShareRoot && len(pl.order.CreateHooks) == 0
}
