package container

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/seccomp"
)

func ptr[T any](v T) *T { return &v }

// TestInside looks at a container from the inside, one property each.
func TestInside(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	host := t.TempDir()
	for name, text := range map[string]string{"file": "outside", "dir/inner": "within"} {
		path := filepath.Join(host, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bind := func(dest, source string, options ...string) specs.Mount {
		return specs.Mount{Destination: dest, Type: "bind", Source: filepath.Join(host, source), Options: append(options, "bind")}
	}
	for _, test := range []struct {
		name   string
		edit   func(s *specs.Spec)
		script string
		want   string
	}{
		{"init", nil, "echo $$ $(hostname) $(id -u) $(pwd) $HOME", "1 box 0 / /root"},
		{"descriptors", nil, "cd /proc/self/fd; echo *", "0 1 2 3"}, // 3 is the shell's, for the glob
		{"capabilities", nil, "grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb"},
		{"no capabilities", func(s *specs.Spec) { s.Process.Capabilities = nil }, "grep -E 'Cap(Eff|Bnd|Prm)' /proc/self/status",
			"CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000"},
		{"ambient", func(s *specs.Spec) {
			c := s.Process.Capabilities
			c.Inheritable, c.Ambient = []string{"CAP_NET_RAW"}, []string{"CAP_NET_RAW"}
			s.Process.User.UID = 1000
		}, "grep -E 'Cap(Eff|Amb)' /proc/self/status", "CapEff:\t0000000000002000\nCapAmb:\t0000000000002000"},
		{"user", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 6}, Umask: ptr(uint32(0o027))}
		}, "id; echo $HOME; umask; grep CapEff /proc/self/status",
			"uid=1000(user) gid=1001 groups=5,6\n/home/user\n0027\nCapEff:\t0000000000000000"},
		{"no_new_privs", func(s *specs.Spec) { s.Process.NoNewPrivileges = true }, "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"},
		{"rlimits", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 88}, {Type: "RLIMIT_CORE"}}
		}, "ulimit -n; ulimit -Hn; ulimit -c", "77\n88\n0"},
		{"oom score", func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(321) }, "cat /proc/self/oom_score_adj", "321"},
		{"working directory is made", func(s *specs.Spec) { s.Process.Cwd = "/made/here" }, "pwd", "/made/here"},
		{"sysctl", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.msgmax": "1234"}
		}, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax", "1\n1234"},
		{"domain name", func(s *specs.Spec) { s.Domainname = "example" }, "cat /proc/sys/kernel/domainname", "example"},
		{"read-only root", func(s *specs.Spec) { s.Root.Readonly = true }, "touch /x 2>&1; touch /dev/shm/x && echo ok", "touch: /x: Read-only file system\nok"},
		{"read-only paths", nil, "(echo 1 >/proc/sys/vm/swappiness) 2>&1 || true", "/bin/sh: can't create /proc/sys/vm/swappiness: Read-only file system"},
		{"masked paths", func(s *specs.Spec) {
			s.Linux.MaskedPaths = []string{"/proc/version", "/sys/kernel", "/proc/fs", "/nowhere"}
		},
			"wc -c < /proc/version; ls /sys/kernel /proc/fs | wc -l", "0\n3"}, // ls prints two headings and an empty line
		{"files over those in proc", func(s *specs.Spec) {
			for _, name := range []string{"/proc/loadavg", "/proc/sys/kernel/ns_last_pid"} {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: name, Type: "bind", Source: "/proc/version", Options: []string{"bind", "ro"}})
			}
		}, "for f in loadavg sys/kernel/ns_last_pid; do cut -d' ' -f1 /proc/$f; done", "Linux\nLinux"},
		{"masked paths cannot be changed", func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"/proc/version"} },
			"chmod 0 /proc/version 2>&1; chown 7 /proc/version 2>&1; stat -c '%a %u' /proc/version; echo x > /proc/version && echo ok",
			"chmod: /proc/version: Read-only file system\nchown: /proc/version: Read-only file system\n666 0\nok"},
		{"loopback", nil, "ip addr show lo | grep -c 'inet 127.0.0.1'", "1"},
		{"bind a directory", func(s *specs.Spec) { s.Mounts = append(s.Mounts, bind("/mnt/new/place", "dir")) }, "cat /mnt/new/place/inner; echo; touch /mnt/new/place/x && echo ok", "within\nok"},
		{"bind a file read-only", func(s *specs.Spec) { s.Mounts = append(s.Mounts, bind("/etc/new.conf", "file", "ro")) },
			"cat /etc/new.conf; (echo x > /etc/new.conf) 2>&1 || true", "outside/bin/sh: can't create /etc/new.conf: Read-only file system"},
		{"bind with attributes", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, bind("/mnt", "dir", "nosuid", "nodev", "noexec", "noatime", "rprivate"))
		}, "grep ' /mnt ' /proc/self/mountinfo | cut -d' ' -f6-7", "rw,nosuid,nodev,noexec,noatime -"},
		{"read-only tmpfs", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/t", Type: "tmpfs", Options: []string{"ro", "size=64k"}}, bind("/t/f", "file"))
		}, "cat /t/f; touch /t/x 2>&1 || true", "outsidetouch: /t/x: Read-only file system"},
		{"tmpfs begins with the image's files", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc", Type: "tmpfs", Options: []string{"tmpcopyup"}})
		}, "grep -c root /etc/passwd; stat -c %a /etc; touch /etc/x && echo ok", "1\n755\nok"},
		{"device", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sub/mine", Type: "c", Major: 1, Minor: 3, FileMode: ptr(os.FileMode(0o640)), UID: ptr(uint32(7)), GID: ptr(uint32(8))}}
		}, "stat -c '%F %a %u %g %t %T' /dev/sub/mine", "character special file 640 7 8 1 3"},
		{"links", nil, "for f in fd stdin ptmx; do readlink /dev/$f; done; echo x > /dev/null", "/proc/self/fd\n/proc/self/fd/0\npts/ptmx"},
		{"session", nil, "grep -E 'NS(pgid|sid)' /proc/self/status", "NSpgid:\t1\nNSsid:\t1"},
		{"personality", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} }, "cat /proc/self/personality", "00000008"},
		{"time", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000}}
		}, "test $(cut -d. -f1 /proc/uptime) -gt 1000000 && echo later", "later"},
		{"scheduler", func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
		}, "cut -d' ' -f19,41 /proc/self/stat", "5 3"},
		{"shared propagation", func(s *specs.Spec) { s.Linux.RootfsPropagation = "shared" }, "grep -c 'shared:' /proc/self/mountinfo | grep -v '^0$' >/dev/null && echo shared", "shared"},
		{"slave propagation", func(s *specs.Spec) { s.Linux.RootfsPropagation = "rslave" }, "grep -c 'shared:' /proc/self/mountinfo || true", "0"},
	} {
		for _, warm := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/warm=%v", test.name, warm), func(t *testing.T) {
				spec := testSpec(root)
				if test.edit != nil {
					test.edit(spec)
				}
				spec.Process.Args = []string{"/bin/sh", "-c", test.script}
				cfg := testConfig(t, spec)
				if warm {
					cfg.Pool = filledPool(t, cfg)
				}
				out, ws := run(t, cfg)
				if got := strings.TrimSpace(out); got != test.want || ws != 0 {
					t.Errorf("status %#x, got\n%s\nwant\n%s", ws, got, test.want)
				}
			})
		}
	}
}

// TestHostileImage builds containers from root file systems that want out.
func TestHostileImage(t *testing.T) {
	needRoot(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	link := func(target, name string) func(string) {
		return func(root string) {
			if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name    string
		prepare func(root string)
		edit    func(s *specs.Spec)
		fails   bool
	}{
		{"mount target is an absolute link outside", link(outside, "mnt"), func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt/x/y", Type: "tmpfs"})
		}, false},
		{"mount target climbs", link("../../../../../../.."+outside, "mnt"), func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt/z", Type: "tmpfs"})
		}, false},
		{"proc is a link", link("/tmp", "proc"), nil, true},
		{"mount over proc", nil, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc", Type: "tmpfs"})
		}, true},
		{"mount inside proc", nil, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/sys/kernel", Type: "tmpfs"})
		}, true},
		{"mount inside proc, by a link", link("/proc", "mnt"), func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt/sys", Type: "tmpfs"})
		}, true},
		{"mount inside proc, load", nil, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/loadavg", Type: "bind", Source: "/proc/version", Options: []string{"bind"}})
		}, false},
		{"sys is a link", link("/tmp", "sys"), nil, true},
		{"dev is a link", link(outside, "dev"), nil, false},
		{"working directory is a link outside", link(outside, "work"), func(s *specs.Spec) { s.Process.Cwd = "/work/deep" }, false},
		{"link loop", link("loop", "loop"), func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/loop/x", Type: "tmpfs"})
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := rootfs(t)
			if test.prepare != nil {
				test.prepare(root)
			}
			spec := testSpec(root, "/bin/true")
			if test.edit != nil {
				test.edit(spec)
			}
			cfg := testConfig(t, spec)
			b, err := create(t, cfg)
			if test.fails != (err != nil) {
				t.Fatalf("create: %v", err)
			}
			if err == nil {
				if err := b.Start(testContext(t)); err != nil {
					t.Fatal(err)
				}
			}
			if left, _ := os.ReadDir(outside); len(left) > 0 {
				t.Errorf("%s has appeared outside", left[0].Name())
			}
			if err != nil {
				nothingLeft(t, cfg)
			}
		})
	}
}

// TestDescriptorDirectory takes a working directory from among the first process's
// own descriptors (CVE-2024-21626): either none is there, or it lies inside.
func TestDescriptorDirectory(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	if err := os.WriteFile(filepath.Join(root, "inside"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	script := "/bin/ls ../../../../../../../inside"
	for fd := range 40 {
		for _, warm := range []bool{false, true} {
			spec := testSpec(root, "/bin/sh", "-c", script)
			spec.Process.Cwd = "/proc/self/fd/" + strconv.Itoa(fd)
			cfg := testConfig(t, spec)
			cfg.ID = fmt.Sprintf("c%d-%v", fd, warm)
			cfg.CgroupPath += cfg.ID
			if warm && fd > 30 {
				continue
			}
			if warm {
				cfg.Pool = filledPool(t, cfg)
			}
			b, err := create(t, cfg)
			if err != nil {
				continue
			}
			if err := b.Start(testContext(t)); err != nil {
				t.Fatal(err)
			}
			if ws, err := b.Wait(testContext(t)); err != nil || ws != 0 {
				<-b.reader
				t.Errorf("descriptor %d leads outside: %v %s", fd, err, b.out)
			}
		}
	}
}

// nothingLeft checks that a failed creation left no trace.
func nothingLeft(t *testing.T, cfg Config) {
	t.Helper()
	if ids, err := List(cfg.StateDir); err != nil || len(ids) > 0 {
		t.Errorf("state is left: %v %v", ids, err)
	}
	if cfg.CgroupPath != "" {
		matches, _ := filepath.Glob("/sys/fs/cgroup*" + cfg.CgroupPath)
		more, _ := filepath.Glob("/sys/fs/cgroup/unified" + cfg.CgroupPath)
		if len(matches)+len(more) > 0 {
			t.Errorf("cgroup is left: %v %v", matches, more)
		}
	}
	b, err := os.ReadFile("/proc/self/task/" + strconv.Itoa(os.Getpid()) + "/children")
	if err == nil && len(bytes.TrimSpace(b)) > 0 {
		t.Errorf("processes are left: %s", b)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil && strings.Contains(string(mounts), cfg.Spec.Root.Path) {
		t.Errorf("mounts are left below %s", cfg.Spec.Root.Path)
	}
}

func TestProgramErrors(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	if err := os.WriteFile(filepath.Join(root, "plain"), []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "garbage"), []byte("\x7fELFgarbage"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		arg  string
		want error
		late bool // seen by exec only
	}{
		{"missing", fs.ErrNotExist, false},
		{"/bin/missing", fs.ErrNotExist, false},
		{"", fs.ErrNotExist, false},
		{"/plain", fs.ErrPermission, false},
		{"/bin", fs.ErrPermission, false},
		{"/garbage", unix.ENOEXEC, true},
	} {
		t.Run("arg="+test.arg, func(t *testing.T) {
			cfg := testConfig(t, testSpec(root, test.arg))
			b, err := create(t, cfg)
			if test.late {
				if err != nil {
					t.Fatal(err)
				}
				err = b.Start(testContext(t))
			} else if err != nil {
				nothingLeft(t, cfg)
			}
			if !errors.Is(err, ErrProgram) || !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v in ErrProgram", err, test.want)
			}
		})
	}
}

// TestFileCapabilities: with no_new_privs a program's file gives a user what the
// container may have, and one that must have more is not executed.
func TestFileCapabilities(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	data, err := os.ReadFile(filepath.Join(root, "bin/busybox"))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(root, "bin/capable/cat")
	if err := os.Mkdir(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "secret"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The kernel's struct vfs_cap_data, revision 2: CAP_DAC_OVERRIDE permitted, inheritable and
	// effective.
	attr := make([]byte, 20)
	binary.LittleEndian.PutUint32(attr, 0x02000001)
	binary.LittleEndian.PutUint32(attr[4:], 1<<unix.CAP_DAC_OVERRIDE)
	binary.LittleEndian.PutUint32(attr[8:], 1<<unix.CAP_DAC_OVERRIDE)
	if err := unix.Setxattr(program, "security.capability", attr, 0); err != nil {
		t.Fatal(err)
	}
	for _, nnp := range []bool{false, true} {
		spec := testSpec(root, "/bin/capable/cat", "/secret")
		spec.Process.NoNewPrivileges, spec.Process.User.UID = nnp, 1000
		cfg := testConfig(t, spec)
		cfg.ID, cfg.CgroupPath = "with", cfg.CgroupPath+"-with"
		if out, status := run(t, cfg); out != "hello" || status != 0 {
			t.Errorf("no_new_privs=%v: %q, %v", nnp, out, status)
		}
		fewer := slices.DeleteFunc(slices.Clone(dockerCaps), func(c string) bool { return c == "CAP_DAC_OVERRIDE" })
		spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: fewer, Effective: fewer, Permitted: fewer}
		b, err := create(t, testConfig(t, spec))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Start(testContext(t)); !errors.Is(err, ErrProgram) || !errors.Is(err, unix.EPERM) {
			t.Errorf("no_new_privs=%v, without the capability: %v", nnp, err)
		}
		if err := b.Delete(testContext(t)); err != nil {
			t.Error(err)
		}
	}
}

func execIn(t *testing.T, c *Container, script string, edit func(*ExecConfig)) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cfg := ExecConfig{
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Stdout:  w, Stderr: w, ExecPath: execPath(),
	}
	if edit != nil {
		edit(&cfg)
	}
	p, err := c.Exec(testContext(t), cfg)
	w.Close()
	if err != nil {
		return "", err
	}
	defer p.Close()
	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	ws, err := p.Wait(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if ws != 0 {
		return out.String(), errors.New("status " + strconv.Itoa(int(ws)))
	}
	return strings.TrimSpace(out.String()), nil
}

func TestExec(t *testing.T) {
	needRoot(t)
	b := start(t, testConfig(t, testSpec(rootfs(t), "sleep", "1000")))
	same := "for n in cgroup ipc mnt net pid uts user time; do readlink /proc/1/ns/$n; done"
	own, err := execIn(t, b.Container, strings.ReplaceAll(same, "/proc/1/", "/proc/self/"), nil)
	if err != nil {
		t.Fatal(own, err)
	}
	init, err := execIn(t, b.Container, same, nil)
	if err != nil || init != own {
		t.Errorf("namespaces differ: %v\n%s\n%s", err, init, own)
	}
	if strings.Contains(own, nsOf(t, "pid")) {
		t.Error("the process is in the machine's PID namespace")
	}
	for _, test := range []struct{ script, want string }{
		{"hostname; id -u; pwd", "box\n0\n/"},
		{"grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb"},
		{"cd /proc/self/fd; echo *", "0 1 2 3"},
		{"cat /proc/1/cgroup >/tmp/a; cat /proc/self/cgroup >/tmp/b; diff /tmp/a /tmp/b && echo same", "same"},
	} {
		got, err := execIn(t, b.Container, test.script, nil)
		if err != nil || got != test.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", test.script, err, got, test.want)
		}
	}
	_, err = execIn(t, b.Container, "", func(c *ExecConfig) { c.Process.Args = []string{"missing"} })
	if !errors.Is(err, ErrProgram) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
	_, err = execIn(t, b.Container, "", func(c *ExecConfig) { c.Process.Cwd = "/nowhere" })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
	if err := b.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := execIn(t, b.Container, "true", nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("exec in a stopped container: %v", err)
	}
}

func nsOf(t *testing.T, name string) string {
	t.Helper()
	s, err := os.Readlink("/proc/self/ns/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func start(t testing.TB, cfg Config) *box {
	t.Helper()
	b, err := create(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return b
}

// userSpec gives the container a user namespace of its own.
func userSpec(root string, args ...string) *specs.Spec {
	s := testSpec(root, args...)
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	return s
}

func TestUserNamespace(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	giveAway(t, root)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := userSpec(root, "sh", "-c", "cat /proc/self/uid_map; grep CapEff /proc/self/status; stat -c %u /bin/busybox /proc/1; echo > /dev/null && echo dev; exec sleep 1000")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/mnt", Type: "bind", Source: host, Options: []string{"bind", "ro"}})
	cfg := testConfig(t, spec)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Stdout, cfg.Stderr = w, w
	b := start(t, cfg)
	w.Close()
	want := "         0     100000      65536\nCapEff:\t00000000a80425fb\n0\n0\ndev\n"
	if got := readUntil(t, r, want); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	got, err := execIn(t, b.Container, "id -u; readlink /proc/self/ns/user; cat /mnt/secret 2>&1; hostname", nil)
	if err != nil {
		t.Fatal(got, err)
	}
	lines := strings.Split(got, "\n")
	if len(lines) != 4 || lines[0] != "0" || lines[1] == nsOf(t, "user") || !strings.Contains(lines[2], "denied") || lines[3] != "box" {
		t.Errorf("exec: %q", lines)
	}
}

// giveAway gives a root file system to the user namespaces of the tests.
func giveAway(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, 100000, 100000)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMappedMount(t *testing.T) {
	needRoot(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if unix.Statfs(host, &fs) == nil && fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		t.Skip("overlayfs cannot be mapped")
	}
	spec := testSpec(rootfs(t))
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 5000, Size: 1000}}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/mnt", Type: "bind", Source: host,
		Options: []string{"bind"}, UIDMappings: maps, GIDMappings: maps})
	if got := sh(t, spec, "stat -c '%u %g' /mnt/file"); got != "5000 5000" {
		t.Errorf("owner %s, want 5000 5000", got)
	}
}

// TestJoin shares namespaces by path.
func TestJoin(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	giveAway(t, root)
	first := start(t, testConfig(t, testSpec(root, "sleep", "1000")))
	for _, user := range []bool{false, true} {
		spec := testSpec(root)
		if user {
			spec = userSpec(root)
		}
		spec.Hostname = ""
		for i := range spec.Linux.Namespaces {
			ns := &spec.Linux.Namespaces[i]
			name := map[specs.LinuxNamespaceType]string{"network": "net", "pid": "pid", "ipc": "ipc", "uts": "uts"}[ns.Type]
			if name != "" && !(user && name == "pid") { // proc needs a PID namespace of the user namespace
				ns.Path = "/proc/" + strconv.Itoa(first.PID()) + "/ns/" + name
			}
		}
		if user {
			spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Type == "mqueue" })
		}
		cfg := testConfig(t, spec)
		cfg.CgroupPath += "-second" + strconv.FormatBool(user)
		spec.Process.Args = []string{"sh", "-c", "hostname; for n in net ipc uts pid; do readlink /proc/self/ns/$n; done"}
		out, ws := run(t, cfg)
		if ws != 0 {
			t.Fatal(out)
		}
		got := strings.Fields(out)
		if got[0] != "box" {
			t.Errorf("hostname %s", got[0])
		}
		for i, n := range []string{"net", "ipc", "uts", "pid"} {
			theirs, err := os.Readlink("/proc/" + strconv.Itoa(first.PID()) + "/ns/" + n)
			if err != nil {
				t.Fatal(err)
			}
			if (got[1+i] == theirs) == (user && n == "pid") {
				t.Errorf("user=%v: %s namespace %s, the first container's is %s", user, n, got[1+i], theirs)
			}
		}
	}
}

func TestTerminal(t *testing.T) {
	needRoot(t)
	for _, warm := range []bool{false, true} {
		t.Run(fmt.Sprintf("warm-%v", warm), func(t *testing.T) { testTerminal(t, warm) })
	}
}

func testTerminal(t *testing.T, warm bool) {
	spec := testSpec(rootfs(t), "sh", "-c", "tty; stty size; test -c /dev/console && echo console; exec sleep 1000")
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &specs.Box{Height: 24, Width: 81}
	cfg := testConfig(t, spec)
	if warm {
		cfg.Pool = filledPool(t, cfg)
	}
	var master *os.File
	cfg.Console = func(f *os.File) error { master = f; return nil }
	b := start(t, cfg)
	expect(t, master, "/dev/pts/0\r\n24 81\r\nconsole\r\n")
	var second *os.File
	p, err := b.Exec(testContext(t), ExecConfig{
		Process:  &specs.Process{Terminal: true, Args: []string{"sh", "-c", "tty; exec sleep 1000"}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Console:  func(f *os.File) error { second = f; return nil },
		ExecPath: execPath(),
	})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, second, "/dev/pts/1\r\n")
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if _, err := p.Wait(testContext(t)); err != nil {
		t.Error(err)
	}
}

// filledPool makes a pool with a process for cfg.
func filledPool(t testing.TB, cfg Config) *Pool {
	t.Helper()
	if cfg.CgroupPath == "" {
		t.Skip("needs a cgroup v2")
	}
	p, err := NewPool(PoolConfig{Parent: filepath.Dir(cfg.CgroupPath), ExecPath: cfg.ExecPath, Delay: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	p.fill()
	if p.ready == nil {
		t.Fatal("the pool did not begin a process")
	}
	return p
}

func TestPool(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	cfg := testConfig(t, testSpec(root, "sh", "-c", "cat /proc/self/mountinfo; hostname"))
	p := filledPool(t, cfg)
	cfg.Pool = p
	pid := p.ready.pid
	b := start(t, cfg)
	if b.PID() != pid || p.ready != nil {
		t.Errorf("process %d was not used, but %d", pid, b.PID())
	}
	if _, err := b.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	<-b.reader
	if out := b.out.String(); !strings.HasSuffix(out, "box\n") || strings.Contains(out, "/rootfs") {
		t.Errorf("%s", out)
	}

	// A process that was killed is replaced by one that is cloned for the purpose.
	p.fill()
	if err := unix.Kill(p.ready.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if exited(p.ready.pidfd) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cfg.ID = "c2"
	out, ws := run(t, cfg)
	if ws != 0 || !strings.HasSuffix(out, "box\n") {
		t.Errorf("%#x %s", ws, out)
	}

	// What does not fit leaves it alone.
	p.fill()
	spec := testSpec(root, "true")
	spec.Linux.Namespaces = spec.Linux.Namespaces[:4]
	cfg.ID, cfg.Spec = "c3", spec
	run(t, cfg)
	if p.ready == nil {
		t.Error("the process was used for a container it does not fit")
	}

	// A failed creation ends the process it used and leaves nothing.
	cfg.ID, cfg.Spec = "c4", testSpec(root, "missing")
	cfg.StateDir += "-failed"
	cfg.CgroupPath += "-failed"
	used := p.ready.group
	if _, err := create(t, cfg); !errors.Is(err, ErrProgram) {
		t.Errorf("error %v", err)
	}
	if used.Exists() {
		t.Error("its cgroup is left")
	}
	nothingLeft(t, cfg)

	// Refill works by itself, and Close ends what it has begun.
	q, err := NewPool(PoolConfig{Parent: filepath.Dir(cfg.CgroupPath), ExecPath: cfg.ExecPath, Delay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	q.Refill()
	q.Refill()
	q.filler.Wait()
	last := q.ready
	if last == nil {
		t.Fatal("nothing was begun")
	}
	last2 := last.pidfd
	q.Close()
	q.Refill()
	if !exited(last2) && last.group.Exists() {
		t.Error("the process or its cgroup is left")
	}
	var none *Pool
	none.Refill()
	none.Close()
}

func expect(t *testing.T, f *os.File, want string) {
	t.Helper()
	if f == nil {
		t.Fatal("there is no terminal")
	}
	if got := readUntil(t, f, want); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// readUntil reads f until the end of what came is want, or nothing comes any more.
func readUntil(t *testing.T, f *os.File, want string) string {
	t.Helper()
	t.Cleanup(func() { f.Close() })
	var got []byte
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 256)
		for !strings.HasSuffix(string(got), want) {
			n, err := f.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				return
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("nothing more after %q", got)
	}
	return string(got)
}

func TestDetached(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t, testSpec(rootfs(t), "sh", "-c", "echo started; exec sleep 1000"))
	cfg.Detached = true
	b, err := create(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Load(cfg.StateDir, cfg.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for _, want := range []Status{Created, Running} {
		for _, c := range []*Container{b.Container, again} {
			if s, err := c.Status(); err != nil || s != want {
				t.Errorf("status %v %v, want %v", s, err, want)
			}
			if at, ok := c.Executed(); ok != (want == Running) || ok && at.Sub(c.Created()).Abs() > time.Minute {
				t.Errorf("%v: executed: %v at %v, created at %v", want, ok, at, c.Created())
			}
		}
		if want == Created {
			if err := again.Start(testContext(t)); err != nil {
				t.Fatal(err)
			}
			if err := b.Start(testContext(t)); !errors.Is(err, ErrState) {
				t.Errorf("second start: %v", err)
			}
		}
	}
	if _, err := Create(testContext(t), cfg); !errors.Is(err, ErrExists) {
		t.Errorf("second create: %v", err)
	}
	if err := again.Delete(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(testContext(t)); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if _, err := Load(cfg.StateDir, cfg.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("load after delete: %v", err)
	}
	nothingLeft(t, cfg)
}

// TestDetachedProgramError reports a failed exec to whoever starts.
func TestDetachedProgramError(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	if err := os.WriteFile(filepath.Join(root, "garbage"), []byte("\x7fELFgarbage"), 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, testSpec(root, "/garbage"))
	cfg.Detached = true
	b, err := create(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Load(cfg.StateDir, cfg.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Start(testContext(t)); !errors.Is(err, unix.ENOEXEC) {
		t.Errorf("start: %v", err)
	}
	if _, err := b.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if s, err := b.Status(); s != Stopped || err != nil {
		t.Errorf("status %v %v", s, err)
	}
	if _, ok := b.Executed(); ok {
		t.Error("a program that cannot be executed was")
	}
}

// TestExecutedTells: whether a detached container's program was executed can be
// told after its end, also under the limits it has and beside files it is given.
func TestExecutedTells(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	for _, executed := range []bool{false, true} {
		spec := testSpec(root, "sh", "-c", "exit 1")
		spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_FSIZE"}}
		spec.Process.User = specs.User{UID: 1000, GID: 1000}
		cfg := testConfig(t, spec)
		cfg.Detached = true
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		cfg.ExtraFiles = slices.Repeat([]*os.File{null}, 20)
		b, err := create(t, cfg)
		if err != nil {
			t.Fatal(err)
		}
		start, err := b.takeStart()
		if err != nil {
			t.Fatal(err)
		}
		if executed {
			err = awaitExec(start, b.PIDFD())
		}
		start.close() // as if the engine had crashed
		if err != nil {
			t.Fatal(err)
		}
		if ws, err := b.Wait(testContext(t)); err != nil || ws.ExitStatus() != 1 {
			t.Errorf("%v %v", ws, err)
		}
		if _, ok := b.Executed(); ok != executed {
			t.Errorf("executed: %v, want %v", ok, executed)
		}
	}
}

// TestCreatorDies checks that a container which nobody can start any more ends.
func TestCreatorDies(t *testing.T) {
	needRoot(t)
	b, err := create(t, testConfig(t, testSpec(rootfs(t), "sleep", "1000")))
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.start.close()
	b.mu.Unlock()
	ws, err := b.Wait(testContext(t))
	if err != nil || ws.ExitStatus() != 1 {
		t.Errorf("%v %v", ws, err)
	}
}

func TestStarted(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t, testSpec(rootfs(t), "true"))
	refusal := errors.New("no")
	var seen int
	cfg.Started = func(pid int, pidfd *os.File) error {
		seen = pid
		if exited(pidfd) {
			t.Error("the process has ended")
		}
		return refusal
	}
	if _, err := create(t, cfg); !errors.Is(err, refusal) || seen == 0 {
		t.Errorf("error %v, process %d", err, seen)
	}
	if err := unix.Kill(seen, 0); err != unix.ESRCH {
		t.Errorf("process %d is left: %v", seen, err)
	}
	nothingLeft(t, cfg)
}

// TestKilled kills the first process at different moments of its life.
func TestKilled(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	for _, delay := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 6 * time.Millisecond, 10 * time.Millisecond} {
		cfg := testConfig(t, testSpec(root, "true"))
		cfg.Started = func(pid int, _ *os.File) error {
			time.AfterFunc(delay, func() { _ = unix.Kill(pid, unix.SIGKILL) })
			if delay == 0 {
				time.Sleep(time.Millisecond)
			}
			return nil
		}
		c, err := Create(testContext(t), cfg)
		if err == nil {
			time.Sleep(20 * time.Millisecond)
			err = c.Start(testContext(t))
			if !errors.Is(err, ErrState) && err == nil {
				t.Errorf("a killed process was started")
			}
			if err := c.Delete(testContext(t)); err != nil {
				t.Error(err)
			}
			c.Close()
		} else if !strings.Contains(err.Error(), "killed by signal 9") {
			t.Errorf("after %v: unclear error: %v", delay, err)
		}
		nothingLeft(t, cfg)
	}
}

func TestContextEnds(t *testing.T) {
	needRoot(t)
	cfg := testConfig(t, testSpec(rootfs(t), "true"))
	ctx, cancel := context.WithCancel(context.Background())
	cfg.Started = func(pid int, _ *os.File) error {
		cancel()
		return unix.Kill(pid, unix.SIGSTOP)
	}
	_, err := Create(ctx, cfg)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	nothingLeft(t, cfg)
}

func TestSeccomp(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	filter, err := seccomp.Default(dockerCaps)
	if err != nil {
		t.Fatal(err)
	}
	for _, nnp := range []bool{false, true} {
		for _, uid := range []uint32{0, 1000} {
			spec := testSpec(root, "sh", "-c", "grep -E 'Seccomp:|CapEff' /proc/self/status; mount -t tmpfs x /tmp 2>&1; ls / > /dev/null && echo ok; exec sleep 1000")
			spec.Process.NoNewPrivileges, spec.Process.User.UID = nnp, uid
			cfg := testConfig(t, spec)
			cfg.Seccomp = filter
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cfg.Stdout, cfg.Stderr = w, w
			b := start(t, cfg)
			w.Close()
			out := readUntil(t, r, "ok\n")
			again, err := Load(cfg.StateDir, cfg.ID)
			if err != nil {
				t.Fatal(err)
			}
			got, err := execIn(t, again, "grep Seccomp: /proc/self/status", nil)
			if err != nil || got != "Seccomp:\t2" {
				t.Errorf("exec: %q %v", got, err)
			}
			again.Close()
			if err := b.Delete(testContext(t)); err != nil {
				t.Fatal(err)
			}
			caps := "CapEff:\t00000000a80425fb\n"
			if uid != 0 {
				caps = "CapEff:\t0000000000000000\n"
			}
			if !strings.HasPrefix(out, caps+"Seccomp:\t2\n") || !strings.HasSuffix(out, "ok\n") || !strings.Contains(out, "mount:") {
				t.Errorf("nnp=%v uid=%d: %q", nnp, uid, out)
			}
		}
	}
}

func TestHooks(t *testing.T) {
	needRoot(t)
	root := rootfs(t)
	log := filepath.Join(t.TempDir(), "log")
	busybox, err := filepath.EvalSymlinks("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	hook := func(name, path string) []specs.Hook {
		return []specs.Hook{{Path: path, Args: []string{"sh", "-c", "(echo -n " + name + "; /bin/busybox grep -o '\"status\":\"[a-z]*\"'; echo \"$X\") >> " + log}, Env: []string{"X=" + name, "PATH=/bin"}, Timeout: ptr(10)}}
	}
	spec := testSpec(root, "true")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: filepath.Dir(log), Type: "bind", Source: filepath.Dir(log), Options: []string{"bind"}})
	spec.Hooks = &specs.Hooks{
		//lint:ignore SA1019 bundles still use them
		Prestart: hook("prestart", busybox), CreateRuntime: hook("createRuntime", busybox),
		CreateContainer: hook("createContainer", busybox), StartContainer: hook("startContainer", "/bin/sh"),
		Poststart: hook("poststart", busybox), Poststop: hook("poststop", busybox),
	}
	b := start(t, testConfig(t, spec))
	if _, err := b.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(testContext(t)); err != nil {
		t.Fatal(err)
	}
	out, _ := os.ReadFile(log)
	want := `prestart"status":"creating"|prestart|createRuntime"status":"creating"|createRuntime|` +
		`createContainer"status":"creating"|createContainer|startContainer"status":"created"|startContainer|` +
		`poststart"status":"running"|poststart|poststop"status":"stopped"|poststop|`
	if got := strings.ReplaceAll(string(out), "\n", "|"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	spec = testSpec(root, "true")
	no := []specs.Hook{{Path: busybox, Args: []string{"false"}}}
	spec.Hooks = &specs.Hooks{Poststart: no, Poststop: append(no, hook("second", busybox)...)}
	cfg := testConfig(t, spec)
	cfg.ID = "late"
	late, err := create(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := late.Start(testContext(t)); !errors.Is(err, ErrHook) {
		t.Errorf("start: %v", err)
	}
	if ws, err := late.Wait(testContext(t)); err != nil || ws != 0 {
		t.Error(ws, err)
	}
	if err := late.Delete(testContext(t)); !errors.Is(err, ErrHook) {
		t.Errorf("delete: %v", err)
	}
	if out, _ := os.ReadFile(log); !strings.HasSuffix(string(out), "second\n") {
		t.Errorf("the second hook did not run: %s", out)
	}
	for _, bad := range []func(h *specs.Hooks, hooks []specs.Hook){
		//lint:ignore SA1019 bundles still use them
		func(h *specs.Hooks, hooks []specs.Hook) { h.Prestart = hooks },
		func(h *specs.Hooks, hooks []specs.Hook) { h.CreateContainer = hooks },
	} {
		spec := testSpec(root, "true")
		spec.Hooks = new(specs.Hooks)
		bad(spec.Hooks, []specs.Hook{{Path: busybox, Args: []string{"sh", "-c", "exit 3"}}})
		cfg := testConfig(t, spec)
		if _, err := create(t, cfg); err == nil || !strings.Contains(err.Error(), "exit status 3") {
			t.Errorf("a failing hook: %v", err)
		}
		nothingLeft(t, cfg)
		*spec.Hooks = specs.Hooks{}
		bad(spec.Hooks, []specs.Hook{{Path: busybox, Args: []string{"sleep", "100"}, Timeout: ptr(1)}})
		if _, err := create(t, cfg); err == nil || !strings.Contains(err.Error(), "timeout") {
			t.Errorf("a hook that hangs: %v", err)
		}
		nothingLeft(t, cfg)
	}
}

// TestExtraFiles passes descriptors, and nothing else.
func TestExtraFiles(t *testing.T) {
	needRoot(t)
	// One that is not close-on-exec must not get through.
	leak, err := unix.Open("/etc", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	var files []*os.File
	for i := range 6 {
		f, err := os.CreateTemp(t.TempDir(), "extra")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	cfg := testConfig(t, testSpec(rootfs(t), "sh", "-c", "cat <&3; cat <&8; cd /proc/self/fd; echo ' ' *"))
	cfg.ExtraFiles = files
	out, ws := run(t, cfg)
	if ws != 0 || out != "05  0 1 2 3 4 5 6 7 8 9\n" {
		t.Errorf("%#x %q", ws, out)
	}
}
