package step

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/containerd/continuity/fs"
	"github.com/docker/go-units"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/solver/pb"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/engine/runspec"
	"github.com/berthvm/berth/guest/network"
)

// hostname is what a step's host is called that asked for no name.
const hostname = "buildkitsandbox"

// shmSize is that of a step's /dev/shm by default, in bytes: docker's.
const shmSize = 64 << 20

func (b *building) hostname() string {
	if b.meta.Hostname != "" {
		return b.meta.Hostname
	}
	return hostname
}

// cgroup is the step's, below that of all steps whatever the build asks for.
func (b *building) cgroup() string {
	return path.Join(cgroupParent, path.Join("/", b.meta.CgroupParent), b.id)
}

func (b *building) networkMode() apicontainer.NetworkMode {
	switch b.meta.NetMode {
	case pb.NetMode_HOST:
		return network.Host
	case pb.NetMode_NONE:
		return network.None
	}
	return network.Bridge
}

// network gives the step its network.
func (b *building) network(ctx context.Context) error {
	mode := b.networkMode()
	if mode.IsHost() {
		return nil
	}
	nets := b.e.opts.Networks
	b.onUndo(func(ctx context.Context) error { return nets.Release(ctx, b.id) })
	ns, err := nets.NewNS(ctx, b.id)
	if err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	b.netns = ns
	_, err = nets.Attach(ctx, network.AttachRequest{
		ContainerID: b.id, ContainerName: "build-" + b.id, Network: string(mode), NetNS: ns,
	})
	if err == nil && b.tool && mode != network.None && b.e.opts.Loopback != nil {
		err = nets.LendLoopback(b.id, b.e.dialLoopback)
	}
	return err
}

// dialLoopback connects to an address of Options.Loopback's. Who says localhost to a
// Tool gets 127.0.0.1 or ::1 as it happens, and means both.
func (e *Executor) dialLoopback(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	conn, err := e.opts.Loopback(ctx, "tcp", to.String())
	if err == nil {
		return conn, nil
	}
	other := netip.IPv6Loopback()
	switch to.Addr() {
	case other:
		other = loopback4
	case loopback4:
	default:
		return nil, err
	}
	if conn, err := e.opts.Loopback(ctx, "tcp", netip.AddrPortFrom(other, to.Port()).String()); err == nil {
		return conn, nil
	}
	return nil, err
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// makeSpec makes the step's specification: that of a container of the engine's.
func (b *building) makeSpec(ctx context.Context, root executor.Mount, mounts []executor.Mount) error {
	files, err := b.netFiles()
	if err != nil {
		return err
	}
	all := files
	for i, m := range mounts {
		made, err := b.mount(ctx, i, m)
		if err != nil {
			return err
		}
		all = append(all, made...)
	}
	spec, err := runspec.Build(b.input(all, root.Readonly))
	if err != nil {
		return err
	}
	// Of all that a container's environment has, a step has what the Dockerfile says.
	spec.Process.Env = b.meta.Env
	spec.Hostname = b.hostname()
	if b.networkMode().IsHost() {
		spec.Hostname = "" // the machine's
	}
	b.spec = spec
	return b.makeCwd()
}

func (b *building) input(mounts []specs.Mount, readonly bool) runspec.Input {
	m := b.meta
	hc := &apicontainer.HostConfig{
		NetworkMode: b.networkMode(), ReadonlyRootfs: m.ReadonlyRootFS || readonly, ShmSize: shmSize,
		Privileged: m.SecurityMode == pb.SecurityMode_INSECURE,
	}
	if b.tool {
		hc.CapDrop, hc.SecurityOpt = []string{"ALL"}, []string{"no-new-privileges"}
	}
	for _, u := range m.Ulimit {
		hc.Ulimits = append(hc.Ulimits, &units.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	if r := m.LinuxResources; r != nil {
		hc.Memory, hc.MemorySwap = r.Memory, r.MemorySwap
		hc.CPUShares, hc.CPUQuota, hc.CPUPeriod = int64(r.CpuShares), r.CpuQuota, int64(r.CpuPeriod)
		hc.CpusetCpus, hc.CpusetMems = r.CpusetCpus, r.CpusetMems
	}
	return runspec.Input{
		ID:         b.id,
		Config:     &apicontainer.Config{Cmd: m.Args, Env: m.Env, User: m.User, WorkingDir: m.Cwd, Tty: m.Tty},
		HostConfig: hc,
		Rootfs:     b.rootfs,
		Cgroup:     b.cgroup(),
		NetNS:      b.netns,
		Mounts:     mounts,
	}
}

// netFiles writes what a step reads about its network.
func (b *building) netFiles() ([]specs.Mount, error) {
	var extra []network.HostEntry
	for _, h := range b.meta.ExtraHosts {
		if ip, ok := netip.AddrFromSlice(h.IP); ok {
			extra = append(extra, network.HostEntry{Addr: ip.Unmap(), Names: []string{h.Host}})
		}
	}
	eps := b.e.opts.Networks.Endpoints(b.id)
	var out []specs.Mount
	for name, data := range map[string][]byte{
		"hosts":       network.Hosts(b.hostname(), "", true, eps, extra),
		"resolv.conf": network.ResolvConf(network.DNSConfig{}, b.e.opts.DNS, false),
	} {
		file := filepath.Join(b.dir, name)
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return nil, fmt.Errorf("write the step's %s: %w", name, err)
		}
		out = append(out, specs.Mount{Destination: "/etc/" + name, Type: "bind", Source: file,
			Options: []string{"rbind", "ro", "nosuid", "noexec", "nodev", "rprivate"}})
	}
	return out, nil
}

// mount turns one of BuildKit's mounts into the specification's.
func (b *building) mount(ctx context.Context, i int, m executor.Mount) ([]specs.Mount, error) {
	if m.Src == nil {
		return nil, fmt.Errorf("mount %s has no source", m.Dest)
	}
	list, err := b.source(ctx, m.Src, m.Readonly)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	dest := path.Join("/", m.Dest)
	var out []specs.Mount
	for j, one := range list {
		if one.Type == "tmpfs" && path.Join("/", m.Selector) == "/" {
			out = append(out, specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: one.Options})
			continue
		}
		where := one.Source
		if one.Type != "bind" && one.Type != "rbind" {
			if where, err = b.mountAt(fmt.Sprintf("mount-%d-%d", i, j), list[j:j+1]); err != nil {
				return nil, err
			}
		}
		f, err := openIn(where, m.Selector)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Dest, err)
		}
		b.binds = append(b.binds, f)
		opts := []string{"rbind", "rprivate"}
		if m.Readonly || one.ReadOnly() {
			opts = append(opts, "ro")
		}
		out = append(out, specs.Mount{Destination: dest, Type: "bind", Source: "/proc/self/fd/" + strconv.Itoa(int(f.Fd())), Options: opts})
	}
	return out, nil
}

// openIn opens a path below dir. Links are those of a root file system of their
// own: none leads out, also when a step that runs now exchanges them.
func openIn(dir, name string) (*os.File, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	name = path.Join("/", name)
	if name == "/" {
		return d, nil
	}
	defer d.Close()
	fd, err := unix.Openat2(int(d.Fd()), name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// makeCwd makes the working directory if it is missing. It belongs to the user the
// step runs as.
func (b *building) makeCwd() error {
	dir, err := fs.RootPath(b.rootfs, b.meta.Cwd)
	if err != nil {
		return fmt.Errorf("working dir %s points to invalid target: %w", b.meta.Cwd, err)
	}
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return nil // what is no directory fails when the step begins
	}
	u := b.spec.Process.User
	if err := user.MkdirAllAndChown(dir, 0o755, int(u.UID), int(u.GID)); err != nil {
		return fmt.Errorf("failed to create working directory %s: %w", b.meta.Cwd, err)
	}
	return nil
}
