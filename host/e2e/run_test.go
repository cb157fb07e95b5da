//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// TestVersion: the server is Linux, whatever the host is, and says what it runs on.
func TestVersion(t *testing.T) {
	h := machine(t)
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			text := c.ok(t, "version")
			for _, want := range []string{"Server: Berth", "OS/Arch:", "linux/amd64", "machine:"} {
				if !strings.Contains(text, want) {
					t.Errorf("version lacks %q:\n%s", want, text)
				}
			}
			var v struct {
				Server struct {
					Os, Arch   string
					Components []struct {
						Name    string
						Details map[string]string
					}
				}
			}
			if err := json.Unmarshal([]byte(c.ok(t, "version", "--format", "{{json .}}")), &v); err != nil {
				t.Fatal(err)
			}
			if v.Server.Os != "linux" || v.Server.Arch != "amd64" {
				t.Errorf("server is %s/%s, want linux/amd64", v.Server.Os, v.Server.Arch)
			}
			for _, comp := range v.Server.Components {
				if comp.Name == "machine" {
					for _, key := range []string{"driver", "acceleration", "kernel"} {
						if comp.Details[key] == "" {
							t.Errorf("component machine lacks %s: %v", key, comp.Details)
						}
					}
					return
				}
			}
			t.Errorf("no component machine in %+v", v.Server.Components)
		})
	}
}

// TestRun: what a flag asks for is what the container sees.
func TestRun(t *testing.T) {
	h := machine(t)
	for _, c := range []struct {
		name string
		args []string // before the image
		cmd  []string
		in   string
		want string // regular expression on the output
		code int
	}{
		{name: "default command", want: `(?i)berth`},
		{name: "echo", cmd: []string{"echo", "hi"}, want: `^hi$`},
		{name: "env", args: []string{"-e", "A=b c", "-e", "EMPTY="}, cmd: []string{"env"}, want: `(?m)^A=b c$`},
		{name: "workdir made", args: []string{"-w", "/new/dir"}, cmd: []string{"pwd"}, want: `^/new/dir$`},
		{name: "user by number", args: []string{"-u", "12:34"}, cmd: []string{"id"}, want: `uid=12.* gid=34`},
		{name: "entrypoint", args: []string{"--entrypoint", "/bin/echo"}, cmd: []string{"x", "y"}, want: `^x y$`},
		{name: "memory", args: []string{"--memory", "64m"}, cmd: []string{"cat", "/sys/fs/cgroup/memory.max"}, want: `^67108864$`},
		{name: "cpus", args: []string{"--cpus", "0.5"}, cmd: []string{"cat", "/sys/fs/cgroup/cpu.max"}, want: `^50000 100000$`},
		{name: "pids", args: []string{"--pids-limit", "33"}, cmd: []string{"cat", "/sys/fs/cgroup/pids.max"}, want: `^33$`},
		{name: "default capabilities", cmd: []string{"grep", "CapEff", "/proc/self/status"}, want: `a80425fb`},
		{name: "cap-add", args: []string{"--cap-add", "NET_ADMIN"}, cmd: []string{"grep", "CapEff", "/proc/self/status"}, want: `a80435fb`},
		{name: "cap-drop all", args: []string{"--cap-drop", "ALL"}, cmd: []string{"grep", "CapEff", "/proc/self/status"}, want: `0000000000000000`},
		{name: "privileged", args: []string{"--privileged"}, cmd: []string{"grep", "CapEff", "/proc/self/status"}, want: `000001ffffffffff`},
		{name: "seccomp on", cmd: []string{"grep", "Seccomp:", "/proc/self/status"}, want: `2$`},
		{name: "seccomp off", args: []string{"--security-opt", "seccomp=unconfined"}, cmd: []string{"grep", "Seccomp:", "/proc/self/status"}, want: `0$`},
		{name: "read-only", args: []string{"--read-only"}, cmd: []string{"sh", "-c", "touch /x 2>&1; true"}, want: `Read-only file system`},
		{name: "no network", args: []string{"--network", "none"}, cmd: []string{"ls", "/sys/class/net"}, want: `^lo$`},
		{name: "host network", args: []string{"--network", "host"}, cmd: []string{"ls", "/sys/class/net"}, want: `docker0`},
		{name: "bridge network", cmd: []string{"ip", "-4", "addr", "show", "eth0"}, want: `inet 172\.17\.`},
		{name: "hostname", args: []string{"--hostname", "pier"}, cmd: []string{"hostname"}, want: `^pier$`},
		{name: "init", args: []string{"--init"}, cmd: []string{"sh", "-c", "cat /proc/1/comm"}, want: `init`},
		{name: "pid 1", cmd: []string{"sh", "-c", "echo $$"}, want: `^1$`},
		{name: "stdin", args: []string{"-i"}, cmd: []string{"cat"}, in: "from stdin\n", want: `^from stdin$`},
		{name: "exit code", cmd: []string{"sh", "-c", "exit 42"}, code: 42},
		{name: "killed by signal", cmd: []string{"sh", "-c", "kill -9 $$; sleep 1"}, code: 0, want: ``},
		{name: "no such command", cmd: []string{"nothere"}, code: 127},
		{name: "not executable", cmd: []string{"/etc"}, code: 126},
		{name: "ulimit", args: []string{"--ulimit", "nofile=77:99"}, cmd: []string{"sh", "-c", "ulimit -n"}, want: `^77$`},
		{name: "sysctl", args: []string{"--sysctl", "net.ipv4.ip_default_ttl=42"}, cmd: []string{"cat", "/proc/sys/net/ipv4/ip_default_ttl"}, want: `^42$`},
		{name: "tmpfs", args: []string{"--tmpfs", "/scratch:size=1m"}, cmd: []string{"grep", "/scratch", "/proc/mounts"}, want: `tmpfs.*size=1024k`},
		{name: "masked", cmd: []string{"sh", "-c", "cat /proc/kcore | wc -c"}, want: `^0$`},
		{name: "kernel's debugging", cmd: []string{"sh", "-c", "test -e /proc/dynamic_debug/control; echo $?; (echo 'func vfs_read -p' >/proc/dynamic_debug/control) 2>&1; true"},
			want: `^0\n.*Read-only file system$`},
		{name: "proc sys read-only", cmd: []string{"sh", "-c", "echo 1 2>&1 >/proc/sys/kernel/domainname; true"}, want: `Read-only`},
	} {
		for _, cl := range h.clients() {
			t.Run(c.name+"/"+cl.name, func(t *testing.T) {
				args := append([]string{"run", "--rm"}, c.args...)
				args = append(append(args, "hello"), c.cmd...)
				r := cl.execIn(c.in, args...)
				if c.name == "killed by signal" {
					// The first process of a pid namespace is immune to its own SIGKILL.
					if r.code != 0 {
						t.Errorf("%s", r)
					}
					return
				}
				if r.code != c.code {
					t.Fatalf("%s\nwant exit code %d", r, c.code)
				}
				if !regexp.MustCompile(c.want).MatchString(strings.TrimSpace(r.out)) {
					t.Errorf("%s\nthe output should match %q", r, c.want)
				}
			})
		}
	}
	if left := h.berth().ok(t, "ps", "-aq"); left != "" {
		t.Errorf("containers left after run --rm: %s", left)
	}
}

// TestNamespaces: a container has namespaces of its own, and the engine's are not among them.
func TestNamespaces(t *testing.T) {
	h := machine(t)
	const list = `for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done`
	inside := h.berth().ok(t, "run", "--rm", "hello", "sh", "-c", list)
	outside := h.berth().ok(t, "ssh", "--", list)
	in, out := strings.Fields(inside), strings.Fields(outside)
	if len(in) != 6 || len(out) != 6 {
		t.Fatalf("inside %q, outside %q", inside, outside)
	}
	for i := range in {
		if in[i] == out[i] {
			t.Errorf("the container shares %s with the VM", in[i])
		}
	}
}

// TestTTY: -it gives a terminal that knows its size and echoes.
func TestTTY(t *testing.T) {
	h := machine(t)
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cmd := c.command(ctx, "run", "--rm", "-it", "hello", "sh")
			tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
			if err != nil {
				t.Fatal(err)
			}
			defer tty.Close()
			seen := make(chan string, 1000)
			go func() {
				defer close(seen)
				r := bufio.NewReader(tty)
				var text []byte
				for {
					b, err := r.ReadByte()
					if err != nil {
						return
					}
					text = append(text, b)
					if b == '\n' || strings.HasSuffix(string(text), "# ") {
						seen <- string(text)
						text = nil
					}
				}
			}()
			expect := func(want string) {
				t.Helper()
				var all string
				for s := range seen {
					all += s
					if strings.Contains(s, want) {
						return
					}
				}
				t.Fatalf("terminal never showed %q, but:\n%s", want, all)
			}
			expect("# ")
			eventually(t, "the terminal has the client's size", func() bool {
				io.WriteString(tty, "stty size; echo end-$((1+1))\n")
				ok := false
				for s := range seen {
					ok = ok || strings.HasPrefix(s, "33 101")
					if strings.HasPrefix(s, "end-2") {
						return ok
					}
				}
				t.Fatal("the terminal closed")
				return false
			})
			io.WriteString(tty, "exit 7\n")
			err = cmd.Wait()
			if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 7 {
				t.Errorf("ended with %v, want exit status 7", err)
			}
		})
	}
}

// TestLifecycle walks one container through its life with each client.
func TestLifecycle(t *testing.T) {
	h := machine(t)
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			name := "life-" + c.name
			t.Cleanup(func() { c.exec("rm", "-f", name) })
			id := c.ok(t, "run", "-d", "--name", name, "hello", "sh", "-c",
				`trap 'echo bye; exit 3' TERM; echo started; i=0; while :; do i=$((i+1)); sleep 0.2; done`)
			if len(id) != 64 {
				t.Fatalf("run -d printed %q, want an id", id)
			}
			c.fails(t, "already in use", "create", "--name", name, "hello")
			if got := c.ok(t, "ps", "--format", "{{.Names}} {{.State}}", "--filter", "name="+name); got != name+" running" {
				t.Errorf("ps: %q", got)
			}
			eventually(t, "log line", func() bool { return strings.Contains(c.ok(t, "logs", name), "started") })
			if got := c.ok(t, "exec", "-w", "/tmp", "-e", "X=1", "-u", "5", name, "sh", "-c", "echo $X; pwd; id -u"); got != "1\n/tmp\n5" {
				t.Errorf("exec: %q", got)
			}
			if r := c.exec("exec", name, "sh", "-c", "exit 9"); r.code != 9 {
				t.Errorf("exec's exit code: %s", r)
			}
			if r := c.execIn("abc", "exec", "-i", name, "cat"); r.out != "abc" {
				t.Errorf("exec -i: %s", r)
			}
			if got := c.ok(t, "top", name); !strings.Contains(got, "sleep") && !strings.Contains(got, "sh") {
				t.Errorf("top: %q", got)
			}
			if got := c.ok(t, "stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", name); !strings.HasPrefix(got, name+" ") || strings.HasSuffix(got, " 0") {
				t.Errorf("stats: %q", got)
			}
			c.ok(t, "pause", name)
			if got := c.ok(t, "inspect", "--format", "{{.State.Status}}", name); got != "paused" {
				t.Errorf("after pause: %s", got)
			}
			c.ok(t, "unpause", name)
			c.ok(t, "rename", name, name+"-2")
			c.ok(t, "rename", name+"-2", name)
			c.ok(t, "stop", "-t", "60", name)
			if got := c.ok(t, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name); got != "exited 3" {
				t.Errorf("after stop: %q, want exited 3", got)
			}
			if got := c.ok(t, "logs", name); !strings.HasSuffix(got, "bye") {
				t.Errorf("logs after stop: %q", got)
			}
			if got := c.ok(t, "wait", name); got != "3" {
				t.Errorf("wait: %q", got)
			}
			c.ok(t, "start", name)
			c.ok(t, "restart", "-t", "60", name)
			c.ok(t, "kill", name)
			if got := c.ok(t, "wait", name); got != "137" {
				t.Errorf("wait after kill: %q", got)
			}
			c.fails(t, "is not running", "exec", name, "true")
			c.ok(t, "start", name)
			c.fails(t, "", "rm", name)
			c.ok(t, "rm", "-f", name)
			c.fails(t, "No such container", "inspect", "--type", "container", name)
		})
	}
}

// TestLogsFollow: logs -f prints lines as they come and ends with the container.
func TestLogsFollow(t *testing.T) {
	h := machine(t)
	c := h.berth()
	t.Cleanup(func() { c.exec("rm", "-f", "follow") })
	c.ok(t, "run", "-d", "--name", "follow", "hello", "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done; echo last >&2")
	r := c.exec("logs", "-f", "follow")
	if r.code != 0 || strings.Count(r.out, "line") != 5 || strings.TrimSpace(r.err) != "last" {
		t.Errorf("%s\nwant five lines and, on standard error, the last", r)
	}
	if got := c.ok(t, "logs", "--tail", "2", "-t", "follow"); len(strings.Split(got, "\n")) > 2 || !strings.Contains(got, "T") {
		t.Errorf("logs --tail 2 -t: %q", got)
	}
}

// TestAttach: attach sees output, and its input arrives.
func TestAttach(t *testing.T) {
	h := machine(t)
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			name := "attach-" + c.name
			t.Cleanup(func() { c.exec("rm", "-f", name) })
			c.ok(t, "run", "-d", "-i", "--name", name, "hello", "sh", "-c", "read x; echo got $x; exit 4")
			// Standard input stays open: its end would end the attachment, as docker's does.
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cmd := c.command(ctx, "attach", name)
			cmd.Stdin = r
			io.WriteString(w, "words\n")
			out, err := cmd.Output()
			r.Close()
			if cmd.ProcessState.ExitCode() != 4 || string(out) != "got words\n" {
				t.Errorf("attach: %v, printed %q, want exit 4 and the words", err, out)
			}
		})
	}
}

// TestEvents: what happens is told, in order.
func TestEvents(t *testing.T) {
	h := machine(t)
	c := h.berth()
	since := fmt.Sprint(time.Now().Unix() - 1)
	c.ok(t, "run", "--rm", "--name", "eventful", "hello", "true")
	got := c.ok(t, "events", "--since", since, "--until", fmt.Sprint(time.Now().Unix()+2), "--filter", "container=eventful", "--format", "{{.Action}}")
	if want := "create\nattach\nstart\ndie\ndestroy"; strings.ReplaceAll(got, "\r", "") != want {
		t.Errorf("events: %q, want %q", got, want)
	}
}

// TestImageEvents: an image that a build or a commit made is told of, with its labels,
// before its names are.
func TestImageEvents(t *testing.T) {
	h := machine(t)
	c := h.berth()
	since := fmt.Sprint(time.Now().Unix() - 1)
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM hello\nLABEL told=built\n"})
	unnamed := c.ok(t, "build", "-q", dir)
	named := c.ok(t, "build", "-q", "-t", "told:1", dir)
	c.ok(t, "create", "--name", "told", "--label", "told=committed", "hello", "true")
	committed := c.ok(t, "commit", "told", "told")
	t.Cleanup(func() {
		c.exec("rm", "told")
		c.exec("rmi", "told:1", "told", unnamed)
	})
	told := func(label string) string {
		return strings.ReplaceAll(c.ok(t, "events", "--since", since, "--until", fmt.Sprint(time.Now().Unix()+1), "--filter", "type=image",
			"--filter", "label=told="+label, "--format", "{{.Action}} {{.Actor.Attributes.name}}"), "\r", "")
	}
	if got, want := told("built"), "create "+unnamed+"\ncreate "+named+"\ntag told:1"; got != want {
		t.Errorf("events of builds:\n%s\nwant:\n%s", got, want)
	}
	if got, want := told("committed"), "create "+committed+"\ntag told:latest"; got != want {
		t.Errorf("events of a commit:\n%s\nwant:\n%s", got, want)
	}
}

// TestInfo: info describes the engine and the VM.
func TestInfo(t *testing.T) {
	h := machine(t)
	for _, c := range h.clients() {
		got := c.ok(t, "info", "--format", "{{.OSType}} {{.CgroupVersion}} {{.Driver}} {{.NCPU}}")
		if !regexp.MustCompile(`^linux 2 \S+ [1-9]`).MatchString(got) {
			t.Errorf("%s info: %q", c.name, got)
		}
	}
}

// TestKernelRefusals: what a container must not do fails.
func TestKernelRefusals(t *testing.T) {
	h := machine(t)
	for _, c := range []struct{ name, script string }{
		{"unshare", "unshare -m true"},
		{"mount", "mount -t tmpfs x /mnt"},
		{"load module", "insmod /etc/passwd"},
		{"set the clock", "! date -s 2000-01-01 2>&1 | grep 'not permitted'"},
		{"raw memory", "dd if=/dev/mem of=/dev/null count=1"},
		{"disk", "mknod /tmp/d b 254 0 && dd if=/tmp/d of=/dev/null count=1"},
		{"cgroup", "echo 1 > /sys/fs/cgroup/pids.max"},
		{"keeper", "ls /run/berth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if r := h.berth().exec("run", "--rm", "hello", "sh", "-c", c.script); r.code == 0 {
				t.Errorf("%s\nit should have been refused", r)
			}
		})
	}
}

// TestDeviceNodes: the devices are there that containers for VPNs and file systems ask
// for, for everybody, and their drivers come when they are used.
func TestDeviceNodes(t *testing.T) {
	h := machine(t)
	got := h.berth().ok(t, "run", "--rm", "--cap-add", "NET_ADMIN", "--device", "/dev/net/tun", "--device", "/dev/fuse", "--device", "/dev/loop-control", "hello",
		"sh", "-c", "stat -c '%a %t %T' /dev/net/tun /dev/fuse /dev/loop-control; tunctl -t vpn0 >/dev/null && cat /sys/class/net/vpn0/tun_flags >/dev/null && echo made")
	if want := "666 a c8\n666 a e5\n660 a ed\nmade"; got != want {
		t.Errorf("devices:\n%s\nwant:\n%s", got, want)
	}
}

// TestOOM: a container over its memory limit dies and says so.
func TestOOM(t *testing.T) {
	h := machine(t)
	c := h.berth()
	t.Cleanup(func() { c.exec("rm", "-f", "oom") })
	r := c.exec("run", "--name", "oom", "--memory", "16m", "--memory-swap", "16m", "hello", "sh", "-c", "tail /dev/zero")
	if r.code == 0 {
		t.Errorf("%s\nit should have been killed", r)
	}
	if got := c.ok(t, "inspect", "--format", "{{.State.OOMKilled}}", "oom"); got != "true" {
		t.Errorf("OOMKilled is %s", got)
	}
}

// TestOutbound: a container reaches the host's loopback by name, and DNS works.
func TestOutbound(t *testing.T) {
	h := machine(t)
	url := "http://host.docker.internal:" + strings.Split(suite.registry.addr, ":")[1] + "/v2/_catalog"
	if got := h.berth().ok(t, "run", "--rm", "--add-host", "host.docker.internal:host-gateway", "hello", "wget", "-qO-", url); !strings.Contains(got, "hello") {
		t.Errorf("the registry's catalog: %q", got)
	}
}

// TestVendorDevices: devices that vendors describe in the machine (CDI).
func TestVendorDevices(t *testing.T) {
	c := machine(t).berth()
	c.ok(t, "ssh", "--", `mkdir -p /run/cdi && echo '{"cdiVersion": "0.7.0", "kind": "example.com/card", "devices": [{"name": "zero",
		"containerEdits": {"env": ["CARD=zero"], "deviceNodes": [{"path": "/dev/card", "hostPath": "/dev/zero"}],
		"mounts": [{"hostPath": "/etc/os-release", "containerPath": "/opt/card", "options": ["ro", "bind"]}]}}]}' >/run/cdi/card.json`)
	t.Cleanup(func() { c.exec("ssh", "--", "rm -r /run/cdi") })
	if got := c.ok(t, "info", "-f", "{{json .DiscoveredDevices}} {{.CDISpecDirs}}"); got != `[{"Source":"cdi","ID":"example.com/card=zero"}] [/etc/cdi /var/run/cdi]` {
		t.Errorf("info shows %s", got)
	}
	if got := c.ok(t, "run", "--rm", "--device", "example.com/card=zero", "hello", "sh", "-c",
		"echo $CARD; head -c 2 /dev/card | od -An -tx1; grep -c ^ID= /opt/card; touch /opt/card 2>&1; true"); !strings.HasPrefix(got, "zero\n 00 00\n1\n") || !strings.Contains(got, "Read-only") {
		t.Errorf("in the container: %q", got)
	}
	c.fails(t, "CDI device injection failed: unresolvable CDI devices example.com/card=one", "run", "--rm", "--device", "example.com/card=one", "hello", "true")
}
