//go:build linux

package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// hostileStep is a program that tries what a step must not reach, and prints what it got.
const hostileStep = `package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

func try(what string, err error) {
	if err == nil {
		fmt.Println("got", what)
	}
}

func main() {
	for _, path := range []string{"/var/run/docker.sock", "/run/docker.sock", "/run/berth/docker.sock", "/run/berth"} {
		_, err := os.Lstat(path)
		try(path, err)
	}
	fd, err := syscall.Socket(40, syscall.SOCK_STREAM, 0) // AF_VSOCK: the host
	try("vsock", err)
	syscall.Close(fd)
	_, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
	if err != nil {
		fmt.Println("no raw packets, which docker's steps have")
	}
	for _, port := range []string{"2375", "2376", "22"} {
		for _, host := range []string{"127.0.0.1", os.Args[1], os.Args[2]} {
			conn, err := net.DialTimeout("tcp", host+":"+port, 300*time.Millisecond)
			try(host+":"+port, err)
			if err == nil {
				conn.Close()
			}
		}
	}
	try("a mount", syscall.Mount("x", "/mnt", "tmpfs", 0, ""))
	try("a namespace", syscall.Unshare(syscall.CLONE_NEWNS))
	try("a user namespace", syscall.Unshare(syscall.CLONE_NEWUSER))
	try("another root", syscall.PivotRoot("/mnt", "/mnt"))
	try("the clock", syscall.Settimeofday(&syscall.Timeval{Sec: 1}))
	try("the host's name", syscall.Sethostname([]byte("hostile")))
	for _, write := range []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/fs/cgroup/pids.max", "/proc/1/oom_score_adj"} {
		f, err := os.OpenFile(write, os.O_WRONLY, 0)
		if err == nil && write == "/proc/1/oom_score_adj" {
			_, err = f.WriteString("-1000")
		}
		try(write, err)
	}
	for _, read := range []string{"/proc/kcore", "/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/vdb"} {
		f, err := os.Open(read)
		if err == nil {
			_, err = f.Read(make([]byte, 1))
		}
		try(read, err)
	}
	try("a node", syscall.Mknod("/disk", syscall.S_IFBLK|0o600, 254<<8|16)) // docker's steps may
	_, err = os.Open("/disk")
	try("the disk", err)
	processes, _ := filepath.Glob("/proc/[0-9]*")
	if len(processes) != 1 {
		fmt.Println("got processes of others:", processes)
	}
	roots, _ := filepath.Glob("/proc/[0-9]*/root/lib/modules")
	if len(roots) != 0 {
		fmt.Println("got the machine's files:", roots)
	}
}
`

// TestBuildHostile: a Dockerfile that means harm reaches neither the engine nor the
// machine, other containers or the host.
func TestBuildHostile(t *testing.T) {
	h := machine(t)
	c := h.berth()
	dir := buildContext(t, map[string]string{
		"tried/Dockerfile": "FROM hello AS tried\nCOPY program /hostile\n" +
			"RUN [\"/bin/sh\", \"-c\", \"exec /hostile $(ip route | awk '/default/ { print $3 }') 192.168.127.254 > /report 2>&1\"]\nFROM scratch\nCOPY --from=tried /report /\n",
		"links/Dockerfile": `FROM hello AS links
RUN ln -s ../../../../../.. /up && ln -s /proc/1/root /root-of-1 && ln -s /up/var /down
COPY f /up/e2e-escaped-file
COPY f /down/../e2e-escaped-too
WORKDIR /up/e2e-escaped-dir
RUN --mount=type=cache,target=/up/e2e-escaped-mount touch /up/e2e-escaped-mount/x
RUN --mount=type=cache,source=../../../..,target=/c touch /c/e2e-escaped-cache; true
ADD evil.tar /
FROM hello
RUN --mount=type=bind,from=links,source=/up/var,target=/m ls -d /m/lib/berth > /seen 2>/dev/null; true
COPY --from=links /down/../var /copied/
RUN ls -d /copied/lib/berth >> /seen 2>/dev/null; true
CMD ["cat", "/seen"]
`,
		"links/f": "x",
	})
	writeTar(t, filepath.Join(dir, "links", "evil.tar"),
		tar.Header{Name: "dir-link", Typeflag: tar.TypeSymlink, Linkname: "/up"},
		tar.Header{Name: "dir-link/e2e-escaped-tar"})
	if err := os.Link(buildProgram(t, hostileStep), filepath.Join(dir, "tried", "program")); err != nil {
		t.Fatal(err)
	}
	c.ok(t, "run", "-d", "--name", "e2e-neighbour", "hello", "sleep", "1000000")
	t.Cleanup(func() { c.exec("rm", "-f", "e2e-neighbour") })

	out := t.TempDir()
	c.ok(t, "build", "--no-cache", "-o", out, filepath.Join(dir, "tried"))
	if got := mustRead(t, filepath.Join(out, "report")); got != "got a node\n" {
		t.Errorf("a step reports\n%s", got)
	}
	c.ok(t, "build", "--no-cache", "-q", "-t", "e2e-links", filepath.Join(dir, "links"))
	if got := c.ok(t, "run", "--rm", "e2e-links"); got != "" {
		t.Errorf("a mount or a copy reached the machine's files: %q", got)
	}
	for want, entry := range map[string]tar.Header{
		"invalid entry name":      {Name: "../../../../e2e-escaped-dots"},
		"invalid hardlink target": {Name: "passwd", Typeflag: tar.TypeLink, Linkname: "../../../../etc/passwd"},
	} {
		bad := buildContext(t, map[string]string{"Dockerfile": "FROM hello\nADD bad.tar /\n"})
		writeTar(t, filepath.Join(bad, "bad.tar"), entry)
		c.fails(t, want, "build", bad)
	}
	h.nothingEscaped(t)

	for _, b := range h.builders(t) {
		b.fails(t, "network.host is not allowed", "build", buildIn(t, "FROM hello\nRUN --network=host true"))
		b.ok(t, "build", "--network", "none", "--no-cache", buildIn(t, "FROM hello\nRUN ! ip -o link | grep -v lo:"))
		// Docker's own builder lends the machine's network to clients that say so.
		b.ok(t, "build", "--network", "host", "--no-cache", buildIn(t, "FROM hello\nRUN ip -o link | grep docker0 && ! ip link add e2e type dummy"))
	}
	for _, c := range h.buildxes(t) {
		c.ok(t, "buildx", "build", "--no-cache", "--allow", "network.host", buildIn(t, "FROM hello\nRUN --network=host ip -o link | grep docker0"))
		c.fails(t, "security.insecure is not allowed", "buildx", "build", "--allow", "security.insecure", buildIn(t, "# syntax=docker/dockerfile:1-labs\nFROM hello\nRUN --security=insecure true"))
		c.fails(t, "CDI device support is disabled", "buildx", "build", buildIn(t, "# syntax=docker/dockerfile:1-labs\nFROM hello\nRUN --device=a.test/b=c,required true"))
	}
	h.noSteps(t)
}

// nothingEscaped checks that no build wrote what is called e2e-escaped to the machine.
func (h *home) nothingEscaped(t testing.TB) {
	t.Helper()
	const find = "find / -xdev -name 'e2e-escaped*' 2>/dev/null; find /run /tmp /var/lib/berth -xdev -maxdepth 2 -name 'e2e-escaped*'; true"
	if got := h.berth().ok(t, "ssh", "--", find); got != "" {
		t.Errorf("a build wrote to the machine: %s", got)
	}
}

// TestBuildHostileContext: a context that a client packed by hand, with names that
// lead out of it or no archive at all, is refused.
func TestBuildHostileContext(t *testing.T) {
	h := machine(t)
	top := buildContext(t, map[string]string{
		"context/Dockerfile": "FROM hello\nCOPY . /c/\n",
		"e2e-escaped-dots":   "x", "e2e-escaped-link": "x",
	})
	if err := os.Symlink("..", filepath.Join(top, "context", "up")); err != nil {
		t.Fatal(err)
	}
	pack := func(names ...string) []byte {
		t.Helper()
		out, err := exec.Command("tar", append([]string{"-cPC", filepath.Join(top, "context")}, names...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	build := func(body []byte) string {
		t.Helper()
		head := fmt.Sprintf("POST /v1.44/build?t=e2e-packed HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/x-tar\r\nContent-Length: %d\r\n\r\n", len(body))
		return dockerSocket(t, h, head+string(body))
	}
	for _, c := range []struct {
		name string
		body []byte
		want string
	}{
		{"dots", pack("Dockerfile", "../e2e-escaped-dots"), "invalid entry name"},
		{"no archive", []byte("\x00\x01\x02"), "parse error"},
		{"nothing", nil, "empty"},
		{"through a link", pack("Dockerfile", "up", "up/e2e-escaped-link"), "path escapes"},
		{"a link", pack("Dockerfile", "up"), "Successfully tagged e2e-packed:latest"},
	} {
		if answer := build(c.body); !strings.Contains(answer, c.want) {
			t.Errorf("%s: the answer should hold %q:\n%s", c.name, c.want, answer)
		}
	}
	h.nothingEscaped(t)
	h.noSteps(t)
}

// writeTar writes a tar of empty files and links.
func writeTar(t testing.TB, path string, entries ...tar.Header) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// buildIn writes a context of a Dockerfile alone.
func buildIn(t testing.TB, dockerfile string) string {
	return buildContext(t, map[string]string{"Dockerfile": dockerfile + "\n"})
}
