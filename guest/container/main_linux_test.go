package container

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/container/cgroup"
	"github.com/berthvm/berth/guest/container/initproc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The test binary is its own berth-exec: there need not be a Go toolchain where
// the tests run (in the VM).
func init() {
	if os.Args[0] == "berth-exec" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if os.Args[0] == "berth-exec" {
		initproc.Main()
	}
	if arg := os.Getenv(creatorEnv); arg != "" {
		creatorMain(arg)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// execPath is the berth-exec to use: BERTH_EXEC, or this binary.
func execPath() string {
	if p := os.Getenv("BERTH_EXEC"); p != "" {
		return p
	}
	return "/proc/self/exe"
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("needs busybox-static")
	}
}

// needCgroup skips where there is no complete cgroup v2.
func needCgroup(t testing.TB) {
	t.Helper()
	needRoot(t)
	have, err := cgroup.Available()
	if err != nil || !strings.Contains(strings.Join(have, " "), "memory") {
		t.Skipf("needs cgroup v2 with all controllers (run by scripts/invm): %v %v", have, err)
	}
}

// rootfs makes a root file system of busybox.
func rootfs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	// Users of a user namespace must get through.
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh cat ls echo sleep id true false mount hostname grep stat readlink env kill touch mkdir tty stty head dd test ip od tail wc") {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

var dockerCaps = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID
	CAP_SETUID CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE`)

// testSpec is much like what docker run makes.
func testSpec(root string, args ...string) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{
			Args: args, Cwd: "/",
			Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{
				Bounding: dockerCaps, Effective: dockerCaps, Permitted: dockerCaps,
			},
		},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.IPCNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// box is a container under test with its output.
type box struct {
	*Container
	t      testing.TB
	cfg    Config
	out    *bytes.Buffer
	reader chan struct{}
}

func testConfig(t testing.TB, spec *specs.Spec) Config {
	t.Helper()
	cfg := Config{ID: "c1", StateDir: filepath.Join(t.TempDir(), "state"), Spec: spec, ExecPath: execPath()}
	if have, err := cgroup.Available(); err == nil && len(have) > 0 {
		cfg.CgroupPath = "/berth-test/" + strings.Map(func(r rune) rune {
			if r == '/' || r == '#' {
				return '-'
			}
			return r
		}, t.Name())
	}
	return cfg
}

// create makes a container whose standard output and error go to out.
func create(t testing.TB, cfg Config) (*box, error) {
	t.Helper()
	b := &box{t: t, cfg: cfg, out: new(bytes.Buffer), reader: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Stdout == nil {
		cfg.Stdout = w
	}
	if cfg.Stderr == nil {
		cfg.Stderr = w
	}
	b.Container, err = Create(testContext(t), cfg)
	w.Close()
	go func() {
		defer close(b.reader)
		io.Copy(b.out, r)
		r.Close()
	}()
	if err != nil {
		<-b.reader
		if b.out.Len() > 0 {
			t.Logf("output: %s", b.out)
		}
		return nil, err
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := b.Delete(ctx); err != nil {
			t.Errorf("delete: %v", err)
		}
		b.Close()
	})
	return b, nil
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// run runs a container to its end and returns output and status.
func run(t testing.TB, cfg Config) (string, syscall.WaitStatus) {
	t.Helper()
	b, err := create(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	ws, err := b.Wait(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	<-b.reader
	return b.out.String(), ws
}

// sh runs a script in a container of spec and returns what it prints.
func sh(t testing.TB, spec *specs.Spec, script string) string {
	t.Helper()
	spec.Process.Args = []string{"/bin/sh", "-c", script}
	out, ws := run(t, testConfig(t, spec))
	if ws != 0 {
		t.Fatalf("status %#x: %s", ws, out)
	}
	return strings.TrimSpace(out)
}

// bg is for what has no test to end with.
var bg = context.Background()
