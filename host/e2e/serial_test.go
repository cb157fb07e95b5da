//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestSerial has a machine as QEMU makes it on macOS and Windows: one serial port
// for all streams, and folders by 9P.
func TestSerial(t *testing.T) {
	h := ownHome(t)
	c := h.berth()
	write(t, filepath.Join(h.dir, "berth", "config", "default.yaml"), "streams: serial\n")
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	dir := project(t, map[string]string{"a": "from the host", "sub/deep/b": "deep"})
	out := c.sh(t, dir, `cat a; echo; cat sub/deep/b; echo from the guest >c; mkdir -p x/y; mv c x/y/d; ln -s x/y/d link; cat link; ln x/y/d hard; rm a; stat -c %h hard
		truncate -s 1000000000 sparse; stat -c %s sparse; mkfifo p; test -p p && echo fifo; ls -a | wc -l; grep -c ' /src 9p ' /proc/self/mounts`)
	if want := "from the host\ndeepfrom the guest\n2\n1000000000\nfifo\n8\n1"; out != want {
		t.Errorf("the container saw %q, want %q", out, want)
	}
	if got := read(t, filepath.Join(dir, "link")); got != "from the guest\n" {
		t.Errorf("the host sees %q", got)
	}

	c.sh(t, dir, "chown 999:888 hard; chmod 640 hard; mkdir d; chown 999 d; chmod 700 d")
	c.ok(t, "run", "--rm", "-u", "1234:1234", "-v", dir+":/src", "hello", "touch", "/src/mine")
	c.ok(t, "run", "--rm", "-u", "999", "-v", dir+"/d:/d", "hello", "sh", "-ec", "echo 1 >/d/data; cat /d/data")
	c.ok(t, "run", "-d", "--name", "web", "-p", "127.0.0.1:0:80", "hello", "httpd", "-f", "-h", "/etc")
	port := c.ok(t, "port", "web", "80")
	if body := get(t, "http://"+port+"/hostname"); body == "" {
		t.Error("a published port is silent")
	}
	out = c.ok(t, "run", "--rm", "-v", h.dir+":/x", "hello", "sh", "-c", "find /x/berth; mv /x/berth /x/elsewhere || echo kept")
	if out != "/x/berth\nkept" {
		t.Errorf("Berth's own files: %s", out)
	}

	c.ok(t, "restart")
	if got, want := c.sh(t, dir, "stat -c '%u:%g %a' hard d; stat -c %u:%g mine"), "999:888 640\n999:0 700\n1234:1234"; got != want {
		t.Errorf("after a restart owners are %q, want %q", got, want)
	}
	if st, err := os.Stat(filepath.Join(dir, "mine")); err != nil || int(st.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
		t.Errorf("on the host: %v, %v", st, err)
	}
	if out := c.execIn("hello\n", "run", "--rm", "-i", "hello", "cat"); out.out != "hello\n" {
		t.Errorf("%s", out)
	}
}
