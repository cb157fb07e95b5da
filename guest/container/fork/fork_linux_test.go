package fork

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// shell is a Command that runs a script with its output in a pipe.
func shell(t testing.TB, script string, edit func(*Command)) (string, error) {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox-static")
	}
	program, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c := Command{Exec: program, Argv: []string{"busybox", "sh", "-c", script}, Env: []string{"A=b"}, Files: []*os.File{null, w, w}}
	if edit != nil {
		edit(&c)
	}
	pid, pidfd, err := Start(c)
	w.Close()
	if err != nil {
		return "", err
	}
	defer pidfd.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	if ws != 0 {
		t.Errorf("status %#x: %s", ws, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func TestStart(t *testing.T) {
	got, err := shell(t, "echo $A; cd /proc/self/fd && echo *; grep -E 'Sig(Blk|Cgt)' /proc/self/status", nil)
	// 3 is the shell's own, for the glob. Nothing is blocked or caught.
	want := "b\n0 1 2 3\nSigBlk:\t0000000000000000\nSigCgt:\t0000000000000000"
	if err != nil || got != want {
		t.Errorf("%v\n%q\nwant\n%q", err, got, want)
	}
}

// TestDescriptors keeps descriptors that are not close-on-exec from leaking, and
// puts those asked for into their places whatever their numbers were.
func TestDescriptors(t *testing.T) {
	leak, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	var files []*os.File
	for _, name := range []string{"three", "four", "five"} {
		f, err := os.CreateTemp(t.TempDir(), name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(name); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	got, err := shell(t, "cat <&3; cat <&4; cat <&5; cd /proc/self/fd && echo ' ' *", func(c *Command) { c.Files = append(c.Files, files...) })
	if err != nil || got != "threefourfive  0 1 2 3 4 5 6" {
		t.Errorf("%q %v", got, err)
	}
}

func TestNamespaces(t *testing.T) {
	needRoot(t)
	own := func(name string) string {
		s, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	got, err := shell(t, "for n in uts ipc net cgroup mnt; do readlink /proc/self/ns/$n; done; echo $$", func(c *Command) {
		c.Flags = unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS | unix.CLONE_NEWPID
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(got)
	for i, name := range []string{"uts", "ipc", "net", "cgroup", "mnt"} {
		if lines[i] == own(name) {
			t.Errorf("the %s namespace is not new", name)
		}
	}
	if lines[5] != "1" {
		t.Errorf("process %s", lines[5])
	}
}

// TestJoin joins all kinds of namespaces of a process, also its user namespace, and
// leaves this program where it was.
func TestJoin(t *testing.T) {
	needRoot(t)
	before := namespaces(t, "self")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox-static")
	}
	other := exec.Command(busybox, "sleep", "1000")
	other.SysProcAttr = &unix.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID,
		UidMappings: mapping(1000), GidMappings: mapping(1000),
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	fd, err := unix.PidfdOpen(other.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	got, err := shell(t, "id -u; for n in user net uts ipc pid; do readlink /proc/self/ns/$n; done", func(c *Command) {
		c.Join = []Namespace{
			{pidfd, unix.CLONE_NEWPID},
			{pidfd, unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER},
		}
		c.Env = append(c.Env, "PATH=/bin:/usr/bin")
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "0\n" + strings.Join(namespacesOf(t, other.Process.Pid), "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if after := namespaces(t, "self"); after != before {
		t.Errorf("this program has moved:\n%s\nbefore\n%s", after, before)
	}
}

func mapping(host int) []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: 0, HostID: host, Size: 1}}
}

func namespaces(t *testing.T, pid string) string {
	t.Helper()
	var all []string
	for _, n := range []string{"user", "net", "uts", "ipc", "pid", "pid_for_children"} {
		s, err := os.Readlink("/proc/" + pid + "/ns/" + n)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return strings.Join(all, "\n")
}

func namespacesOf(t *testing.T, pid int) []string {
	t.Helper()
	return strings.Split(namespaces(t, strconv.Itoa(pid)), "\n")[:5]
}

func TestNewUser(t *testing.T) {
	needRoot(t)
	got, err := shell(t, "id -u; id -g; cat /proc/self/uid_map | tr -s ' '; grep CapEff /proc/self/status", func(c *Command) {
		c.Flags = unix.CLONE_NEWUSER
		c.Env = append(c.Env, "PATH=/bin:/usr/bin")
		c.MapIDs = func(pid int) error {
			return errors.Join(
				os.WriteFile("/proc/"+strconv.Itoa(pid)+"/uid_map", []byte("0 1000 5"), 0),
				os.WriteFile("/proc/"+strconv.Itoa(pid)+"/gid_map", []byte("0 2000 5"), 0))
		}
	})
	if err != nil || !strings.HasPrefix(got, "0\n0\n 0 1000 5\nCapEff:\t000001ff") {
		t.Errorf("%q %v", got, err)
	}
	refusal := errors.New("no")
	if _, err := shell(t, "true", func(c *Command) {
		c.Flags, c.MapIDs = unix.CLONE_NEWUSER, func(int) error { return refusal }
	}); !errors.Is(err, refusal) {
		t.Errorf("error %v", err)
	}
}

// TestErrors reports what goes wrong in the child, by step, and leaves no process.
func TestErrors(t *testing.T) {
	needRoot(t)
	dir, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	script, err := os.CreateTemp(t.TempDir(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer script.Close()
	for _, test := range []struct {
		edit func(*Command)
		want string
	}{
		{func(c *Command) { c.Exec = script }, "execute"},
		{func(c *Command) { c.Exec = dir }, "execute"},
		{func(c *Command) { c.Join = []Namespace{{dir, unix.CLONE_NEWNET}} }, "join namespace 0"},
		{func(c *Command) { c.Join = []Namespace{{dir, unix.CLONE_NEWPID}} }, "join namespace pid"},
		{func(c *Command) { c.Cgroup = dir }, "clone"},
		{func(c *Command) { c.Argv = []string{"\x00"} }, "arguments"},
		{func(c *Command) { c.Env = []string{"\x00"} }, "environment"},
		{func(c *Command) { c.Join = make([]Namespace, 17) }, "too many"},
	} {
		if _, err := shell(t, "true", test.edit); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("want %q: %v", test.want, err)
		}
	}
	var ws unix.WaitStatus
	if pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a process is left: %d %v", pid, err)
	}
}

// TestConcurrent starts processes from many goroutines while signals arrive and
// memory is allocated: the moment in which stack and memory are shared must not
// be disturbed.
func TestConcurrent(t *testing.T) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	defer signal.Stop(signals)
	stop := make(chan struct{})
	var noise sync.WaitGroup
	noise.Go(func() {
		var garbage [][]byte
		for {
			select {
			case <-stop:
				return
			case <-signals:
			default:
				_ = unix.Kill(os.Getpid(), unix.SIGUSR1)
				garbage = append(garbage, make([]byte, 10000))
				if len(garbage) > 1000 {
					garbage = nil
				}
			}
		}
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if got, err := shell(t, "echo $A", nil); got != "b" || err != nil {
					t.Errorf("%q %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	noise.Wait()
}
