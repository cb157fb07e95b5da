package container

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/cgroup"
	"github.com/berthvm/berth/guest/container/order"
	"github.com/berthvm/berth/guest/container/seccomp"
)

// plan is a checked Config: what to clone and what to order. Making one changes
// nothing on the machine.
type plan struct {
	cfg   *Config
	spec  *specs.Spec
	order order.Order

	flags   uint64 // CLONE_NEW*
	joins   []specs.LinuxNamespace
	newUser bool
	mountNS string        // of another's mount namespace to join
	group   *cgroup.Group // nil: none
	binds   []bind
	warm    *warm // nil: none fits
	filter  *seccomp.Filter
	oom     string
}

// bind is a bind mount's source. This process opens it where the first process
// cannot: it may lack the rights, or, being warm, the sight of it.
type bind struct {
	mount                   int // index in order.Mounts
	source                  string
	recursive, mapRecursive bool
	uids, gids              []specs.LinuxIDMapping
	needsTree               bool
}

// badf makes an error that lies in the specification.
func badf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrConfig, fmt.Errorf(format, args...))
}

var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]*$`)

func checkID(id string) error {
	if len(id) > 1024 || !validID.MatchString(id) {
		return badf("container ID %q: use letters, digits and _ . + -", id)
	}
	return nil
}

// makePlan checks cfg as a whole. The first thing that is wrong is the error.
func makePlan(cfg *Config) (*plan, error) {
	p := &plan{cfg: cfg, spec: cfg.Spec}
	p.order = order.Order{}
	for _, step := range []func() error{
		p.basics, p.namespaces, p.rootfs, p.cgroup, p.identity, p.unsupported, p.sysctls,
		p.planMounts, p.devices, p.paths, p.hooks, p.process, p.seccomp,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *plan) basics() error {
	s := p.spec
	switch {
	case s == nil:
		return badf("there is no specification")
	case s.Version == "":
		return badf("ociVersion: missing")
	case !strings.HasPrefix(s.Version, "1."):
		return badf("ociVersion: %q is not supported: this runtime knows 1.x", s.Version)
	case s.Process == nil:
		return badf("process: missing")
	case s.Linux == nil:
		return badf("linux: missing")
	case p.cfg.StateDir == "":
		return errors.New("container: no state directory was given")
	}
	return checkID(p.cfg.ID)
}

var cloneFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace: unix.CLONE_NEWNS, specs.IPCNamespace: unix.CLONE_NEWIPC,
	specs.UTSNamespace: unix.CLONE_NEWUTS, specs.UserNamespace: unix.CLONE_NEWUSER,
	specs.CgroupNamespace: unix.CLONE_NEWCGROUP, specs.TimeNamespace: unix.CLONE_NEWTIME,
}

func (p *plan) namespaces() error {
	seen := make(map[specs.LinuxNamespaceType]bool)
	for _, ns := range p.spec.Linux.Namespaces {
		flag, ok := cloneFlags[ns.Type]
		switch {
		case !ok:
			return badf("linux.namespaces: unknown type %q", ns.Type)
		case seen[ns.Type]:
			return badf("linux.namespaces: %q is listed twice", ns.Type)
		case ns.Path != "" && !path.IsAbs(ns.Path):
			return badf("linux.namespaces: path %q is not absolute", ns.Path)
		}
		seen[ns.Type] = true
		if ns.Path != "" && ns.Type == specs.MountNamespace {
			p.mountNS = ns.Path
		} else if ns.Path != "" {
			p.joins = append(p.joins, ns)
		} else {
			p.flags |= flag
		}
	}
	p.newUser = p.flags&unix.CLONE_NEWUSER != 0
	p.order.Guest = p.flags&unix.CLONE_NEWNS == 0
	if p.order.Guest && (p.newUser || slices.ContainsFunc(p.joins, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace })) {
		return badf("linux.namespaces: a container with a user namespace needs a mount namespace of its own")
	}
	p.order.Loopback = p.flags&unix.CLONE_NEWNET != 0
	if p.flags&unix.CLONE_NEWTIME != 0 {
		p.flags &^= unix.CLONE_NEWTIME
		p.order.NewTime = true
	}
	return p.timeOffsets()
}

func (p *plan) timeOffsets() error {
	offsets := p.spec.Linux.TimeOffsets
	if len(offsets) > 0 && !p.order.NewTime {
		return badf("linux.timeOffsets: needs a new time namespace")
	}
	var text strings.Builder
	for _, clock := range []string{"monotonic", "boottime"} {
		if o, ok := offsets[clock]; ok {
			if o.Nanosecs >= 1e9 {
				return badf("linux.timeOffsets: %s: %d nanoseconds make a second", clock, o.Nanosecs)
			}
			fmt.Fprintf(&text, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
		}
	}
	for clock := range offsets {
		if clock != "monotonic" && clock != "boottime" {
			return badf("linux.timeOffsets: unknown clock %q", clock)
		}
	}
	p.order.TimeOffsets = text.String()
	return nil
}

func (p *plan) joinsType(t specs.LinuxNamespaceType) bool {
	for _, ns := range p.joins {
		if ns.Type == t {
			return true
		}
	}
	return false
}

// own reports whether the container has a namespace of that type for itself.
func (p *plan) own(t specs.LinuxNamespaceType) bool {
	if t == specs.TimeNamespace {
		return p.order.NewTime
	}
	return p.flags&cloneFlags[t] != 0
}

func (p *plan) rootfs() error {
	root := p.cfg.Rootfs
	if p.spec.Root != nil {
		p.order.RootRO = p.spec.Root.Readonly
		if root == "" {
			root = p.spec.Root.Path
			if root != "" && !filepath.IsAbs(root) {
				root = filepath.Join(p.cfg.Bundle, root)
			}
		}
	}
	if root == "" {
		return badf("root.path: missing")
	}
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return badf("root.path: %w", err)
	}
	if real, err = filepath.Abs(real); err != nil {
		return err
	}
	st, err := os.Stat(real)
	if err != nil {
		return badf("root.path: %w", err)
	}
	if !st.IsDir() || real == "/" {
		return badf("root.path: %q is not a directory below the root", root)
	}
	p.order.Rootfs = real

	prop := p.spec.Linux.RootfsPropagation
	if prop == "" {
		return nil
	}
	name := prop
	if propagations[name] == 0 {
		name, p.order.PropRec = strings.TrimPrefix(prop, "r"), true
	}
	if p.order.Propagation = propagations[name]; p.order.Propagation == 0 {
		return badf("linux.rootfsPropagation: unknown value %q", prop)
	}
	p.order.ShareRoot = p.order.Propagation == unix.MS_SHARED
	return nil
}

func (p *plan) cgroup() error {
	r := p.spec.Linux.Resources
	if r != nil {
		if err := cgroup.Check(r); err != nil {
			return badf("%w", err)
		}
	}
	where := p.cfg.CgroupPath
	if where == "" {
		where = p.spec.Linux.CgroupsPath
	}
	if where == "" {
		if r != nil && limitsAnything(r) {
			return badf("linux.resources: limits need a cgroup: set linux.cgroupsPath")
		}
		return nil
	}
	g, err := cgroup.At(where)
	switch {
	case errors.Is(err, cgroup.ErrUnavailable):
		return err
	case err != nil:
		return badf("linux.cgroupsPath: %w", err)
	}
	p.group = g
	return nil
}

func limitsAnything(r *specs.LinuxResources) bool {
	return r.Memory != nil || r.CPU != nil || r.Pids != nil || r.BlockIO != nil ||
		len(r.HugepageLimits)+len(r.Rdma)+len(r.Unified) > 0
}

// identity covers host name and user namespace.
func (p *plan) identity() error {
	s, l := p.spec, p.spec.Linux
	// In a namespace that was joined the names change for all who are in it.
	uts := p.own(specs.UTSNamespace) || p.joinsType(specs.UTSNamespace)
	if s.Hostname != "" && !uts {
		return badf("hostname: needs a uts namespace")
	}
	if s.Domainname != "" && !uts {
		return badf("domainname: needs a uts namespace")
	}
	for field, v := range map[string]string{"hostname": s.Hostname, "domainname": s.Domainname} {
		if len(v) > 64 || strings.ContainsRune(v, 0) {
			return badf("%s: %q is longer than 64 bytes or holds a NUL", field, v)
		}
	}
	p.order.Hostname, p.order.Domainname = s.Hostname, s.Domainname
	if !p.newUser {
		if len(l.UIDMappings)+len(l.GIDMappings) > 0 && !p.joinsType(specs.UserNamespace) {
			return badf("linux.uidMappings: needs a new user namespace")
		}
		return nil
	}
	if len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0 {
		return badf("linux.uidMappings and gidMappings: a new user namespace needs both")
	}
	if err := checkMappings(l.UIDMappings); err != nil {
		return badf("linux.uidMappings: %w", err)
	}
	if err := checkMappings(l.GIDMappings); err != nil {
		return badf("linux.gidMappings: %w", err)
	}
	if !mapped(l.UIDMappings, 0) || !mapped(l.GIDMappings, 0) {
		return badf("linux.uidMappings: user and group 0 of the container must be mapped, to build it")
	}
	return nil
}

func mapped(maps []specs.LinuxIDMapping, id uint32) bool {
	for _, m := range maps {
		if id >= m.ContainerID && uint64(id) < uint64(m.ContainerID)+uint64(m.Size) {
			return true
		}
	}
	return false
}

// unsupported refuses by name what would otherwise be missing in silence.
func (p *plan) unsupported() error {
	l := p.spec.Linux
	switch {
	case l.IntelRdt != nil:
		return badf("linux.intelRdt: not supported")
	case len(l.NetDevices) > 0:
		return badf("linux.netDevices: not supported")
	case l.MountLabel != "" && selinux():
		return badf("linux.mountLabel: SELinux is not supported")
	}
	return nil
}

// selinux reports whether the kernel enforces SELinux's labels: elsewhere they
// mean nothing.
func selinux() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

// sysctls lets through only what belongs to a namespace of the container.
func (p *plan) sysctls() error {
	for key, value := range p.spec.Linux.Sysctl {
		file := strings.ReplaceAll(key, ".", "/")
		if strings.Contains(key, "/") {
			file = key // the other usual spelling, for names that hold dots
		}
		if path.Clean("/"+file) != "/"+file || strings.ContainsRune(key+value, 0) {
			return badf("linux.sysctl: invalid name %q", key)
		}
		need, ok := sysctlNamespace(file)
		if !ok {
			return badf("linux.sysctl: %q belongs to the whole machine, not to a container", key)
		}
		if !p.own(need) && !p.joinsType(need) {
			return badf("linux.sysctl: %q needs a %s namespace", key, need)
		}
		if file == "kernel/hostname" {
			return badf("linux.sysctl: kernel.hostname: use the field hostname")
		}
		p.order.Sysctls = append(p.order.Sysctls, order.Pair{Key: file, Value: value})
	}
	return nil
}

func sysctlNamespace(file string) (specs.LinuxNamespaceType, bool) {
	switch file {
	case "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax",
		"kernel/shmmni", "kernel/shm_rmid_forced":
		return specs.IPCNamespace, true
	case "kernel/domainname", "kernel/hostname":
		return specs.UTSNamespace, true
	}
	switch {
	case strings.HasPrefix(file, "fs/mqueue/"):
		return specs.IPCNamespace, true
	case strings.HasPrefix(file, "net/"):
		return specs.NetworkNamespace, true
	}
	return "", false
}

// paths checks masks and read-only paths.
func (p *plan) paths() error {
	for _, list := range []struct {
		field string
		in    []string
		out   *[]string
	}{
		{"linux.maskedPaths", p.spec.Linux.MaskedPaths, &p.order.Masked},
		{"linux.readonlyPaths", p.spec.Linux.ReadonlyPaths, &p.order.Readonly},
	} {
		for _, s := range list.in {
			if !path.IsAbs(s) || strings.ContainsRune(s, 0) {
				return badf("%s: %q is not an absolute path", list.field, s)
			}
		}
		*list.out = list.in
	}
	return nil
}

func (p *plan) seccomp() error {
	p.filter = p.cfg.Seccomp
	if p.filter == nil && p.spec.Linux.Seccomp != nil {
		f, err := seccomp.Compile(p.spec.Linux.Seccomp)
		if err != nil {
			return badf("%w", err)
		}
		p.filter = f
	}
	setFilter(&p.order.Process, p.filter)
	return nil
}

func setFilter(op *order.Process, f *seccomp.Filter) {
	if f != nil {
		op.Seccomp, op.SeccompFlags = f.Instructions(), f.Flags()
	}
}
