package runspec

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Input is what a specification is made of.
type Input struct {
	ID         string
	Config     *container.Config // with the image's defaults filled in
	HostConfig *container.HostConfig
	Rootfs     string // mounted
	Cgroup     string // from the hierarchy's root

	// Namespaces by path: of another container, or made before. Empty paths mean
	// what HostConfig says.
	NetNS, PIDNS, IPCNS string
	// Shm is the directory that becomes /dev/shm; empty: a tmpfs of its own.
	Shm string
	// Mounts are the files the engine provides and what the user asked for, in
	// the order to be made. They go before the defaults with the same destination.
	Mounts []specs.Mount
	// Init is the program, in the container, that runs the user's; empty: none.
	Init string
	// CDIDirs are where specifications of vendors' devices are looked for; none: no
	// such device can be asked for.
	CDIDirs []string
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// MaskedPaths and ReadonlyPaths are what an unprivileged container cannot see
// and cannot write to by default: docker's.
var (
	MaskedPaths = []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"}
	ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Build makes the specification. Errors in the input are
// errdefs.ErrInvalidArgument.
func Build(in Input) (*specs.Spec, error) {
	cfg, hc := in.Config, in.HostConfig
	spec := &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: in.Rootfs, Readonly: hc.ReadonlyRootfs},
		Hostname:    cfg.Hostname,
		Domainname:  cfg.Domainname,
		Annotations: hc.Annotations,
		Linux:       &specs.Linux{CgroupsPath: in.Cgroup, Namespaces: namespaces(in)},
	}
	if hc.UTSMode.IsHost() || hc.NetworkMode.IsHost() && cfg.Hostname == "" {
		spec.Hostname, spec.Domainname = "", ""
	}
	args := slices.Concat(cfg.Entrypoint, cfg.Cmd)
	if len(args) == 0 || args[0] == "" && len(args) == 1 {
		return nil, invalid("no command specified")
	}
	if in.Init != "" {
		args = slices.Concat([]string{in.Init, "--"}, args)
	}
	security, err := ParseSecurity(hc.SecurityOpt)
	if err != nil {
		return nil, err
	}
	p, err := Process(in.Rootfs, cfg, hc, cfg.User, security)
	if err != nil {
		return nil, err
	}
	p.Args = args
	spec.Process = p
	spec.Mounts = mounts(in, security)
	spec.Linux.RootfsPropagation = propagation(in.Mounts)
	if err := setResources(spec, hc); err != nil {
		return nil, err
	}
	setPaths(spec, hc, security)
	spec.Linux.Sysctl = sysctls(hc, in.NetNS)
	if err := addRequested(spec, hc.DeviceRequests, in.CDIDirs); err != nil {
		return nil, err
	}
	return spec, nil
}

// Process makes the part of a process: of the container itself, or of an exec in
// it, without its arguments. userSpec is docker's "user[:group]".
func Process(rootfs string, cfg *container.Config, hc *container.HostConfig, userSpec string, security Security) (*specs.Process, error) {
	who, home, err := User(rootfs, userSpec, hc.GroupAdd)
	if err != nil {
		return nil, err
	}
	who.Umask = hc.Umask
	caps, err := Capabilities(hc.CapAdd, hc.CapDrop, hc.Privileged)
	if err != nil {
		return nil, err
	}
	// Another user than root loses the permitted ones when the program is executed;
	// with no_new_privs a program's file gives only what the process had till then.
	p := &specs.Process{
		Terminal:        cfg.Tty,
		User:            who,
		Env:             Env(cfg, home),
		Cwd:             "/",
		NoNewPrivileges: security.NoNewPrivileges,
		Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps},
	}
	if cfg.WorkingDir != "" {
		p.Cwd = path.Clean("/" + cfg.WorkingDir)
	}
	if hc.OomScoreAdj != 0 {
		p.OOMScoreAdj = &hc.OomScoreAdj
	}
	if cfg.Tty && hc.ConsoleSize[0] > 0 {
		p.ConsoleSize = &specs.Box{Height: hc.ConsoleSize[0], Width: hc.ConsoleSize[1]}
	}
	p.Rlimits = rlimits(hc)
	return p, nil
}

// defaultFiles is what docker's containers get from its service: programs that
// walk over all descriptors they might have are slow with more, and those that
// need more raise the soft limit themselves.
var defaultFiles = specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288}

func rlimits(hc *container.HostConfig) []specs.POSIXRlimit {
	limits := []specs.POSIXRlimit{defaultFiles}
	for _, u := range hc.Ulimits {
		l := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)}
		if l.Type == defaultFiles.Type {
			limits[0] = l
		} else {
			limits = append(limits, l)
		}
	}
	return limits
}

// Env returns a process's environment: docker's defaults, and what the config
// says, which wins.
func Env(cfg *container.Config, home string) []string {
	env := []string{defaultPath}
	if cfg.Hostname != "" {
		env = append(env, "HOSTNAME="+cfg.Hostname)
	}
	if cfg.Tty {
		env = append(env, "TERM=xterm")
	}
	env = ReplaceEnv(env, cfg.Env)
	env = slices.DeleteFunc(env, func(v string) bool { return v == "HOME=" }) // nobody lives nowhere
	if !slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "HOME=") }) {
		env = append(env, "HOME="+home)
	}
	return env
}

// ReplaceEnv returns base with the variables of over in place of those with the
// same name. A name without "=" takes the variable away.
func ReplaceEnv(base, over []string) []string {
	out := slices.Clone(base)
	for _, v := range over {
		name, _, set := strings.Cut(v, "=")
		i := slices.IndexFunc(out, func(o string) bool { return strings.HasPrefix(o, name+"=") })
		switch {
		case !set && i >= 0:
			out = slices.Delete(out, i, i+1)
		case !set:
		case i >= 0:
			out[i] = v
		default:
			out = append(out, v)
		}
	}
	return out
}

func namespaces(in Input) []specs.LinuxNamespace {
	hc := in.HostConfig
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if !hc.NetworkMode.IsHost() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: in.NetNS})
	}
	if !hc.UTSMode.IsHost() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.UTSNamespace})
	}
	if !hc.PidMode.IsHost() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: in.PIDNS})
	}
	if !hc.IpcMode.IsHost() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: in.IPCNS})
	}
	if hc.CgroupnsMode != container.CgroupnsModeHost {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns
}

// propagation is what the root needs for its mounts to have theirs: one of them that
// is shared, or a slave, would else be cut off.
func propagation(mounts []specs.Mount) (root string) {
	for _, m := range mounts {
		for _, o := range m.Options {
			switch o {
			case "shared", "rshared":
				return "shared"
			case "slave", "rslave":
				root = "rslave"
			}
		}
	}
	return root
}

func mounts(in Input, security Security) []specs.Mount {
	hc := in.HostConfig
	shm := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(hc.ShmSize, 10)}}
	if in.Shm != "" {
		shm = specs.Mount{Destination: "/dev/shm", Type: "bind", Source: in.Shm, Options: []string{"bind", "rprivate"}}
	}
	access, cgroups := "ro", "ro"
	if hc.Privileged {
		access, cgroups = "rw", "rw"
	}
	if w := security.WritableCgroups; w != nil {
		if cgroups = "ro"; *w {
			cgroups = "rw"
		}
	}
	defaults := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", cgroups}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		shm,
	}
	if hc.IpcMode.IsNone() {
		defaults = defaults[:len(defaults)-1]
	}
	given := func(dest string) bool {
		return slices.ContainsFunc(in.Mounts, func(m specs.Mount) bool { return m.Destination == dest })
	}
	var out []specs.Mount
	for _, d := range defaults {
		// A /dev of the user's brings all that is below.
		if !given(d.Destination) && !(strings.HasPrefix(d.Destination, "/dev/") && given("/dev")) {
			out = append(out, d)
		}
	}
	return append(out, in.Mounts...)
}

func setResources(spec *specs.Spec, hc *container.HostConfig) error {
	r, err := Resources(&hc.Resources)
	if err != nil {
		return err
	}
	spec.Linux.Resources = r
	r.Devices = defaultRules()
	if hc.Privileged {
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		devs, err := devicesUnder("/dev", "/dev")
		if err != nil {
			return fmt.Errorf("list the machine's devices: %w", err)
		}
		spec.Linux.Devices = devs
	}
	for _, m := range hc.Devices {
		devs, rules, err := devices(m)
		if err != nil {
			return err
		}
		spec.Linux.Devices = append(spec.Linux.Devices, devs...)
		r.Devices = append(r.Devices, rules...)
	}
	for _, s := range hc.DeviceCgroupRules {
		rule, err := deviceRule(s)
		if err != nil {
			return err
		}
		r.Devices = append(r.Devices, rule)
	}
	return nil
}

func setPaths(spec *specs.Spec, hc *container.HostConfig, s Security) {
	if hc.Privileged || s.ClearPaths {
		return
	}
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = MaskedPaths, ReadonlyPaths
	if hc.MaskedPaths != nil {
		spec.Linux.MaskedPaths = hc.MaskedPaths
	}
	if hc.ReadonlyPaths != nil {
		spec.Linux.ReadonlyPaths = hc.ReadonlyPaths
	}
	if len(spec.Linux.ReadonlyPaths) > 0 {
		// The switches of the kernel's debugging ask for no capability and work for the
		// whole machine.
		spec.Linux.ReadonlyPaths = append(slices.Clone(spec.Linux.ReadonlyPaths), "/proc/dynamic_debug")
	}
}

// sysctls adds to the user's what docker sets where the network is the
// container's own: everybody may ping and listen on low ports.
func sysctls(hc *container.HostConfig, netns string) map[string]string {
	out := map[string]string{}
	if hc.NetworkMode.IsPrivate() && netns != "" {
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for k, v := range hc.Sysctls {
		out[k] = v
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
