package git

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/build/git/call"
	"github.com/berthvm/berth/guest/build/step"
)

// TestRead: what a command may see follows from BuildKit's options alone.
func TestRead(t *testing.T) {
	for _, c := range []struct {
		args, env string
		want      string // the directories, the network, the agent and the known hosts
		bad       bool
	}{
		{args: "-c protocol.file.allow=user --git-dir /s/1/fs init --bare", want: "[/s/1/fs] false  "},
		{args: "-c a=b ls-remote -- https://h/r.git main", want: "[] true  "},
		{args: "-c a=b --git-dir /s/1/fs fetch --depth=1 origin", env: "GIT_SSH_COMMAND=ssh -F /dev/null -o UserKnownHostsFile=/tmp/kh|SSH_AUTH_SOCK=/tmp/a/sock",
			want: "[/s/1/fs] true /tmp/a/sock /tmp/kh"},
		{args: "-c a=b --work-tree /s/2/fs --git-dir /s/2/fs/.git checkout FETCH_HEAD", want: "[/s/2/fs] false  "},
		{args: "-c a=b --work-tree /s/2/fs --git-dir /s/1/fs submodule update --init", env: "GIT_SSH_COMMAND=ssh -o StrictHostKeyChecking=no", want: "[/s/2/fs /s/1/fs] true  "},
		{args: "--work-tree /s/2 --git-dir /s/22 log", want: "[/s/2 /s/22] false  "},
		{args: "", bad: true},
		{args: "-c", bad: true},
		{args: "-c a=b", bad: true},
		{args: "--exec-path=/tmp fetch", bad: true},
		{args: "--exec-path /tmp fetch", bad: true},
		{args: "--git-dir ../x log", bad: true},
		{args: "--git-dir /a/../b log", bad: true},
		{args: "--git-dir / log", bad: true},
		{args: "log", env: "SSH_AUTH_SOCK=relative", bad: true},
	} {
		p, err := read(call.Call{Args: strings.Fields(c.args), Env: strings.Split(c.env, "|")})
		if c.bad {
			if err == nil {
				t.Errorf("%q is taken", c.args)
			}
			continue
		}
		if got := fmt.Sprint(p.directories(""), p.network(), " ", p.socket, " ", p.knownHosts); err != nil || got != c.want {
			t.Errorf("%q: %q, %v, want %q", c.args, got, err, c.want)
		}
	}
}

// begin makes a call, and returns the connection and the output.
func begin(t *testing.T, socket string, c call.Call) (conn int, output *os.File) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := unix.Sendmsg(fd, c.Encode(), unix.UnixRights(int(w.Fd()), int(w.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	return fd, r
}

// ask makes a call and returns what comes back.
func ask(t *testing.T, socket string, c call.Call) (output string, code int) {
	t.Helper()
	fd, out := begin(t, socket, c)
	defer unix.Close(fd)
	defer out.Close()
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	var answer [2]byte
	n, err := unix.Read(fd, answer[:])
	if err != nil || n != 1 {
		t.Fatalf("an answer of %d bytes, %v", n, err)
	}
	return string(text), int(answer[0])
}

func serve(t *testing.T, run func(context.Context, step.Tool) (int, error)) (*Server, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "git.sock")
	s, err := Serve(Options{Log: slog.New(slog.DiscardHandler), Socket: socket, Env: []string{"https_proxy=p", "no_proxy=n"}, Run: run})
	if err != nil {
		t.Fatal(err)
	}
	return s, socket
}

// TestServer: a call gets git's output and code, and the container what it needs.
func TestServer(t *testing.T) {
	var got step.Tool
	s, socket := serve(t, func(_ context.Context, tool step.Tool) (int, error) {
		got = tool
		fmt.Fprint(tool.Stdout, "out ")
		fmt.Fprint(tool.Stderr, "err")
		return 3, nil
	})
	defer s.Close()
	repo := t.TempDir()
	checkout := filepath.Join(repo, "w/.git")
	binds := func() (list []string) {
		for _, b := range got.Binds[1:] {
			if b.Source != b.Dest || b.Readonly {
				t.Errorf("bind %+v", b)
			}
			list = append(list, b.Source)
		}
		return list
	}
	text, code := ask(t, socket, call.Call{Dir: "/", Args: []string{"--git-dir", repo, "log"}, Env: []string{"no_proxy=other"}})
	if text != "out err" || code != 3 {
		t.Errorf("the call ended with %d and %q", code, text)
	}
	if !slices.Equal(got.Args, []string{"git", "--git-dir", repo, "log"}) || !slices.Equal(got.Env, []string{"no_proxy=other", "https_proxy=p"}) ||
		got.Network || !slices.Equal(binds(), []string{repo}) || got.Root != Root {
		t.Errorf("git ran as %+v", got)
	}

	// The origin that a call has set is there for the calls that follow, in that
	// repository.
	work := []string{"--work-tree", filepath.Dir(checkout), "--git-dir", checkout}
	ask(t, socket, call.Call{Args: append(work, "remote", "add", "origin", "file:///origin")})
	ask(t, socket, call.Call{Args: append(work, "fetch", "origin")})
	if !slices.Equal(binds(), []string{filepath.Dir(checkout), "/origin"}) || !slices.Equal(got.Args[:3], []string{"git", "-C", filepath.Dir(checkout)}) {
		t.Errorf("a fetch in the checkout ran as %+v", got)
	}
	ask(t, socket, call.Call{Args: []string{"--git-dir", repo, "fetch", "origin"}})
	if !slices.Equal(binds(), []string{repo}) {
		t.Errorf("another repository's fetch sees %q", binds())
	}

	got = step.Tool{}
	if text, code := ask(t, socket, call.Call{Args: []string{"--exec-path", "/x", "log"}}); code != failed || !strings.Contains(text, "unexpected option") || got.Args != nil {
		t.Errorf("a call that is not BuildKit's ended with %d and %q", code, text)
	}
}

// TestServerEnds: who leaves takes git with it, and so does the end of the server.
func TestServerEnds(t *testing.T) {
	begun, ended := make(chan struct{}, 2), make(chan error, 2)
	s, socket := serve(t, func(ctx context.Context, _ step.Tool) (int, error) {
		begun <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return 0, ctx.Err()
	})
	wait := func(what string) {
		t.Helper()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatalf("git runs on after %s", what)
		}
	}
	conn, out := begin(t, socket, call.Call{Args: []string{"log"}})
	defer out.Close()
	<-begun
	unix.Close(conn)
	wait("its caller left")

	conn, out = begin(t, socket, call.Call{Args: []string{"log"}})
	defer unix.Close(conn)
	defer out.Close()
	<-begun
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wait("the server closed")
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is left")
	}
}
