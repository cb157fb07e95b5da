package container

import (
	"errors"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container/cgroup"
)

// TestBadSpec sets every field of a specification wrong in turn: each is one
// error that names the field, and changes nothing.
func TestBadSpec(t *testing.T) {
	root := t.TempDir()
	type edit = func(s *specs.Spec)
	mount := func(m specs.Mount) edit {
		return func(s *specs.Spec) { s.Mounts = []specs.Mount{m} }
	}
	hook := func(h specs.Hook) edit {
		return func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{h}} }
	}
	resources := func(r specs.LinuxResources) edit {
		return func(s *specs.Spec) { s.Linux.Resources = &r }
	}
	scheduler := func(sc specs.Scheduler) edit {
		return func(s *specs.Spec) { s.Process.Scheduler = &sc }
	}
	namespaces := func(ns ...specs.LinuxNamespace) edit {
		return func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, ns...) }
	}
	without := func(kind specs.LinuxNamespaceType, more edit) edit {
		return func(s *specs.Spec) {
			var keep []specs.LinuxNamespace
			for _, ns := range s.Linux.Namespaces {
				if ns.Type != kind {
					keep = append(keep, ns)
				}
			}
			s.Linux.Namespaces = keep
			more(s)
		}
	}
	device := func(d specs.LinuxDevice) edit {
		return func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{d} }
	}
	users := func(uids, gids []specs.LinuxIDMapping) edit {
		return func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings, s.Linux.GIDMappings = uids, gids
		}
	}
	caps := func(c specs.LinuxCapabilities) edit {
		return func(s *specs.Spec) { s.Process.Capabilities = &c }
	}
	ok := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 10}}
	for _, test := range []struct {
		edit edit
		want string // in the error
	}{
		{func(s *specs.Spec) { s.Version = "" }, "ociVersion"},
		{func(s *specs.Spec) { s.Version = "2.0.0" }, "ociVersion"},
		{func(s *specs.Spec) { s.Process = nil }, "process: missing"},
		{func(s *specs.Spec) { s.Linux = nil }, "linux: missing"},
		{func(s *specs.Spec) { s.Root = nil }, "root.path"},
		{func(s *specs.Spec) { s.Root.Path = "/nowhere/at/all" }, "root.path"},
		{func(s *specs.Spec) { s.Root.Path = "/etc/passwd" }, "root.path"},
		{func(s *specs.Spec) { s.Root.Path = "/" }, "root.path"},
		{func(s *specs.Spec) { s.Hostname = strings.Repeat("x", 65) }, "hostname"},
		{func(s *specs.Spec) { s.Domainname = "a\x00b" }, "domainname"},
		{without(specs.UTSNamespace, func(*specs.Spec) {}), "hostname: needs"},
		{without(specs.UTSNamespace, func(s *specs.Spec) { s.Hostname, s.Domainname = "", "x" }), "domainname: needs"},

		{func(s *specs.Spec) { s.Process.Args = nil }, "process.args"},
		{func(s *specs.Spec) { s.Process.Args = []string{"a\x00"} }, "process.args[0]"},
		{func(s *specs.Spec) { s.Process.Env = []string{"novalue"} }, "process.env[0]"},
		{func(s *specs.Spec) { s.Process.Env = []string{"A=\x00"} }, "process.env[0]"},
		{func(s *specs.Spec) { s.Process.Cwd = "" }, "process.cwd"},
		{func(s *specs.Spec) { s.Process.Cwd = "relative" }, "process.cwd"},
		{func(s *specs.Spec) { s.Process.Cwd = "/\x00" }, "process.cwd"},
		{func(s *specs.Spec) { s.Process.Terminal = true }, "process.terminal"},
		{func(s *specs.Spec) { s.Process.ConsoleSize = &specs.Box{Height: 70000} }, "process.consoleSize"},
		{func(s *specs.Spec) { s.Process.User.Umask = ptr(uint32(0o1000)) }, "process.user.umask"},
		{func(s *specs.Spec) { s.Process.SelinuxLabel = "x" }, "process.selinuxLabel"},
		{func(s *specs.Spec) { s.Process.ApparmorProfile = "x" }, "process.apparmorProfile"},
		{func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(1001) }, "process.oomScoreAdj"},
		{func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, "process.rlimits"},
		{func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_CORE"}}
		}, "process.rlimits: RLIMIT_CORE is listed twice"},
		{func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}} }, "process.rlimits: RLIMIT_CORE"},
		{caps(specs.LinuxCapabilities{Bounding: []string{"CAP_X"}}), "process.capabilities.bounding"},
		{caps(specs.LinuxCapabilities{Effective: []string{"CAP_KILL"}}), "process.capabilities.effective"},
		{caps(specs.LinuxCapabilities{Permitted: []string{"kill"}}), "process.capabilities.permitted"},
		{caps(specs.LinuxCapabilities{Inheritable: []string{""}}), "process.capabilities.inheritable"},
		{caps(specs.LinuxCapabilities{Ambient: []string{"CAP_KILL"}}), "process.capabilities.ambient"},
		{scheduler(specs.Scheduler{Policy: "X"}), "process.scheduler.policy"},
		{scheduler(specs.Scheduler{Policy: specs.SchedOther, Nice: 20}), "process.scheduler.nice"},
		{scheduler(specs.Scheduler{Policy: specs.SchedOther, Priority: 1}), "process.scheduler.priority"},
		{scheduler(specs.Scheduler{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{"X"}}), "process.scheduler.flags"},
		{func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "X"} }, "process.ioPriority.class"},
		{func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}
		}, "process.ioPriority.priority"},
		{func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "x"} }, "process.execCPUAffinity.initial"},
		{func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "3-1"} }, "process.execCPUAffinity.final"},

		{mount(specs.Mount{Destination: "relative", Type: "tmpfs"}), "mounts[0]"},
		{mount(specs.Mount{Destination: "/", Type: "tmpfs"}), "mounts[0]"},
		{mount(specs.Mount{Destination: "/x"}), "type: missing"},
		{mount(specs.Mount{Destination: "/x", Type: "a/b"}), "type:"},
		{mount(specs.Mount{Destination: "/x", Type: "bind"}), "source: missing"},
		{mount(specs.Mount{Destination: "/x", Type: "bind", Source: "relative"}), "source"},
		{mount(specs.Mount{Destination: "/x\x00", Type: "tmpfs"}), "NUL"},
		{mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/", Options: []string{"readonly"}}), "options"},
		{mount(specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"a,b"}}), "options"},
		{mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/", Options: []string{"idmap"}}), "idmap"},
		{mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/", UIDMappings: ok}), "uidMappings"},
		{mount(specs.Mount{Destination: "/x", Type: "tmpfs", UIDMappings: ok, GIDMappings: ok}), "uidMappings"},
		{mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/", UIDMappings: []specs.LinuxIDMapping{{}}, GIDMappings: ok}), "size 0"},

		{hook(specs.Hook{Path: "relative"}), "hooks.poststop[0]"},
		{hook(specs.Hook{Path: "/x", Timeout: ptr(0)}), "hooks.poststop[0]: timeout"},
		{hook(specs.Hook{Path: "/x", Args: []string{"\x00"}}), "hooks.poststop[0]"},
		{hook(specs.Hook{Path: "/x", Env: []string{"\x00"}}), "hooks.poststop[0]"},

		{without(specs.MountNamespace, users(ok, ok)), "mount namespace"},
		{namespaces(specs.LinuxNamespace{Type: "sound"}), "linux.namespaces: unknown"},
		{namespaces(specs.LinuxNamespace{Type: specs.PIDNamespace}), "linux.namespaces"},
		{namespaces(specs.LinuxNamespace{Type: specs.UserNamespace, Path: "x"}), "linux.namespaces"},
		{without(specs.MountNamespace, namespaces(specs.LinuxNamespace{Type: specs.MountNamespace, Path: "ns/mnt"})), "linux.namespaces"},
		{func(s *specs.Spec) { s.Linux.UIDMappings = ok }, "linux.uidMappings"},
		{users(nil, nil), "linux.uidMappings"},
		{users(ok, nil), "gidMappings"},
		{users([]specs.LinuxIDMapping{{Size: 0}}, ok), "linux.uidMappings"},
		{users(ok, []specs.LinuxIDMapping{{HostID: 1 << 31, Size: 1<<31 + 1}}), "linux.gidMappings"},
		{users([]specs.LinuxIDMapping{{ContainerID: 5, Size: 1}}, ok), "user and group 0"},
		{func(s *specs.Spec) { users(ok, ok)(s); s.Process.User.UID = 10 }, "process.user.uid"},
		{func(s *specs.Spec) { users(ok, ok)(s); s.Process.User.GID = 10 }, "process.user.gid"},
		{func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}} }, "linux.timeOffsets"},
		{func(s *specs.Spec) {
			namespaces(specs.LinuxNamespace{Type: specs.TimeNamespace})(s)
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"lunch": {}}
		}, "linux.timeOffsets"},
		{func(s *specs.Spec) {
			namespaces(specs.LinuxNamespace{Type: specs.TimeNamespace})(s)
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Nanosecs: 1e9}}
		}, "linux.timeOffsets"},
		{func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"vm.swappiness": "1"} }, "linux.sysctl"},
		{func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net/../../kernel": "1"} }, "linux.sysctl"},
		{func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.hostname": "1"} }, "linux.sysctl"},
		{without(specs.NetworkNamespace, func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"} }), "linux.sysctl"},
		{func(s *specs.Spec) { s.Linux.CgroupsPath = "/a/../../b" }, "linux.cgroupsPath"},
		{resources(specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "x"}}), "linux.resources: cpu.cpus"},
		{resources(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-7))}}), "linux.resources: memory.limit"},
		{resources(specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Type: "x"}}}), "linux.resources: devices[0]"},
		{resources(specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(5))}}), "linux.cgroupsPath"},
		{device(specs.LinuxDevice{Path: "relative", Type: "c"}), "linux.devices[0]: path"},
		{device(specs.LinuxDevice{Path: "/dev/x", Type: "x"}), "linux.devices[0]: type"},
		{device(specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: -1}), "linux.devices[0]: major"},
		{device(specs.LinuxDevice{Path: "/dev/x", Type: "c", FileMode: ptr(os.ModeDir)}), "linux.devices[0]: fileMode"},
		{func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {}} }, "linux.netDevices"},
		{func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "X"} }, "linux.seccomp: defaultAction"},
		{func(s *specs.Spec) { s.Linux.RootfsPropagation = "sideways" }, "linux.rootfsPropagation"},
		{func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"x"} }, "linux.maskedPaths"},
		{func(s *specs.Spec) { s.Linux.ReadonlyPaths = []string{"x"} }, "linux.readonlyPaths"},
		{func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }, "linux.intelRdt"},
		{func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "X"} }, "linux.memoryPolicy.mode"},
		{func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "x"}
		}, "linux.memoryPolicy.nodes"},
		{func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Flags: []specs.MemoryPolicyFlagType{"X"}}
		}, "linux.memoryPolicy.flags"},
		{func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "BSD"} }, "linux.personality.domain"},
		{func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux, Flags: []specs.LinuxPersonalityFlag{"X"}}
		}, "linux.personality.flags"},
	} {
		spec := testSpec(root, "true")
		test.edit(spec)
		err := Validate(Config{ID: "x", StateDir: "/nowhere", Spec: spec})
		if errors.Is(err, cgroup.ErrUnavailable) {
			continue // not a matter of the specification
		}
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("want %q: %v", test.want, err)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("more than one line: %v", err)
		}
	}
	if err := Validate(Config{ID: "x", StateDir: "/nowhere", Spec: testSpec(root, "true")}); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"", ".", "..", "a/b", "-x", "a b", strings.Repeat("x", 1025)} {
		if err := Validate(Config{ID: id, StateDir: "/nowhere", Spec: testSpec(root, "true")}); !errors.Is(err, ErrConfig) {
			t.Errorf("ID %q: %v", id, err)
		}
	}
	if err := Validate(Config{ID: "x"}); !errors.Is(err, ErrConfig) {
		t.Error(err)
	}
}

func TestParseOptions(t *testing.T) {
	for _, bad := range []string{"rshare,d", "a\x00"} {
		if _, err := (&plan{}).planMount(&specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{bad}}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	// The last of two that contradict each other counts.
	om, err := (&plan{}).planMount(&specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"ro", "nosuid", "rw", "mode=755"}})
	if err != nil || om.Attrs != mountOptions["nosuid"].set || om.Clear != mountOptions["ro"].set || len(om.Params) != 1 {
		t.Errorf("%+v %v", om, err)
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"x","pid":1,"spec":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeState(b, "x"); err == nil && (s.ID != "x" || s.PID < 0) {
			t.Errorf("%+v", s)
		}
	})
}

func FuzzStartTime(f *testing.F) {
	f.Add("1 (a) b) S 0 1 1 0 -1 4194560 2 3 4 5 6 7 8 9 20 0 1 0 77 1 1")
	f.Fuzz(func(t *testing.T, s string) { _, _ = parseStartTime(s) })
}

func TestStartTime(t *testing.T) {
	got, err := parseStartTime("1 (a) b) S 0 1 1 0 -1 4194560 2 3 4 5 6 7 8 9 20 0 1 0 77 1 1")
	if got != 77 || err != nil {
		t.Error(got, err)
	}
}
