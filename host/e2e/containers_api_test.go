//go:build linux

package e2e

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"golang.org/x/net/websocket"
)

// box is a container of one test, seen through the Go library.
type box struct {
	t  testing.TB
	c  *client.Client
	id string
}

// newBox makes a container that goes with the test. The image is hello unless cfg
// names another; without a command it sleeps.
func newBox(t testing.TB, c *client.Client, name string, cfg container.Config, hc container.HostConfig) *box {
	t.Helper()
	if cfg.Image == "" {
		cfg.Image = "hello"
	}
	if cfg.Cmd == nil {
		cfg.Cmd = []string{"sleep", "100000"}
	}
	r, err := c.ContainerCreate(t.Context(), client.ContainerCreateOptions{Name: name, Config: &cfg, HostConfig: &hc})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = c.ContainerRemove(context.Background(), r.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	})
	return &box{t, c, r.ID}
}

func (b *box) start() *box {
	b.t.Helper()
	if _, err := b.c.ContainerStart(b.t.Context(), b.id, client.ContainerStartOptions{}); err != nil {
		b.t.Fatal(err)
	}
	return b
}

// run starts the container, waits for its end and returns what it printed on both
// streams, and its exit code.
func (b *box) run() (string, int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	wait := b.c.ContainerWait(ctx, b.id, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	b.start()
	code := 0
	select {
	case err := <-wait.Error:
		b.t.Fatal(err)
	case r := <-wait.Result:
		code = int(r.StatusCode)
	}
	return b.logs(client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}), code
}

// prints fails the test unless the container prints want, trimmed, and succeeds.
func (b *box) prints(want string) {
	b.t.Helper()
	if got, code := b.run(); code != 0 || strings.TrimSpace(strings.ReplaceAll(got, "\r", "")) != want {
		b.t.Errorf("exit code %d, printed %q; want 0 and %q", code, got, want)
	}
}

func (b *box) logs(o client.ContainerLogsOptions) string {
	b.t.Helper()
	r, err := b.c.ContainerLogs(b.t.Context(), b.id, o)
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	var out bytes.Buffer
	if b.inspect().Config.Tty {
		_, err = io.Copy(&out, r)
	} else {
		_, err = stdcopy.StdCopy(&out, &out, r)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return out.String()
}

func (b *box) inspect() container.InspectResponse {
	b.t.Helper()
	r, err := b.c.ContainerInspect(b.t.Context(), b.id, client.ContainerInspectOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return r.Container
}

// failsToStart fails the test unless the start fails with words in its message.
func (b *box) failsToStart(words string) {
	b.t.Helper()
	_, err := b.c.ContainerStart(b.t.Context(), b.id, client.ContainerStartOptions{})
	if err == nil || !strings.Contains(err.Error(), words) {
		b.t.Errorf("the start: %v, want an error with %q", err, words)
	}
}

// exec runs a command in the container and returns what it printed on both streams,
// and its exit code.
func (b *box) exec(o client.ExecCreateOptions, cmd ...string) (string, int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	o.Cmd, o.AttachStdout, o.AttachStderr = cmd, true, true
	x, err := b.c.ExecCreate(ctx, b.id, o)
	if err != nil {
		b.t.Fatal(err)
	}
	a, err := b.c.ExecAttach(ctx, x.ID, client.ExecAttachOptions{TTY: o.TTY})
	if err != nil {
		b.t.Fatal(err)
	}
	defer a.Close()
	var out bytes.Buffer
	if o.TTY {
		_, err = io.Copy(&out, a.Reader)
	} else {
		_, err = stdcopy.StdCopy(&out, &out, a.Reader)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	i, err := b.c.ExecInspect(ctx, x.ID, client.ExecInspectOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(strings.ReplaceAll(out.String(), "\r", "")), i.ExitCode
}

// sees fails the test unless a script in the container prints want, trimmed.
func (b *box) sees(script, want string) {
	b.t.Helper()
	if got, code := b.exec(client.ExecCreateOptions{}, "sh", "-c", script); got != want {
		b.t.Errorf("%s: %q (exit code %d), want %q", script, got, code, want)
	}
}

// sh is a container's configuration that runs a script.
func sh(script string) container.Config { return container.Config{Cmd: []string{"sh", "-c", script}} }

// TestImageMounts: an image's files, or some of them, are there to read, and go
// with the container.
func TestImageMounts(t *testing.T) {
	c := machine(t).engine(t)
	img := func(sub string) container.HostConfig {
		return container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeImage, Source: "hello", Target: "/img",
			ImageOptions: &mount.ImageOptions{Subpath: sub}}}}
	}
	b := newBox(t, c, "", sh("test -e /img/bin/busybox && ! touch /img/x 2>/dev/null && echo ok"), img(""))
	b.prints("ok")
	if m := b.inspect().Mounts; len(m) != 1 || m[0].Type != mount.TypeImage || m[0].Name != "hello" || m[0].RW {
		t.Errorf("inspect shows %+v", m)
	}
	b.prints("ok\nok") // again: the log has both
	newBox(t, c, "", sh("test -e /img/busybox && echo ok"), img("bin")).prints("ok")
	newBox(t, c, "", sh("true"), img("nowhere")).failsToStart("cannot access path ")
	if _, err := c.ContainerRemove(t.Context(), b.id, client.ContainerRemoveOptions{}); err != nil {
		t.Error(err)
	}
	if got := machine(t).berth().ok(t, "ssh", "--", "mount | grep -c "+b.id+" || true"); got != "0" {
		t.Errorf("%s mounts of the container are left", got)
	}
}

// TestLinks: a linked container is found by its alias.
func TestLinks(t *testing.T) {
	c := machine(t).engine(t)
	newBox(t, c, "link-db", container.Config{}, container.HostConfig{}).start()
	newBox(t, c, "", sh("ping -c 1 -W 20 store >/dev/null && echo ok"), container.HostConfig{Links: []string{"link-db:store"}}).prints("ok")
}

// TestTerminalOfItsOwn: a terminal is the container's first, and exec's the next.
func TestTerminalOfItsOwn(t *testing.T) {
	c := machine(t).engine(t)
	cfg := sh("tty; ls -l /proc/self/fd/0 | sed 's/.*-> //'")
	cfg.Tty = true
	newBox(t, c, "", cfg, container.HostConfig{}).prints("/dev/pts/0\n/dev/pts/0")
}

// TestAttachWebsocket: a websocket carries a container's streams from the host.
func TestAttachWebsocket(t *testing.T) {
	h := machine(t)
	c := h.engine(t)
	b := newBox(t, c, "", container.Config{Cmd: []string{"sh", "-c", "read x; echo got $x"}, OpenStdin: true}, container.HostConfig{})
	conn, err := net.Dial("unix", h.status(t).DockerSocket)
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig("ws://docker/containers/"+b.id+"/attach/ws?stream=1&stdin=1&stdout=1", "http://docker")
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	b.start()
	io.WriteString(ws, "words\n")
	if got, err := io.ReadAll(ws); err != nil || string(got) != "got words\n" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestUpdateLive: limits change under a running container.
func TestUpdateLive(t *testing.T) {
	c := machine(t).engine(t)
	b := newBox(t, c, "", container.Config{}, container.HostConfig{Resources: container.Resources{Memory: 64 << 20}}).start()
	b.sees("cd /sys/fs/cgroup; cat memory.max memory.swap.max pids.max", "67108864\n67108864\nmax")
	update := func(r container.Resources, p container.RestartPolicyMode) {
		t.Helper()
		o := client.ContainerUpdateOptions{Resources: &r}
		if p != "" {
			o.RestartPolicy = &container.RestartPolicy{Name: p}
		}
		if _, err := c.ContainerUpdate(t.Context(), b.id, o); err != nil {
			t.Fatal(err)
		}
	}
	limit, none := int64(50), int64(-1)
	update(container.Resources{Memory: 96 << 20, MemorySwap: 192 << 20, CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, PidsLimit: &limit,
		CpusetCpus: "0"}, container.RestartPolicyAlways)
	b.sees("cd /sys/fs/cgroup; cat memory.max memory.swap.max pids.max cpu.max cpuset.cpus", "100663296\n100663296\n50\n50000 100000\n0")
	disk := machine(t).berth().ok(t, "ssh", "--", "awk '$2 == \"/var/lib/berth\" {print $1}' /proc/mounts")
	update(container.Resources{PidsLimit: &none, CPUPeriod: 100000, CPUQuota: -1,
		BlkioDeviceReadBps: []*blkiodev.ThrottleDevice{{Path: disk, Rate: 5 << 20}}}, "")
	b.sees("cd /sys/fs/cgroup; cat pids.max cpu.max; grep -o rbps=.* io.max", "max\nmax 100000\nrbps=5242880 wbps=max riops=max wiops=max")
	h := b.inspect().HostConfig
	if h.RestartPolicy.Name != container.RestartPolicyAlways || h.Memory != 96<<20 || *h.PidsLimit != 0 || h.CPUQuota != -1 {
		t.Errorf("inspect shows %+v, %+v", h.RestartPolicy, h.Resources)
	}
}

// TestVolumeMounts: contents come from the image once, subpaths do not lead out, a
// data container lends what it never used.
func TestVolumeMounts(t *testing.T) {
	c := machine(t).engine(t)
	v, err := c.VolumeCreate(t.Context(), client.VolumeCreateOptions{Name: "api-vol", Labels: map[string]string{"a": "b"}})
	if err != nil || v.Volume.Labels["a"] != "b" {
		t.Fatalf("%+v, %v", v, err)
	}
	t.Cleanup(func() {
		_, _ = c.VolumeRemove(context.Background(), "api-vol", client.VolumeRemoveOptions{Force: true})
	})
	at := func(dest string, o *mount.VolumeOptions) container.HostConfig {
		return container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "api-vol", Target: dest, VolumeOptions: o}}}
	}
	data := newBox(t, c, "api-data", container.Config{}, at("/etc", nil)) // never started
	newBox(t, c, "", sh("test -e /etc/passwd && mkdir -p /etc/sub && echo words >/etc/sub/f && ln -s /etc/passwd /etc/out && ln -s sub /etc/in"),
		container.HostConfig{VolumesFrom: []string{"api-data"}}).prints("")
	newBox(t, c, "", sh("cat /v/f; ls /v"), at("/v", &mount.VolumeOptions{Subpath: "in"})).prints("words\nf")
	newBox(t, c, "", sh("cat /v"), at("/v", &mount.VolumeOptions{Subpath: "sub/f"})).prints("words")
	newBox(t, c, "", sh("true"), at("/v", &mount.VolumeOptions{Subpath: "out"})).failsToStart("path concatenation escapes the base directory")
	newBox(t, c, "", sh("true"), at("/v", &mount.VolumeOptions{Subpath: "gone"})).failsToStart("cannot access path ")
	newBox(t, c, "", sh("ls /data/passwd; ! touch /data/x 2>/dev/null && echo ro"), container.HostConfig{Binds: []string{"api-vol:/data:ro"}}).
		prints("/data/passwd\nro")
	if m := data.inspect().Mounts; len(m) != 1 || m[0].Name != "api-vol" || m[0].Driver != "local" || !m[0].RW {
		t.Errorf("inspect shows %+v", m)
	}
	if _, err := c.VolumeRemove(t.Context(), "api-vol", client.VolumeRemoveOptions{}); !errdefs.IsConflict(err) ||
		!strings.Contains(err.Error(), "volume is in use - [") || !strings.Contains(err.Error(), data.id) {
		t.Errorf("removing a volume in use: %v", err)
	}
	tmpfs := mount.Mount{Type: mount.TypeVolume, Target: "/t", VolumeOptions: &mount.VolumeOptions{
		DriverConfig: &mount.Driver{Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}}}}
	newBox(t, c, "", sh("df -k /t | awk 'END {print $2}'"), container.HostConfig{Mounts: []mount.Mount{tmpfs}}).prints("1024")
}

// TestPropagation: what one container mounts another sees, where both ask for it.
func TestPropagation(t *testing.T) {
	h := machine(t)
	c := h.engine(t)
	dir := filepath.Join(h.dir, "propagation")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	bind := func(p mount.Propagation) container.HostConfig {
		return container.HostConfig{Privileged: p == mount.PropagationRShared, Mounts: []mount.Mount{{Type: mount.TypeBind, Source: dir, Target: "/d",
			BindOptions: &mount.BindOptions{Propagation: p}}}}
	}
	shared := newBox(t, c, "", container.Config{}, bind(mount.PropagationRShared)).start()
	slave := newBox(t, c, "", container.Config{}, bind(mount.PropagationRSlave)).start()
	private := newBox(t, c, "", container.Config{}, bind("")).start()
	shared.sees("mount -t tmpfs none /d/sub && touch /d/sub/mounted && ls /d/sub", "mounted")
	slave.sees("ls /d/sub", "mounted")
	private.sees("ls /d/sub", "")
	shared.sees("umount /d/sub", "")
	slave.sees("ls /d/sub", "")
}

// TestMountsInside: tmpfs, a /dev of one's own, a read-only root and its files.
func TestMountsInside(t *testing.T) {
	c := machine(t).engine(t)
	b := newBox(t, c, "", container.Config{}, container.HostConfig{ReadonlyRootfs: true, ShmSize: 2 << 20,
		Tmpfs: map[string]string{"/run": "size=1m,exec"}, Mounts: []mount.Mount{{Type: mount.TypeTmpfs, Target: "/t", TmpfsOptions: &mount.TmpfsOptions{
			SizeBytes: 2 << 20, Mode: 0o700}}}}).start()
	b.sees("for f in / /etc/hosts; do touch $f/x 2>/dev/null || echo x 2>/dev/null >>$f || echo ro; done", "ro\nro")
	b.sees("df -k /run /t /dev/shm | awk 'NR > 1 {print $2}'; stat -c %a /t; grep -c ' /run .*noexec' /proc/mounts", "1024\n2048\n2048\n700\n0")
	if m := b.inspect().Mounts; len(m) != 1 || m[0].Destination != "/t" {
		t.Errorf("inspect lists %+v, want the mount of type tmpfs only", m)
	}
}

// TestProcessSettings: what a container's processes are and may do.
func TestProcessSettings(t *testing.T) {
	c := machine(t).engine(t)
	umask := uint32(0o027)
	b := newBox(t, c, "", container.Config{Hostname: "me", Domainname: "here.test", User: "5:6", WorkingDir: "/new/dir/", Env: []string{"A=b", "HOME"}},
		container.HostConfig{GroupAdd: []string{"777"}, OomScoreAdj: 300, Umask: &umask, SecurityOpt: []string{"no-new-privileges", "apparmor=any", "label=disable"},
			Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}, CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"chown"},
			ExtraHosts: []string{"other:10.1.2.3"}, DNS: []netip.Addr{netip.MustParseAddr("10.9.8.7")}, DNSSearch: []string{"x.test"},
			Resources: container.Resources{Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}}}}).start()
	b.sees("hostname; cat /proc/sys/kernel/domainname; pwd; id -u; id -G; umask; echo $A; ulimit -n; ulimit -Hn",
		"me\nhere.test\n/new/dir\n5\n6 777\n0027\nb\n100\n200")
	b.sees("cat /proc/1/oom_score_adj /proc/sys/net/ipv4/ip_forward; grep -h NoNewPrivs /proc/1/status | cut -f2", "300\n1\n1")
	b.sees("grep -c '^10.1.2.3.other$' /etc/hosts; cat /etc/resolv.conf", "1\nnameserver 10.9.8.7\nsearch x.test")
	if got, _ := b.exec(client.ExecCreateOptions{User: "0"}, "sh", "-c", "id -u; id -G; awk '/CapBnd/ {print $2}' /proc/self/status"); got != "0\n0 777\n00000000a80435fa" &&
		!strings.HasPrefix(got, "0\n0 ") {
		t.Errorf("exec as root: %q", got)
	}
	if got, _ := b.exec(client.ExecCreateOptions{TTY: true, ConsoleSize: client.ConsoleSize{Height: 33, Width: 77}}, "sh", "-c", "tty; stty size"); got != "/dev/pts/0\n33 77" {
		t.Errorf("exec with a terminal: %q", got)
	}
	if got, code := b.exec(client.ExecCreateOptions{Privileged: true, User: "0", WorkingDir: "/tmp", Env: []string{"C=d"}}, "sh", "-c", "pwd; echo $A$C; exit 7"); got != "/tmp\nbd" || code != 7 {
		t.Errorf("exec: %q, exit code %d", got, code)
	}
}

// TestNamespaceModes: what is shared is the same, what is not is another.
func TestNamespaceModes(t *testing.T) {
	c := machine(t).engine(t)
	donor := newBox(t, c, "donor", container.Config{}, container.HostConfig{IpcMode: "shareable"}).start()
	ns := func(b *box, kinds string) string {
		got, _ := b.exec(client.ExecCreateOptions{}, "sh", "-c", "for n in "+kinds+"; do readlink /proc/self/ns/$n; done")
		return got
	}
	guest := newBox(t, c, "", container.Config{}, container.HostConfig{PidMode: "container:donor", IpcMode: "container:donor", NetworkMode: "container:donor"}).start()
	if a, b := ns(donor, "pid ipc net"), ns(guest, "pid ipc net"); a != b {
		t.Errorf("shared namespaces differ:\n%s\n%s", a, b)
	}
	if a, b := ns(donor, "uts"), ns(guest, "uts"); a == b {
		t.Error("the uts namespace is shared")
	}
	donor.sees("echo words >/dev/shm/f", "")
	guest.sees("cat /dev/shm/f", "words")
	if m := guest.inspect().HostConfig.PidMode; m != container.PidMode("container:"+donor.id) {
		t.Errorf("the pid mode is %s", m)
	}
	host := newBox(t, c, "", container.Config{}, container.HostConfig{PidMode: "host", IpcMode: "host", UTSMode: "host", NetworkMode: "host", CgroupnsMode: "host"}).start()
	want := machine(t).berth().ok(t, "ssh", "--", "for n in pid ipc uts net cgroup; do readlink /proc/1/ns/$n; done")
	if got := ns(host, "pid ipc uts net cgroup"); got != want {
		t.Errorf("the host's namespaces are\n%s\nthe container's\n%s", want, got)
	}
	newBox(t, c, "", sh("cat /proc/1/comm; sh -c 'sleep 0 & exit'"), container.HostConfig{Init: new(true)}).prints("docker-init")
	newBox(t, c, "", container.Config{Cmd: []string{"sh", "-c", "ls /sys/class/net"}, NetworkDisabled: true}, container.HostConfig{}).prints("lo")
}

// TestDevices: a device and a rule let a container use what others cannot.
func TestDevices(t *testing.T) {
	c := machine(t).engine(t)
	script := "mknod /tmp/k c 10 229 && head -c 0 /tmp/k 2>/dev/null && echo yes || echo no"
	newBox(t, c, "", sh(script), container.HostConfig{}).prints("no")
	newBox(t, c, "", sh(script), container.HostConfig{Resources: container.Resources{DeviceCgroupRules: []string{"c 10:229 rwm"}}}).prints("yes")
	newBox(t, c, "", sh("test -c /dev/my && echo yes"), container.HostConfig{Resources: container.Resources{Devices: []container.DeviceMapping{
		{PathOnHost: "/dev/fuse", PathInContainer: "/dev/my", CgroupPermissions: "rw"}}}}).prints("yes")
	newBox(t, c, "", sh("true"), container.HostConfig{Resources: container.Resources{Devices: []container.DeviceMapping{{PathOnHost: "/dev/nope"}}}}).
		failsToStart(`error gathering device information while adding custom device "/dev/nope"`)
	profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chown","fchownat","lchown"],"action":"SCMP_ACT_ERRNO"}]}`
	newBox(t, c, "", sh("chown 42 /etc/passwd 2>&1 | grep -o 'not permitted'"), container.HostConfig{SecurityOpt: []string{"seccomp=" + profile}}).
		prints("not permitted")
}
