package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/build/git/call"
	"github.com/berthvm/berth/guest/build/step"
)

// Root is the directory of the machine with git's root file system. It is missing
// where there is no such machine.
const Root = "/usr/lib/berth/git"

// certificates is the list of authorities that the machine trusts, its host's
// included, and where git looks for it.
const certificates = "/etc/ssl/certs/ca-certificates.crt"

// Options configure Serve.
type Options struct {
	Log    *slog.Logger
	Socket string   // where calls come in: call.Socket
	Env    []string // of git besides what BuildKit gives it: the way through a proxy
	// Run is (*step.Executor).RunTool.
	Run func(context.Context, step.Tool) (exit int, err error)
}

// Server runs git for cmd/berth-git. It is safe for concurrent use.
type Server struct {
	opts   Options
	listen *os.File
	stop   context.CancelFunc
	served sync.WaitGroup

	mu      sync.Mutex
	sources map[string]string // directories that are the origin of a repository, by its own
}

// Serve begins to take calls, until Close.
func Serve(o Options) (*Server, error) {
	if err := os.Remove(o.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("listen for git: %w", err)
	}
	s := &Server{opts: o, listen: os.NewFile(uintptr(fd), o.Socket), sources: map[string]string{}}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: o.Socket})
	if err == nil {
		err = os.Chmod(o.Socket, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		s.listen.Close()
		return nil, fmt.Errorf("listen for git on %s: %w", o.Socket, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.served.Go(func() { s.accept(ctx) })
	return s, nil
}

// Close ends all calls.
func (s *Server) Close() error {
	s.stop()
	err := s.listen.Close()
	s.served.Wait()
	return errors.Join(err, os.Remove(s.opts.Socket))
}

func (s *Server) accept(ctx context.Context) {
	raw, err := s.listen.SyscallConn()
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		var fd int
		var accepted error
		err := raw.Read(func(listen uintptr) bool {
			fd, _, accepted = unix.Accept4(int(listen), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return accepted != unix.EAGAIN
		})
		switch {
		case err != nil:
			return // closed
		case accepted == unix.EMFILE || accepted == unix.ENFILE:
			time.Sleep(100 * time.Millisecond)
		case accepted == nil:
			conn := os.NewFile(uintptr(fd), "git")
			s.served.Go(func() { s.serve(ctx, conn) })
		}
	}
}

// serve carries one call out.
func (s *Server) serve(ctx context.Context, conn *os.File) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })()
	c, files, err := receive(conn)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		s.opts.Log.Warn("cannot read a call of git", "error", err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.served.Go(func() { // nothing more comes: this waits for the caller's end
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	})
	code, err := s.run(ctx, c, files[0], files[1])
	if err != nil {
		if ctx.Err() == nil {
			fmt.Fprintln(files[1], "cannot run git:", err)
		}
		code = failed
	}
	// The output's end comes before the code.
	for _, f := range files {
		f.Close()
	}
	_, _ = conn.Write([]byte{byte(code)})
}

// failed is git's exit code for what went wrong before it began.
const failed = 128

func (s *Server) run(ctx context.Context, c call.Call, stdout, stderr *os.File) (int, error) {
	p, err := read(c)
	if err != nil {
		return failed, err
	}
	return s.opts.Run(ctx, s.tool(c, p, stdout, stderr))
}

// tool is the container for a call.
func (s *Server) tool(c call.Call, p plan, stdout, stderr *os.File) step.Tool {
	t := step.Tool{
		Root: Root, Args: append([]string{"git"}, c.Args...), Env: s.env(c.Env), Network: p.network(),
		Scratch: []string{"/tmp", "/var/lib"}, Stdout: stdout, Stderr: stderr,
		Binds: []step.Bind{{Source: certificates, Dest: certificates, Readonly: true}},
	}
	if p.workTree != "" { // where BuildKit starts git, if anywhere
		t.Args = append([]string{"git", "-C", p.workTree}, c.Args...)
	}
	for _, dir := range p.directories(s.source(p)) {
		t.Binds = append(t.Binds, step.Bind{Source: dir, Dest: dir})
	}
	if p.socket != "" {
		t.Binds = append(t.Binds, step.Bind{Source: p.socket, Dest: p.socket})
	}
	if p.knownHosts != "" {
		t.Binds = append(t.Binds, step.Bind{Source: p.knownHosts, Dest: p.knownHosts, Readonly: true})
	}
	return t
}

// env adds the machine's settings to those of BuildKit.
func (s *Server) env(given []string) []string {
	out := append([]string(nil), given...)
	for _, kv := range s.opts.Env {
		name, _, _ := strings.Cut(kv, "=")
		set := false
		for _, g := range given {
			set = set || strings.HasPrefix(g, name+"=")
		}
		if !set {
			out = append(out, kv)
		}
	}
	return out
}

// source returns the directory that p's repository has as its origin, or "". It
// goes by what BuildKit has asked for: the repository's own configuration may have
// been changed by who filled it.
func (s *Server) source(p plan) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dir := p.source(); dir != "" {
		for gone := range s.sources {
			if _, err := os.Lstat(gone); err != nil {
				delete(s.sources, gone)
			}
		}
		s.sources[filepath.Clean(p.gitDir)] = dir
	}
	return s.sources[p.gitDir]
}

// receive reads a call and its two descriptors.
func receive(conn *os.File) (c call.Call, files []*os.File, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return c, nil, err
	}
	buf, oob := make([]byte, call.MaxSize+1), make([]byte, unix.CmsgSpace(4*8))
	var n, oobn, flags int
	rerr := raw.Read(func(fd uintptr) bool {
		n, oobn, flags, _, err = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN
	})
	if err := errors.Join(rerr, err); err != nil {
		return c, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return c, nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return c, files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "output"))
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(files) != 2 {
		return c, files, call.ErrBroken
	}
	c, err = call.Decode(bytes.Clone(buf[:n]))
	return c, files, err
}
