//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// project makes a folder of the host's that the machine's shares hold.
func project(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	return dir
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// sh runs a script in a container that has dir as /src.
func (c cli) sh(t testing.TB, dir, script string) string {
	t.Helper()
	return c.ok(t, "run", "--rm", "-v", dir+":/src", "-w", "/src", "hello", "sh", "-ec", script)
}

func TestShare(t *testing.T) { shareWorks(t, machine(t)) }

func shareWorks(t *testing.T, h *home) {
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			dir := project(t, map[string]string{"a": "from the host", "sub/deep/b": "deep"})
			out := c.sh(t, dir, `cat a; echo; cat sub/deep/b; echo from the guest >c; mkdir -p x/y; mv c x/y/d; ln -s x/y/d link; cat link; ln x/y/d hard; rm a; stat -c %h hard`)
			if want := "from the host\ndeepfrom the guest\n2"; out != want {
				t.Errorf("the container saw %q, want %q", out, want)
			}
			if got := read(t, filepath.Join(dir, "link")); got != "from the guest\n" {
				t.Errorf("the host sees %q", got)
			}
			if _, err := os.Stat(filepath.Join(dir, "a")); err == nil {
				t.Error("what the container removed is still there")
			}
			st, err := os.Stat(filepath.Join(dir, "x"))
			if err != nil || int(st.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
				t.Errorf("what the container made belongs to %v, %v", st, err)
			}
			write(t, filepath.Join(dir, "later"), "later")
			out = c.ok(t, "run", "--rm", "--mount", "type=bind,source="+dir+"/sub,target=/sub,readonly", "-v", dir+"/later:/one:ro", "hello",
				"sh", "-c", "cat /sub/deep/b /one; touch /sub/no || echo refused; echo x >/one || echo refused")
			if out != "deeplaterrefused\nrefused" {
				t.Errorf("read-only: %q", out)
			}
		})
	}
}

func TestShareRefused(t *testing.T) { shareRefused(t, machine(t)) }

func shareRefused(t *testing.T, h *home) {
	const missing = "bind source path does not exist: "
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			dir := project(t, map[string]string{"a": ""})
			if err := os.Symlink("/usr", filepath.Join(dir, "out")); err != nil {
				t.Fatal(err)
			}
			for _, source := range []string{"/usr", "/", "/run/berth", "/var/lib/berth", dir + "/out", dir + "/../../../../usr"} {
				for _, how := range []string{"-v=" + source + ":/x", "--mount=type=bind,source=" + source + ",target=/x"} {
					r := c.fails(t, missing, "run", "--rm", how, "hello", "ls", "/x")
					if r.code != 125 || !strings.Contains(r.err, `"shares"`) {
						t.Errorf("%s\nit should tell how to share the folder, and end with 125", r)
					}
				}
			}
			c.fails(t, missing+dir+"/none", "run", "--rm", "--mount", "type=bind,source="+dir+"/none,target=/x", "hello", "true")
			c.fails(t, "not a directory", "run", "--rm", "-v", dir+"/a/b:/x", "hello", "true")
			if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
				t.Error("--mount made its source")
			}
			c.ok(t, "run", "--rm", "-v", dir+"/made/by/v:/x", "hello", "touch", "/x/f")
			if _, err := os.Stat(filepath.Join(dir, "made/by/v/f")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestShareLinks: links lead where they lead on the host, as far as that is
// shared, and never to the host from inside a container.
func TestShareLinks(t *testing.T) { shareLinks(t, machine(t)) }

func shareLinks(t *testing.T, h *home) {
	c := h.berth()
	dir := project(t, map[string]string{"real/file": "text"})
	write(t, filepath.Join(h.dir, "secret"), "of the host")
	for link, target := range map[string]string{"rel": "real", "abs": filepath.Join(dir, "real"), "esc": "/etc/passwd", "top": "/"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"rel", "abs"} {
		if got := c.sh(t, filepath.Join(dir, link), "cat file"); got != "text" {
			t.Errorf("%s: %q", link, got)
		}
	}
	id := c.ok(t, "create", "-v", dir+"/rel:/src", "hello")
	if got := c.ok(t, "inspect", "--format", "{{(index .Mounts 0).Source}}", id); got != dir+"/rel" {
		t.Errorf("inspect shows the source %s", got)
	}
	c.ok(t, "rm", id)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	// The links end in the container's own tree.
	out := c.sh(t, dir, "cat esc top/etc/hostname; cat top"+h.dir+"/secret || true")
	if strings.Contains(out, "of the host") || strings.Contains(out, host+"\n") || out == "" {
		t.Errorf("the links led to %q", out)
	}
}

// TestShareHidesBerth: no guest may see its own disk, keys and configuration.
func TestShareHidesBerth(t *testing.T) { shareHidesBerth(t, machine(t)) }

func shareHidesBerth(t *testing.T, h *home) {
	c := h.berth()
	s := h.status(t)
	out := c.ok(t, "run", "--rm", "-v", h.dir+":/x", "-v", "/tmp:/tmp", "hello", "sh", "-c", "find /x/berth; ls -d "+filepath.Dir(s.DockerSocket)+
		"; mkdir -p /x/berth/config/new; mv /x/berth /x/elsewhere; mv /x/docker /x/docker2 && mv /x/docker2 /x/docker")
	if strings.Count(out, "\n") > 0 || !strings.HasPrefix(out, "/x/berth") {
		t.Errorf("the container saw %s", out)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "berth", "data")); err != nil {
		t.Errorf("the container moved Berth's own folder: %v", err)
	}
	lent := false
	for _, l := range strings.Split(c.ok(t, "status"), "\n") {
		lent = lent || strings.Contains(l, "folder: "+os.TempDir())
	}
	if !lent {
		t.Error("status does not list the folders that are lent")
	}
}

func TestShareFiles(t *testing.T) { shareFiles(t, machine(t)) }

func shareFiles(t *testing.T, h *home) {
	c := h.berth()
	dir := project(t, nil)
	odd := []string{"with space", "ünïcode", "new\nline", "latin-\xe9", "-dash", strings.Repeat("x", 255)}
	for _, name := range odd {
		write(t, filepath.Join(dir, name), name)
	}
	if got := c.sh(t, dir, "ls -a | wc -l; cat ./*"); !strings.Contains(got, odd[3]) || !strings.Contains(got, odd[5]) {
		t.Errorf("odd names: %q", got)
	}
	out := c.sh(t, dir, `truncate -s 1099511627776 sparse; printf end | dd of=sparse bs=1 seek=1099511627000 conv=notrunc 2>/dev/null
		stat -c %s sparse; test $(stat -c %b sparse) -lt 100 && echo sparse; mkfifo p; test -p p && echo fifo`)
	if out != "1099511627776\nsparse\nfifo" {
		t.Errorf("sparse: %q", out)
	}
	if st, err := os.Stat(filepath.Join(dir, "sparse")); err != nil || st.Size() != 1<<40 || st.Sys().(*syscall.Stat_t).Blocks > 100 {
		t.Errorf("the host sees %v, %v", st, err)
	}
	const files = 2000
	out = c.sh(t, dir, fmt.Sprintf("mkdir many; i=0; while [ $i -lt %d ]; do echo $i >many/$i; i=$((i+1)); done; cat many/* | sort -n | tail -1; ls many | wc -l", files))
	if out != strconv.Itoa(files-1)+"\n"+strconv.Itoa(files) {
		t.Errorf("many files: %q", out)
	}
	if names, err := os.ReadDir(filepath.Join(dir, "many")); err != nil || len(names) != files {
		t.Errorf("the host sees %d files, %v", len(names), err)
	}
	c.sh(t, dir, "rm -r many; ! test -e many")
}

// TestShareOwners: chown and chmod are remembered, also by a machine that was
// switched off, and the host's user keeps its files.
func TestShareOwners(t *testing.T) { shareOwners(t, machine(t), 0o4751) }

// shareOwners gives a file a mode with a set-id bit; mode is what is remembered.
func shareOwners(t *testing.T, h *home, mode int) {
	c := h.berth()
	dir := project(t, map[string]string{"f": "text"})
	c.sh(t, dir, "chown 999:888 f; chmod 4751 f; mkdir d; chown 999 d; chmod 700 d")
	c.ok(t, "run", "--rm", "-u", "1234:1234", "-v", dir+":/src", "hello", "touch", "/src/mine")
	want := fmt.Sprintf("999:888 %o\n999:0 700\n1234:1234", mode)
	look := func() string { return c.sh(t, dir, "stat -c '%u:%g %a' f d; stat -c %u:%g mine") }
	if got := look(); got != want {
		t.Errorf("owners are %q, want %q", got, want)
	}
	c.ok(t, "restart")
	if got := look(); got != want {
		t.Errorf("after a restart owners are %q, want %q", got, want)
	}
	st, err := os.Stat(filepath.Join(dir, "f"))
	if err != nil || int(st.Sys().(*syscall.Stat_t).Uid) != os.Getuid() || st.Mode()&os.ModeSetuid != 0 {
		t.Errorf("on the host: %v, %v", st.Mode(), err)
	}
	// A service that owns its folder, like a database.
	c.ok(t, "run", "--rm", "-u", "999", "-v", dir+"/d:/d", "hello", "sh", "-ec", "echo 1 >/d/data; cat /d/data")
}

// pingDocker asks the engine through the socket that its argument names.
const pingDocker = `package main

import (
	"io"
	"net"
	"os"
)

func main() {
	c, err := net.Dial("unix", os.Args[1])
	if err != nil {
		panic(err)
	}
	io.WriteString(c, "GET /_ping HTTP/1.0\r\n\r\n")
	io.Copy(os.Stdout, c)
}
`

func TestShareDockerSocket(t *testing.T) {
	h := machine(t)
	dir := project(t, map[string]string{"main.go": pingDocker})
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "ping"), filepath.Join(dir, "main.go"))
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, socket := range []string{"/var/run/docker.sock", "/run/docker.sock", h.status(t).DockerSocket} {
		out := h.docker().ok(t, "run", "--rm", "-v", dir+":/bin2:ro", "-v", socket+":/var/run/docker.sock", "hello", "/bin2/ping", "/var/run/docker.sock")
		if !strings.HasSuffix(out, "OK") {
			t.Errorf("%s: %q", socket, out)
		}
	}
}

// TestShareNull: /dev/null hides a file of a container, as everywhere, and the container
// cannot close it to others.
func TestShareNull(t *testing.T) {
	h := machine(t)
	for _, mount := range [][]string{{"-v", "/dev/null:/etc/passwd"}, {"--mount", "type=bind,src=/dev/null,dst=/etc/passwd"}} {
		args := append(append([]string{"run", "--rm"}, mount...), "hello", "sh", "-c", "chmod 0 /etc/passwd 2>/dev/null; echo x >/etc/passwd; cat /etc/passwd; stat -c '%F %a' /etc/passwd")
		if got := h.docker().ok(t, args...); got != "character special file 666" {
			t.Errorf("%q: %q", mount, got)
		}
	}
}

// TestShareConfig narrows and widens what is shared.
func TestShareConfig(t *testing.T) {
	h := ownHome(t)
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c := h.berth()
	dir := project(t, map[string]string{"ro/f": "text", "rw/f": "", "other/f": ""})
	c.ok(t, "machine", "config", fmt.Sprintf("shares=[%s/rw, {path: %s/ro, read-only: true}]", dir, dir))
	c.ok(t, "restart")
	out := c.ok(t, "run", "--rm", "-v", dir+"/ro:/ro", "-v", dir+"/rw:/rw", "hello", "sh", "-c", "cat /ro/f; touch /ro/g || echo refused; touch /rw/g")
	if out != "textrefused" {
		t.Errorf("%q", out)
	}
	c.fails(t, `"shares"`, "run", "--rm", "-v", dir+"/other:/x", "hello", "true")
	c.ok(t, "machine", "config", "shares=["+dir+"/gone]")
	r := c.fails(t, "default.yaml", "restart")
	if !strings.Contains(r.err, dir+"/gone") {
		t.Errorf("%s\nit should name the folder", r)
	}
	c.ok(t, "machine", "config", "shares=[]")
	c.ok(t, "start")
	c.fails(t, `"shares"`, "run", "--rm", "-v", dir+":/x", "hello", "true")
	if out := c.ok(t, "status"); bytes.Contains([]byte(out), []byte("folder:")) {
		t.Errorf("status lists a folder:\n%s", out)
	}
}

// TestShareCopy copies into and out of the folders of a container that does not
// run, and whose mounts' places are not there yet.
func TestShareCopy(t *testing.T) { shareCopy(t, machine(t)) }

func shareCopy(t *testing.T, h *home) {
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			dir := project(t, map[string]string{"rw/f": "text", "ro/f": "text", "file": "single"})
			in := filepath.Join(t.TempDir(), "in")
			write(t, in, "new")
			id := c.ok(t, "create", "-v", dir+"/rw:/new/rw", "-v", dir+"/rw:/etc", "-v", dir+"/ro:/ro:ro", "-v", dir+"/file:/one", "hello")
			defer c.ok(t, "rm", id)
			for from, want := range map[string]string{"/new/rw/f": "text", "/etc/f": "text", "/ro/f": "text", "/one": "single"} {
				out := filepath.Join(t.TempDir(), "out")
				c.ok(t, "cp", id+":"+from, out)
				if got := read(t, out); got != want {
					t.Errorf("%s holds %q, want %q", from, got, want)
				}
			}
			for range 2 { // the second time the container's machine still believes in the file
				c.ok(t, "cp", in, id+":/new/rw/in")
				if got := read(t, dir+"/rw/in"); got != "new" {
					t.Errorf("on the host the file holds %q", got)
				}
				os.Remove(dir + "/rw/in")
			}
			c.fails(t, "mounted volume is marked read-only", "cp", in, id+":/ro/in")
		})
	}
}
