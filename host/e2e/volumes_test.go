//go:build linux

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSilentServer: a file server that takes connections and says nothing holds up
// only who wants its volume, and only for a while; one that is not there is told of
// at once. No password is told to anybody.
func TestSilentServer(t *testing.T) {
	c := machine(t).docker()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan net.Conn, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				close(asked)
				return
			}
			asked <- conn
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	c.ok(t, "volume", "create", "--opt", "type=nfs", "--opt", "device=:/exported", "--opt", "o=addr=host.docker.internal,vers=4.2,port="+port, "silent")
	c.ok(t, "volume", "create", "--opt", "type=cifs", "--opt", "device=//host.docker.internal/share", "--opt", "o=username=u,password=secret,port=1", "absent")
	t.Cleanup(func() { c.exec("volume", "rm", "-f", "silent", "absent") })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	waiting := c.command(ctx, "run", "--rm", "-v", "silent:/data", "hello", "true")
	var said strings.Builder
	waiting.Stderr = &said
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	select {
	case conn := <-asked:
		conns = append(conns, conn)
	case <-time.After(patience):
		t.Fatal("nobody asks the server")
	}
	if r := c.fails(t, "failed to mount local volume", "run", "--rm", "-v", "absent:/data", "hello", "true"); strings.Contains(r.err, "secret") {
		t.Errorf("%s", r)
	}
	if got := c.ok(t, "run", "--rm", "-v", "other:/data", "hello", "echo", "fine"); got != "fine" {
		t.Errorf("%q", got)
	}
	if got := c.ok(t, "volume", "ls", "-q"); !strings.Contains(got, "silent") || !strings.Contains(got, "other") {
		t.Errorf("volumes: %q", got)
	}
	c.ok(t, "volume", "rm", "other")
	if err := waiting.Wait(); err == nil || !strings.Contains(said.String(), "failed to mount local volume") || !strings.Contains(said.String(), "did not answer") {
		t.Errorf("run: %v, %s", err, said.String())
	}
	l.Close()
	for conn := range asked {
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		conn.Close()
	}
	eventually(t, "nobody waits for the server any more", func() bool { return c.exec("volume", "rm", "silent").code == 0 })
}

// TestNFS: a volume is a folder of a file server's.
func TestNFS(t *testing.T) {
	needFull(t) // the server comes from the module proxy
	c := machine(t).docker()
	dir := t.TempDir()
	server := exec.Command(built(t, filepath.Join("testdata", "nfs")), dir)
	stdin, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := server.StdoutPipe()
	if err == nil {
		err = server.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.exec("rm", "-f", "writer")
		c.exec("volume", "rm", "-f", "files", "read-only")
		stdin.Close()
		server.Wait()
	})
	port, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	port = strings.TrimSpace(port)
	create := func(name, more string) {
		t.Helper()
		c.ok(t, "volume", "create", "--opt", "type=nfs", "--opt", "device=:/", "--opt", "o=addr=host.docker.internal,vers=3,proto=tcp,nolock,port="+port+
			",mountport="+port+more, name)
	}
	create("files", ",rw")
	create("read-only", ",ro")
	if err := os.WriteFile(filepath.Join(dir, "host"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := c.ok(t, "run", "--name", "writer", "-v", "files:/data", "hello", "sh", "-c",
		"cat /data/host; mkdir /data/d && echo container >/data/d/f && mv /data/d/f /data/d/g; grep -c ' /data nfs ' /proc/mounts"); got != "from the host\n1" {
		t.Errorf("in the container: %q", got)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "d", "g")); err != nil || string(got) != "container\n" {
		t.Errorf("on the server: %q, %v", got, err)
	}
	c.fails(t, "Read-only file system", "run", "--rm", "-v", "read-only:/data", "hello", "touch", "/data/x")
	if got := c.ok(t, "start", "-a", "writer"); !strings.Contains(got, "from the host") {
		t.Errorf("started again: %q", got)
	}
	c.fails(t, "volume is in use", "volume", "rm", "files")
	c.ok(t, "rm", "writer")
	c.ok(t, "volume", "rm", "files", "read-only")
	if _, err := os.Stat(filepath.Join(dir, "d", "g")); err != nil {
		t.Errorf("the files went with the volume: %v", err)
	}
}

// smbConf has smbd serve a folder to one user, and keep to its own folders.
const smbConf = `[global]
smb ports = %[2]d
bind interfaces only = yes
interfaces = 127.0.0.1
private dir = %[1]s
pid directory = %[1]s
lock directory = %[1]s
state directory = %[1]s
cache directory = %[1]s
ncalrpc dir = %[1]s
log file = %[1]s/log
server role = standalone
disable spoolss = yes
load printers = no
[share]
path = %[1]s/share
read only = no
`

// TestCIFS: a volume is a folder of a Windows share, whose protocol is encrypted and
// signed by what the kernel loads for it.
func TestCIFS(t *testing.T) {
	needFull(t) // samba's server
	c := machine(t).docker()
	dir := t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	conf := filepath.Join(dir, "smb.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, smbConf, dir, port), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "share"), 0o700); err != nil {
		t.Fatal(err)
	}
	enrol := exec.Command("smbpasswd", "-c", conf, "-a", "-s", "root")
	enrol.Stdin = strings.NewReader("secret\nsecret\n")
	if out, err := enrol.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	server := exec.Command("/usr/sbin/smbd", "-F", "-s", conf, "--no-process-group")
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it ends its process group with itself
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.exec("volume", "rm", "-f", "windows", "sealed", "refused")
		server.Process.Signal(syscall.SIGTERM)
		server.Wait()
	})
	eventually(t, "the server answers", func() bool {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	create := func(name, options string) {
		t.Helper()
		c.ok(t, "volume", "create", "--opt", "type=cifs", "--opt", "device=//host.docker.internal/share", "--opt",
			fmt.Sprintf("o=username=root,port=%d,%s", port, options), name)
	}
	create("windows", "password=secret")
	create("sealed", "password=secret,vers=3.1.1,seal")
	create("refused", "password=wrong")
	for _, name := range []string{"windows", "sealed"} {
		if got := c.ok(t, "run", "--rm", "-v", name+":/data", "hello", "sh", "-c", "echo "+name+" >/data/f; cat /data/f; grep -c ' /data cifs ' /proc/mounts"); got != name+"\n1" {
			t.Errorf("in the container: %q", got)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "share", "f")); err != nil || string(got) != name+"\n" {
			t.Errorf("on the server: %q, %v", got, err)
		}
	}
	if r := c.fails(t, "permission denied", "run", "--rm", "-v", "refused:/data", "hello", "true"); strings.Contains(r.err, "wrong") {
		t.Errorf("%s", r)
	}
}
