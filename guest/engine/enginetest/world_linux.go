package enginetest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/creack/pty"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/container/cgroup"
	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/hostpath"
	"github.com/berthvm/berth/guest/image"
	"github.com/berthvm/berth/guest/keeper"
	"github.com/berthvm/berth/guest/network"
	"github.com/berthvm/berth/guest/volume"
)

// World is everything around an engine. It lives as long as the machine would.
type World struct {
	T   testing.TB
	Dir string

	Folders hostpath.Map // of the host; set before Engine

	mu      sync.Mutex // guards what follows
	entries map[string]keeper.Entry
	exits   chan keeper.Exit
	tasks   map[string]*task
	rootfs  map[string]bool
	mounted map[string]bool
	nets    map[string][]network.Endpoint
	ports   map[string][]network.Port
	host    map[string]bool   // what the host listens on
	binds   map[string]string // what was bound last, by destination
	nextPID int
	lastIP  byte // each attachment gets the next address
	boot    int
}

// New returns a world with two images, "img" and "child".
func New(t testing.TB) *World {
	w := &World{T: t, Dir: t.TempDir(), rootfs: map[string]bool{}, binds: map[string]string{}, nextPID: 1000}
	w.Reboot()
	return w
}

// Reboot plays the machine's end and restart: nothing runs any more.
func (w *World) Reboot() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.tasks {
		t.proc.release()
	}
	for _, e := range w.entries {
		for _, f := range e.Files {
			f.Close()
		}
	}
	w.entries, w.tasks = map[string]keeper.Entry{}, map[string]*task{}
	w.mounted, w.nets = map[string]bool{}, map[string][]network.Endpoint{}
	w.ports, w.host = map[string][]network.Port{}, map[string]bool{}
	w.exits = nil
	w.boot++
}

// Engine opens an engine in the world and restores its containers. It is closed
// with the test.
func (w *World) Engine() *engine.Engine {
	w.T.Helper()
	w.mu.Lock()
	w.exits = make(chan keeper.Exit, 1000)
	boot := w.boot
	w.mu.Unlock()
	store, err := volume.Open(w.Dir + "/volumes")
	if err != nil {
		w.T.Fatal(err)
	}
	e, err := engine.Open(engine.Options{Volumes: store, Log: slog.New(slog.DiscardHandler), Runtime: runtime{w}, Images: images{w}, Networks: networks{w},
		Keeper: keep{w}, Publisher: publisher{w}, StateDir: w.Dir + "/state", RunDir: fmt.Sprintf("%s/run%d", w.Dir, boot), Hostname: "machine",
		Socket: "/machine/docker.sock", HostSocket: "/home/u/.berth/docker.sock", Folders: w.Folders, BootID: strconv.Itoa(boot), ShutdownTimeout: 5 * time.Second})
	if err != nil {
		w.T.Fatal(err)
	}
	if err := e.Restore(context.Background()); err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { e.Close() })
	return e
}

// Leftovers names what containers have left behind.
func (w *World) Leftovers() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var left []string
	for k := range w.entries {
		left = append(left, "kept "+k)
	}
	for k := range w.tasks {
		left = append(left, "task "+k)
	}
	for k := range w.rootfs {
		left = append(left, "rootfs "+k)
	}
	for k := range w.mounted {
		left = append(left, "mount "+k)
	}
	for k := range w.host {
		left = append(left, "listener "+k)
	}
	for k := range w.nets {
		left = append(left, "network "+k)
	}
	slices.Sort(left)
	return left
}

// process is a program that runs: a goroutine.
type process struct {
	w       *World
	pid     int
	key     string
	in      io.Reader
	out     io.Writer
	err     io.Writer
	files   []*os.File
	signals chan syscall.Signal
	start   chan struct{}
	killed  chan struct{}
	once    sync.Once
}

func (p *process) release() { p.once.Do(func() { close(p.killed) }) }

// newProcess makes a process as the runtime would: it is told of by started, and
// makes its terminal, for which console is set, by itself.
func (w *World) newProcess(key string, args []string, stdio []*os.File, console func(*os.File) error,
	started func(int, *os.File) error) (*process, error) {
	w.mu.Lock()
	w.nextPID++
	p := &process{w: w, pid: w.nextPID, key: key, in: eof{}, out: io.Discard, err: io.Discard,
		signals: make(chan syscall.Signal, 10), start: make(chan struct{}), killed: make(chan struct{})}
	w.mu.Unlock()
	open := func(f *os.File) *os.File {
		if f == nil {
			return nil
		}
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			w.T.Error(err)
			return nil
		}
		syscall.CloseOnExec(fd)
		d := os.NewFile(uintptr(fd), f.Name())
		p.files = append(p.files, d)
		return d
	}
	go p.run(args)
	if err := started(p.pid, nil); err != nil {
		return p, err
	}
	if console != nil {
		master, slave, err := pty.Open()
		if err != nil {
			return p, err
		}
		p.files = append(p.files, slave)
		p.in, p.out, p.err = slave, slave, slave
		if err := console(master); err != nil {
			return p, err
		}
	} else {
		if f := open(stdio[0]); f != nil {
			p.in = f
		}
		if f := open(stdio[1]); f != nil {
			p.out = f
		}
		if f := open(stdio[2]); f != nil {
			p.err = f
		}
	}
	return p, nil
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// run runs the program and reports its end as the kernel would.
func (p *process) run(args []string) {
	select {
	case <-p.start:
	case <-p.killed:
		p.end(9)
		return
	}
	done := make(chan syscall.WaitStatus, 1)
	go func() { done <- syscall.WaitStatus(p.program(args) << 8) }()
	select {
	case s := <-done:
		p.end(s)
	case <-p.killed:
		p.end(9)
	}
}

func (p *process) end(s syscall.WaitStatus) {
	for _, f := range p.files {
		f.Close()
	}
	p.w.exited(p.key, p.pid, s)
}

// program plays the few programs that tests need, and returns the exit code.
func (p *process) program(args []string) int {
	switch args[0] {
	case "echo":
		for _, a := range args[1:] {
			fmt.Fprintln(p.out, a)
		}
	case "warn":
		fmt.Fprintln(p.err, args[1])
	case "cat":
		_, _ = io.Copy(p.out, p.in)
	case "lines": // repeats each line with a mark, at once
		r := bufio.NewScanner(p.in)
		for r.Scan() {
			fmt.Fprintln(p.out, ">"+r.Text())
		}
	case "exit":
		n, _ := strconv.Atoi(args[1])
		return n
	case "sleep": // until a signal it heeds
		for s := range p.signals {
			if s == syscall.SIGTERM {
				return 143 - 128
			}
			fmt.Fprintln(p.out, "signal", int(s))
		}
	case "deaf": // until it is killed
		select {}
	}
	return 0
}

func (p *process) signal(s syscall.Signal) error {
	p.w.mu.Lock()
	_, alive := p.w.entries[p.key]
	p.w.mu.Unlock()
	if !alive {
		return container.ErrNotRunning
	}
	if s == syscall.SIGKILL {
		p.release()
		return nil
	}
	p.signals <- s
	return nil
}

func (w *World) exited(key string, pid int, s syscall.WaitStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.entries[key]
	if !ok || e.Process == nil || e.Process.PID != pid {
		return
	}
	p := keeper.Process{PID: pid, Exited: true, Status: s, At: time.Now()}
	e.Process = &p
	w.entries[key] = e
	if w.exits != nil {
		w.exits <- keeper.Exit{Key: key, Process: p}
	}
}

// publisher is the host: 8080 is taken, and it chooses 40000.
type publisher struct{ w *World }

type listener struct {
	w  *World
	at string
}

func (l listener) Close() error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	delete(l.w.host, l.at)
	return nil
}

func (listener) Moved() {}

func (p publisher) Open(_ context.Context, proto, address string, _ func() netip.AddrPort) (netip.AddrPort, engine.HostPort, error) {
	at := netip.MustParseAddrPort(address)
	if at.Port() == 0 {
		at = netip.AddrPortFrom(at.Addr(), 40000)
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	key := proto + " " + at.String()
	if at.Port() == 8080 || p.w.host[key] {
		//lint:ignore ST1005 docker's words, which the host says
		return at, nil, fmt.Errorf("Bind for %s failed: port is already allocated", at)
	}
	p.w.host[key] = true
	return at, listener{p.w, key}, nil
}

// Listeners is what the host listens on.
func (w *World) Listeners() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.host))
}

// DropListeners plays what the host does when the engine's connections end.
func (w *World) DropListeners() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.host)
}

type runtime struct{ w *World }

type task struct {
	w    *World
	id   string
	proc *process
	args []string

	mu      sync.Mutex
	started time.Time
	execs   []*process
}

func (r runtime) Create(_ context.Context, cfg container.Config) (engine.Task, error) {
	args := cfg.Spec.Process.Args
	p, err := r.w.newProcess("container/"+cfg.ID, args, []*os.File{cfg.Stdin, cfg.Stdout, cfg.Stderr}, cfg.Console, cfg.Started)
	if err != nil {
		p.release()
		return nil, err
	}
	t := &task{w: r.w, id: cfg.ID, proc: p, args: args}
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.w.tasks[cfg.ID] = t
	for _, m := range cfg.Spec.Mounts {
		source := m.Source
		if file, err := os.Readlink(source); err == nil && strings.HasPrefix(source, "/proc/self/fd/") {
			source = file // it is open until Create has returned
		}
		r.w.binds[m.Destination] = source
	}
	return t, nil
}

// Bound is the source of the bind mount that a container was last given at dest.
func (w *World) Bound(dest string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.binds[dest]
}

func (r runtime) Load(_, id string) (engine.Task, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if t := r.w.tasks[id]; t != nil {
		return t, nil
	}
	return nil, container.ErrNotFound
}

func (t *task) PID() int { return t.proc.pid }

func (t *task) Executed() (time.Time, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.started, !t.started.IsZero()
}

func (t *task) Start(context.Context) error {
	switch t.args[0] {
	case "nosuch":
		return fmt.Errorf("%w: %w", container.ErrProgram, fs.ErrNotExist)
	case "forbidden":
		return fmt.Errorf("%w: %w", container.ErrProgram, syscall.EACCES)
	case "too-capable":
		return fmt.Errorf("%w: %w", container.ErrProgram, syscall.EPERM)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.started = time.Now()
	close(t.proc.start)
	return nil
}

func (t *task) Signal(s syscall.Signal) error      { return t.proc.signal(s) }
func (t *task) Pause(context.Context) error        { return nil }
func (t *task) Resume(context.Context) error       { return nil }
func (t *task) Update(*specs.LinuxResources) error { return nil }
func (t *task) Close() error                       { return nil }
func (t *task) PIDs() ([]int, error)               { return []int{os.Getpid()}, nil }

func (t *task) Stats() (cgroup.Stats, error) {
	return cgroup.Stats{Memory: cgroup.MemoryStats{Usage: 4096, Limit: 1 << 20}}, nil
}

func (t *task) OOMKills() (uint64, error) { return 0, nil }

func (t *task) WatchOOM(ctx context.Context, _ func(uint64)) error { <-ctx.Done(); return nil }

func (t *task) Exec(ctx context.Context, cfg container.ExecConfig) (engine.Process, error) {
	switch cfg.Process.Args[0] {
	case "nosuch":
		return nil, fmt.Errorf("%w: %w", container.ErrProgram, fs.ErrNotExist)
	case "late": // takes long to start
		select {
		case <-time.After(600 * time.Millisecond):
		case <-ctx.Done():
			return nil, os.ErrDeadlineExceeded
		}
	}
	key := ""
	t.w.mu.Lock()
	for k, e := range t.w.entries { // the exec's key is the one without a process
		if e.Process == nil && k != "container/"+t.id {
			key = k
		}
	}
	t.w.mu.Unlock()
	p, err := t.w.newProcess(key, cfg.Process.Args, []*os.File{cfg.Stdin, cfg.Stdout, cfg.Stderr}, cfg.Console, cfg.Started)
	if err != nil {
		p.release()
		return nil, err
	}
	t.mu.Lock()
	t.execs = append(t.execs, p)
	t.mu.Unlock()
	close(p.start)
	return execed{p}, nil
}

type execed struct{ p *process }

func (e execed) PID() int                      { return e.p.pid }
func (e execed) Signal(s syscall.Signal) error { return e.p.signal(s) }
func (e execed) Close() error                  { return nil }

func (t *task) Delete(context.Context) error {
	t.proc.release()
	t.mu.Lock()
	for _, p := range t.execs { // they die with the first process
		p.release()
	}
	t.mu.Unlock()
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	delete(t.w.tasks, t.id)
	return nil
}

// Forget removes what the runtime knows of a container, as an engine does that
// crashes before it has recorded the container's end.
func (w *World) Forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.tasks, id)
}

// ImageID is the identity of the world's image, ChildID that of one committed from it.
var (
	ImageID = digest.FromString("img")
	ChildID = digest.FromString("child")
)

type images struct{ w *World }

func (i images) GetPlatform(_ context.Context, ref string, _ *ocispec.Platform) (image.Image, error) {
	img := image.Image{ID: ImageID, RepoTags: []string{"img:latest"}}
	switch ref {
	case "img", ImageID.String():
	case "child", ChildID.String():
		img = image.Image{ID: ChildID, RepoTags: []string{"child:latest"}, Parent: ImageID}
	default:
		return image.Image{}, errdefs.ErrNotFound.WithMessage("No such image: " + ref + ":latest")
	}
	img.Manifest.Digest = img.ID
	img.Spec.Config = dockerspec.DockerOCIImageConfig{}
	img.Spec.Config.Cmd, img.Spec.Config.Env = []string{"echo", "hello"}, []string{"PATH=/bin", "FROM=image"}
	return img, nil
}

func (i images) Prepare(_ context.Context, id, _ string, _ *ocispec.Platform, _ bool) error {
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	i.w.rootfs[id] = true
	return nil
}

func (i images) Mount(_ context.Context, id, target string) error {
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	i.w.mounted[target] = true
	return os.MkdirAll(target, 0o700)
}

func (i images) Unmount(target string) error {
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	delete(i.w.mounted, target)
	return nil
}

func (i images) RootfsKeys() []string {
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	var keys []string
	for k := range i.w.rootfs {
		keys = append(keys, k)
	}
	return keys
}

func (i images) RemoveRootfs(_ context.Context, id string) error {
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	delete(i.w.rootfs, id)
	return nil
}

func (i images) Usage(context.Context, string) (image.Usage, error) {
	return image.Usage{RW: 10, RootFS: 100}, nil
}

func (i images) Changes(context.Context, string) ([]image.Change, error) { return nil, nil }

type networks struct{ w *World }

func (n networks) Get(name string) (network.Network, error) {
	for known, driver := range map[string]string{"bridge": "bridge", "host": "host", "none": "null", "other": "bridge"} {
		if id := digest.FromString(known).Encoded(); name == known || name == id {
			return network.Network{ID: id, Name: known, Driver: driver}, nil
		}
	}
	return network.Network{}, errdefs.ErrNotFound.WithMessage("network " + name + " not found")
}

func (n networks) NewNS(_ context.Context, id string) (string, error) { return "/ns/" + id, nil }

func (n networks) Attach(_ context.Context, req network.AttachRequest) (network.Endpoint, error) {
	if _, err := n.Get(req.Network); err != nil {
		return network.Endpoint{}, err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if slices.ContainsFunc(n.w.nets[req.ContainerID], func(ep network.Endpoint) bool { return ep.NetworkName == req.Network }) {
		return network.Endpoint{}, errdefs.ErrPermissionDenied.WithMessage("endpoint already exists in network " + req.Network)
	}
	n.w.lastIP++
	ep := network.Endpoint{ID: "ep", NetworkID: digest.FromString(req.Network).Encoded(), NetworkName: req.Network, ContainerID: req.ContainerID,
		IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 17, 0, n.w.lastIP}), 16)}
	n.w.nets[req.ContainerID] = append(n.w.nets[req.ContainerID], ep)
	return ep, nil
}

func (n networks) Detach(_ context.Context, id, name string) error {
	found, err := n.Get(name)
	if err != nil {
		return err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.nets[id] = slices.DeleteFunc(n.w.nets[id], func(ep network.Endpoint) bool { return ep.NetworkName == found.Name })
	return nil
}

// Connected puts a container on a network, or takes it off, without its engine's
// knowing: a crash came in between.
func (w *World) Connected(id, name string, on bool) error {
	if on {
		_, err := networks{w}.Attach(context.Background(), network.AttachRequest{ContainerID: id, Network: name})
		return err
	}
	return networks{w}.Detach(context.Background(), id, name)
}

func (n networks) Release(_ context.Context, id string) error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	delete(n.w.nets, id)
	delete(n.w.ports, id)
	return nil
}

func (n networks) Ways(id string) network.Ways {
	_, ok := n.Address(id)
	return network.Ways{Translated4: ok}
}

func (n networks) Address(id string) (netip.Addr, bool) {
	return netip.MustParseAddr("172.17.0.2"), len(n.Endpoints(id)) > 0
}

func (n networks) Publish(_ context.Context, id string, ports []network.Port) error {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.ports[id] = ports
	return nil
}

func (n networks) Ports(id string) []network.Port {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.w.ports[id]
}

func (n networks) Rename(context.Context, string, string) error { return nil }

func (n networks) Endpoints(id string) []network.Endpoint {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return slices.Clone(n.w.nets[id])
}

func (n networks) Stats(string) ([]network.Stats, error)            { return nil, nil }
func (n networks) Restore(context.Context, func(string) bool) error { return nil }

type keep struct{ w *World }

func (k keep) Put(key string, record []byte, files ...*os.File) error {
	var dups []*os.File
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		_ = raw.Control(func(fd uintptr) {
			if d, err := syscall.Dup(int(fd)); err == nil {
				dups = append(dups, os.NewFile(uintptr(d), f.Name()))
			}
		})
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	old := k.w.entries[key]
	for _, f := range old.Files {
		f.Close()
	}
	k.w.entries[key] = keeper.Entry{Key: key, Record: record, Files: dups, Process: old.Process}
	return nil
}

func (k keep) Get(key string) (keeper.Entry, error) {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	e, ok := k.w.entries[key]
	if !ok {
		return e, keeper.ErrNotFound
	}
	var dups []*os.File
	for _, f := range e.Files {
		raw, _ := f.SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			if d, err := syscall.Dup(int(fd)); err == nil {
				dups = append(dups, os.NewFile(uintptr(d), f.Name()))
			}
		})
	}
	e.Files = dups
	return e, nil
}

func (k keep) List() ([]keeper.Entry, error) {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	var list []keeper.Entry
	for _, e := range k.w.entries {
		e.Files = nil
		list = append(list, e)
	}
	return list, nil
}

func (k keep) Delete(key string) error {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	e, ok := k.w.entries[key]
	if !ok {
		return keeper.ErrNotFound
	}
	for _, f := range e.Files {
		f.Close()
	}
	delete(k.w.entries, key)
	return nil
}

func (k keep) Adopt(key string, pid int, _ *os.File) error {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	e, ok := k.w.entries[key]
	if !ok {
		return keeper.ErrNotFound
	}
	e.Process = &keeper.Process{PID: pid}
	k.w.entries[key] = e
	return nil
}

func (k keep) Exits() <-chan keeper.Exit {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	return k.w.exits
}

// Signal sends a signal to a process without the engine's knowledge.
func (w *World) Signal(key string, s syscall.Signal) {
	w.mu.Lock()
	var p *process
	for id, t := range w.tasks {
		if "container/"+id == key {
			p = t.proc
		}
	}
	w.mu.Unlock()
	if p != nil {
		_ = p.signal(s)
	}
}

// Exited says whether the keeper knows of a process's end.
func (w *World) Exited(key string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.entries[key]
	return e.Process != nil && e.Process.Exited
}
