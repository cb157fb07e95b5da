package oci

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/container/seccomp"
)

func (a *app) update(_ context.Context, args []string) (int, error) {
	r := new(specs.LinuxResources)
	fs := a.flags("update", "ID")
	var file string
	for _, name := range []string{"resources", "r"} {
		fs.StringVar(&file, name, "", `file with the limits as JSON ("-": standard input); no other flag then`)
	}
	updateFlags(fs, r)
	if err := parse(fs, args, 1, 1); err != nil {
		return 1, err
	}
	if file != "" {
		r = new(specs.LinuxResources)
		var err error
		if file == "-" {
			err = decode(a.stdin, "standard input", r)
		} else {
			err = decodeFile(file, r)
		}
		if err != nil {
			return 1, err
		}
	}
	c, err := a.load(fs.Arg(0))
	if err != nil {
		return 1, err
	}
	defer c.Close()
	return 0, c.Update(r)
}

// updateFlags registers runc's flags for single limits.
func updateFlags(fs *flag.FlagSet, r *specs.LinuxResources) {
	memory := func() *specs.LinuxMemory {
		if r.Memory == nil {
			r.Memory = new(specs.LinuxMemory)
		}
		return r.Memory
	}
	cpu := func() *specs.LinuxCPU {
		if r.CPU == nil {
			r.CPU = new(specs.LinuxCPU)
		}
		return r.CPU
	}
	size := func(name, help string, set func(*int64)) {
		fs.Func(name, help, func(s string) error {
			n, err := parseSize(s)
			set(&n)
			return err
		})
	}
	signed := func(name, help string, set func(*int64)) {
		fs.Func(name, help, func(s string) error {
			n, err := strconv.ParseInt(s, 10, 64)
			set(&n)
			return err
		})
	}
	unsigned := func(name, help string, set func(*uint64)) {
		fs.Func(name, help, func(s string) error {
			n, err := strconv.ParseUint(s, 10, 64)
			set(&n)
			return err
		})
	}
	size("memory", "memory limit (bytes, or with k, m, g; -1: none)", func(n *int64) { memory().Limit = n })
	size("memory-swap", "limit of memory and swap together", func(n *int64) { memory().Swap = n })
	size("memory-reservation", "memory that is not reclaimed", func(n *int64) { memory().Reservation = n })
	signed("cpu-quota", "microseconds of CPU time in each period (-1: no limit)", func(n *int64) { cpu().Quota = n })
	unsigned("cpu-period", "length of a period in microseconds", func(n *uint64) { cpu().Period = n })
	unsigned("cpu-burst", "microseconds that may be saved up", func(n *uint64) { cpu().Burst = n })
	unsigned("cpu-share", "CPU shares", func(n *uint64) { cpu().Shares = n })
	signed("cpu-idle", "1: run only when nothing else does", func(n *int64) { cpu().Idle = n })
	fs.Func("cpuset-cpus", "CPUs to run on", func(s string) error { cpu().Cpus = s; return nil })
	fs.Func("cpuset-mems", "memory nodes to use", func(s string) error { cpu().Mems = s; return nil })
	signed("pids-limit", "number of processes (-1: no limit)", func(n *int64) { r.Pids = &specs.LinuxPids{Limit: n} })
	fs.Func("blkio-weight", "share of the disk, 10 to 1000", func(s string) error {
		n, err := strconv.ParseUint(s, 10, 16)
		w := uint16(n)
		r.BlockIO = &specs.LinuxBlockIO{Weight: &w}
		return err
	})
}

func parseSize(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	return units.RAMInBytes(s)
}

func (a *app) features(_ context.Context, args []string) (int, error) {
	if err := parse(a.flags("features", ""), args, 0, 0); err != nil {
		return 1, err
	}
	yes, no := true, false
	return 0, a.printJSON(&features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions:  container.MountOptions(),
		Linux: &features.Linux{
			Namespaces:      []string{"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"},
			Capabilities:    container.Capabilities(),
			Cgroup:          &features.Cgroup{V1: &no, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &yes},
			Seccomp:         seccomp.Features(),
			Apparmor:        &features.Apparmor{Enabled: &no},
			Selinux:         &features.Selinux{Enabled: &no},
			IntelRdt:        &features.IntelRdt{Enabled: &no},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
		},
	})
}

func (a *app) spec(_ context.Context, args []string) (int, error) {
	fs := a.flags("spec", "")
	var bundle string
	for _, name := range []string{"bundle", "b"} {
		fs.StringVar(&bundle, name, ".", "directory to write config.json to")
	}
	rootless := fs.Bool("rootless", false, "not supported")
	if err := parse(fs, args, 0, 0); err != nil {
		return 1, err
	}
	if *rootless {
		return 1, errors.New("--rootless: not supported")
	}
	path := filepath.Join(bundle, "config.json")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return 1, err
	}
	defer f.Close()
	out := *a
	out.stdout = f
	if err := out.printJSON(exampleSpec()); err != nil {
		return 1, fmt.Errorf("%s: %w", path, err)
	}
	return 0, nil
}

// exampleSpec runs a shell in ./rootfs.
func exampleSpec() *specs.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	mount := func(dest, kind, source, options string) specs.Mount {
		return specs.Mount{Destination: dest, Type: kind, Source: source, Options: strings.Split(options, ",")}
	}
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			Terminal: true,
			Args:     []string{"sh"},
			Env:      []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"},
			Cwd:      "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Hostname: "berth",
		Mounts: []specs.Mount{
			mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
			mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
			mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
			mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
			mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
			mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
			mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
		},
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}
