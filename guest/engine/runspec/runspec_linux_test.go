package runspec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestCapabilities(t *testing.T) {
	for what, c := range map[string]struct {
		add, drop []string
		has, not  string
		n         int // -1: not checked
	}{
		"default":       {nil, nil, "CAP_CHOWN", "CAP_SYS_ADMIN", 14},
		"add":           {[]string{"sys_admin"}, nil, "CAP_SYS_ADMIN", "CAP_BPF", 15},
		"drop":          {nil, []string{"CAP_CHOWN"}, "CAP_KILL", "CAP_CHOWN", 13},
		"drop all, add": {[]string{"net_raw"}, []string{"all"}, "CAP_NET_RAW", "CAP_CHOWN", 1},
		"add all, drop": {[]string{"ALL"}, []string{"chown"}, "CAP_KILL", "CAP_CHOWN", -1},
		"both":          {[]string{"bpf"}, []string{"bpf"}, "CAP_CHOWN", "CAP_BPF", 14},
	} {
		got, err := Capabilities(c.add, c.drop, false)
		if err != nil || !slices.Contains(got, c.has) || slices.Contains(got, c.not) || c.n >= 0 && len(got) != c.n {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	if _, err := Capabilities([]string{"CAP_FLY"}, nil, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an unknown capability: %v", err)
	}
}

func rootfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww:x:33:44::/srv:/bin/false\n",
		"etc/group":  "root:x:0:\nweb:x:44:\nmedia:x:55:www,other\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestUser(t *testing.T) {
	dir := rootfs(t)
	for spec, c := range map[string]struct {
		groups   []string
		uid, gid uint32
		more     []uint32
		home     string
	}{
		"":          {nil, 0, 0, []uint32{0}, "/root"},
		"www":       {nil, 33, 44, []uint32{44, 55}, "/srv"},
		"33":        {nil, 33, 44, []uint32{44, 55}, "/srv"},
		"www:media": {nil, 33, 55, []uint32{55}, "/srv"},
		"1000":      {nil, 1000, 0, []uint32{0}, "/"},
		"1000:7":    {[]string{"media", "9"}, 1000, 7, []uint32{7, 55, 9}, "/"},
	} {
		u, home, err := User(dir, spec, c.groups)
		slices.Sort(u.AdditionalGids[1:])
		slices.Sort(c.more[1:])
		if err != nil || u.UID != c.uid || u.GID != c.gid || home != c.home || !slices.Equal(u.AdditionalGids, c.more) {
			t.Errorf("%q: %+v, %q, %v", spec, u, home, err)
		}
	}
	for _, spec := range []string{"nobody", "www:nogroup", "-1", "99999999999"} {
		if _, _, err := User(dir, spec, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", spec, err)
		}
	}
	_, _, err := User(dir, "nobody", nil)
	if err == nil || err.Error() != "unable to find user nobody: no matching entries in passwd file" {
		t.Errorf("docker's words are missing: %v", err)
	}
}

// TestUserStaysInside: an image's passwd may be a link to the machine's.
func TestUserStaysInside(t *testing.T) {
	outside := t.TempDir() + "/passwd"
	if err := os.WriteFile(outside, []byte("evil:x:0:0::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{outside, "../../../../../../.." + outside} {
		dir := t.TempDir()
		os.Mkdir(dir+"/etc", 0o755)
		if err := os.Symlink(target, dir+"/etc/passwd"); err != nil {
			t.Fatal(err)
		}
		if u, _, err := User(dir, "evil", nil); err == nil {
			t.Errorf("%s was read: %+v", target, u)
		}
	}
}

func TestEnv(t *testing.T) {
	cfg := &apicontainer.Config{Hostname: "h", Tty: true, Env: []string{"A=1", "A=2", "HOSTNAME", "EMPTY="}}
	got := strings.Join(Env(cfg, "/root"), " ")
	if want := defaultPath + " TERM=xterm A=2 EMPTY= HOME=/root"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	cfg.Env = []string{"HOME="}
	if got := Env(cfg, "/root"); got[len(got)-1] != "HOME=/root" || len(got) != 4 {
		t.Errorf("an empty HOME: %q", got)
	}
	cfg.Env = []string{"HOME=/mine", "PATH=/p"}
	if got := strings.Join(Env(cfg, "/root"), " "); got != "PATH=/p HOSTNAME=h TERM=xterm HOME=/mine" {
		t.Errorf("got %s", got)
	}
}

// TestNoDevices: a mapping that brings no device is an error.
func TestNoDevices(t *testing.T) {
	for _, name := range []string{t.TempDir(), "/proc/version"} {
		_, err := build(t, func(in *Input) {
			in.HostConfig.Devices = []apicontainer.DeviceMapping{{PathOnHost: name, PathInContainer: name, CgroupPermissions: "rwm"}}
		})
		if err == nil || !strings.Contains(err.Error(), "not a device node") {
			t.Errorf("--device %s: %v", name, err)
		}
	}
}

func build(t *testing.T, change func(*Input)) (*specs.Spec, error) {
	t.Helper()
	in := Input{ID: "id", Config: &apicontainer.Config{Cmd: []string{"x"}, Hostname: "h"}, HostConfig: &apicontainer.HostConfig{ShmSize: 1 << 20},
		Rootfs: rootfs(t), Cgroup: "/berth/id", NetNS: "/ns"}
	change(&in)
	return Build(in)
}

func namespace(s *specs.Spec, kind specs.LinuxNamespaceType) (path string, ok bool) {
	for _, n := range s.Linux.Namespaces {
		if n.Type == kind {
			return n.Path, true
		}
	}
	return "", false
}

func mountAt(s *specs.Spec, dest string) *specs.Mount {
	var found *specs.Mount
	for i := range s.Mounts {
		if s.Mounts[i].Destination == dest {
			if found != nil {
				return nil
			}
			found = &s.Mounts[i]
		}
	}
	return found
}

func TestBuild(t *testing.T) {
	s, err := build(t, func(*Input) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []specs.LinuxNamespaceType{"mount", "network", "uts", "pid", "ipc", "cgroup"} {
		if _, ok := namespace(s, kind); !ok {
			t.Errorf("no %s namespace", kind)
		}
	}
	if path, _ := namespace(s, "network"); path != "/ns" {
		t.Errorf("network namespace %q", path)
	}
	if m := mountAt(s, "/sys"); m == nil || !slices.Contains(m.Options, "ro") {
		t.Errorf("/sys: %+v", m)
	}
	if m := mountAt(s, "/dev/shm"); m == nil || !slices.Contains(m.Options, "size=1048576") {
		t.Errorf("/dev/shm: %+v", m)
	}
	if len(s.Linux.MaskedPaths) == 0 || len(s.Linux.ReadonlyPaths) == 0 || s.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] != "0" {
		t.Error("defaults are missing")
	}
	if rules := s.Linux.Resources.Devices; rules[0].Allow || rules[0].Access != "rwm" {
		t.Errorf("the first device rule is %+v", rules[0])
	}
}

func TestBuildModes(t *testing.T) {
	s, err := build(t, func(in *Input) {
		in.HostConfig.NetworkMode, in.HostConfig.PidMode, in.HostConfig.IpcMode, in.HostConfig.UTSMode = "host", "host", "host", "host"
		in.HostConfig.CgroupnsMode, in.Shm = "host", "/dev/shm"
		in.HostConfig.Privileged = true
		in.NetNS = ""
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []specs.LinuxNamespaceType{"network", "uts", "pid", "ipc", "cgroup"} {
		if _, ok := namespace(s, kind); ok {
			t.Errorf("a %s namespace", kind)
		}
	}
	if s.Hostname != "" {
		t.Error("the machine's hostname would be changed")
	}
	if m := mountAt(s, "/dev/shm"); m == nil || m.Type != "bind" {
		t.Errorf("/dev/shm: %+v", m)
	}
	if len(s.Linux.MaskedPaths) > 0 || !s.Linux.Resources.Devices[0].Allow || len(s.Linux.Devices) == 0 {
		t.Error("a privileged container is held back")
	}
	if _, err := build(t, func(in *Input) { in.Config.Cmd = nil }); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no command: %v", err)
	}
	s, err = build(t, func(in *Input) {
		in.Mounts = []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: "/x"}}
		in.Init = "/sbin/docker-init"
		in.Config.User = "www"
	})
	if err != nil {
		t.Fatal(err)
	}
	if m := mountAt(s, "/dev/shm"); m == nil || m.Source != "/x" {
		t.Errorf("the user's /dev/shm: %+v", m)
	}
	if got := strings.Join(s.Process.Args, " "); got != "/sbin/docker-init -- x" {
		t.Errorf("args %s", got)
	}
	if c := s.Process.Capabilities; len(c.Bounding) == 0 || !slices.Equal(c.Effective, c.Bounding) || !slices.Equal(c.Permitted, c.Bounding) || s.Process.User.UID != 33 {
		t.Errorf("a user's capabilities: %+v", c)
	}
}

func TestDeviceRule(t *testing.T) {
	r, err := deviceRule("c 10:* rw")
	if err != nil || r.Type != "c" || *r.Major != 10 || r.Minor != nil || r.Access != "rw" || !r.Allow {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []string{"", "c", "x 1:2 r", "c 1 r", "c 1:2 x", "c 1:2", "c a:2 r", "c -1:2 r", "cc 1:2 r"} {
		if _, err := deviceRule(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseSecurity(t *testing.T) {
	s, err := ParseSecurity([]string{"no-new-privileges", "seccomp=unconfined", "systempaths=unconfined", "label=disable", "apparmor=unconfined"})
	if err != nil || !s.NoNewPrivileges || !s.Unconfined || !s.ClearPaths {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"x", "no-new-privileges=maybe", "systempaths=x", "writable-cgroups=maybe", "other=1"} {
		if _, err := ParseSecurity([]string{bad}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := Seccomp("{", &specs.Spec{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a broken profile: %v", err)
	}
}

func TestResources(t *testing.T) {
	limit := int64(-1)
	r, err := Resources(&apicontainer.Resources{Memory: 1 << 30, NanoCPUs: 1_500_000_000, PidsLimit: &limit, CpusetCpus: "0-1"})
	if err != nil || *r.Memory.Limit != 1<<30 || *r.Memory.Swap != 2<<30 || *r.CPU.Quota != 150_000 || *r.CPU.Period != 100_000 ||
		*r.Pids.Limit != -1 || r.CPU.Cpus != "0-1" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, _ := Resources(&apicontainer.Resources{}); r.Memory != nil || r.CPU != nil || r.Pids != nil || r.BlockIO != nil {
		t.Errorf("no limits: %+v", r)
	}
}

func TestRlimits(t *testing.T) {
	ulimit := func(name string, soft, hard int64) *apicontainer.Ulimit {
		return &apicontainer.Ulimit{Name: name, Soft: soft, Hard: hard}
	}
	hc := &apicontainer.HostConfig{}
	if got := rlimits(hc); len(got) != 1 || got[0] != defaultFiles {
		t.Errorf("by default: %v", got)
	}
	hc.Ulimits = []*apicontainer.Ulimit{ulimit("core", 0, 0), ulimit("nofile", 77, -1)}
	got := rlimits(hc)
	want := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 1<<64 - 1}, {Type: "RLIMIT_CORE"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
