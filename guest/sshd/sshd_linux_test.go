package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
)

func newKey(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "test")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return signer, string(pem.EncodeToMemory(block))
}

// testServer runs a server; when the test ends it must leave no goroutine.
type testServer struct {
	addr string
	key  ssh.Signer
	host ssh.PublicKey
}

func serveTest(t *testing.T) *testServer {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	hostSigner, hostPEM := newKey(t)
	user, _ := newKey(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, Options{HostKey: hostPEM, AuthorizedKey: string(ssh.MarshalAuthorizedKey(user.PublicKey())), Env: []string{"FROM_OPTIONS=1"}})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return &testServer{l.Addr().String(), user, hostSigner.PublicKey()}
}

func (s *testServer) dial(t *testing.T) *ssh.Client {
	t.Helper()
	c, err := ssh.Dial("tcp", s.addr, &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(s.key)}, HostKeyCallback: ssh.FixedHostKey(s.host), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func newSession(t *testing.T, c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestExec(t *testing.T) {
	c := serveTest(t).dial(t)
	for _, tc := range []struct {
		cmd, in     string
		out, errOut string
		status      int
		signal      string
	}{
		{cmd: "echo hello", out: "hello\n"},
		{cmd: "echo oops >&2; exit 3", errOut: "oops\n", status: 3},
		{cmd: "cat", in: strings.Repeat("x", 1<<20), out: strings.Repeat("x", 1<<20)},
		{cmd: "kill -TERM $$", signal: "TERM"},
		{cmd: "echo $A$FROM_OPTIONS $HOME $(pwd)", out: "b1 /root /\n"},
		{cmd: "true", in: "nobody reads this"},
		{cmd: "exit 255", status: 255},
		{cmd: "no-such-program", status: 127, errOut: "no-such-program"},
		{cmd: "(sleep 5; echo late) & echo early", out: "early\n"},
	} {
		s := newSession(t, c)
		var out, errOut bytes.Buffer
		s.Stdin, s.Stdout, s.Stderr = strings.NewReader(tc.in), &out, &errOut
		if err := s.Setenv("A", "b"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err := s.Run(tc.cmd)
		var exit *ssh.ExitError
		if errors.As(err, &exit) || tc.cmd == "true" && errors.Is(err, io.EOF) {
			err = nil // EOF is the client's word for input that nobody took
		}
		if exit == nil {
			exit = &ssh.ExitError{}
		}
		if err != nil || out.String() != tc.out || !strings.Contains(errOut.String(), tc.errOut) || exit.ExitStatus() != tc.status && tc.signal == "" || exit.Signal() != tc.signal {
			t.Errorf("%s: %q, %q, %v, %v", tc.cmd, out.String()[:min(99, out.Len())], errOut.String(), exit, err)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("%s took %s", tc.cmd, took)
		}
	}
}

func TestPTY(t *testing.T) {
	c := serveTest(t).dial(t)
	s := newSession(t, c)
	if err := s.RequestPty("xterm-test", 24, 80, ssh.TerminalModes{}); err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out lockedBuffer
	s.Stdout = &out
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "tty; echo $TERM; stty size; echo re''ady")
	out.waitFor(t, "ready")
	for _, want := range []string{"/dev/pts/", "xterm-test", "24 80"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in %q", want, out.String())
		}
	}
	if err := s.WindowChange(50, 132); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "sleep 0.1; stty size; echo se''cond")
	out.waitFor(t, "second")
	if !strings.Contains(out.String(), "50 132") {
		t.Errorf("the window did not change: %q", out.String())
	}
	fmt.Fprintln(in, "sleep 1000")
	time.Sleep(50 * time.Millisecond)
	in.Write([]byte{3}) // interrupt
	fmt.Fprintln(in, "exit 7")
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		t.Errorf("%v", err)
	}
}

func TestSignal(t *testing.T) {
	c := serveTest(t).dial(t)
	s := newSession(t, c)
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("echo up; exec sleep 100"); err != nil {
		t.Fatal(err)
	}
	io.ReadFull(out, make([]byte, 3))
	if err := s.Signal(ssh.SIGINT); err != nil {
		t.Fatal(err)
	}
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.Signal() != "INT" {
		t.Errorf("%v", err)
	}
}

// A client that goes away leaves no process behind.
func TestDisconnectEndsProcesses(t *testing.T) {
	srv := serveTest(t)
	for _, withPTY := range []bool{false, true} {
		c := srv.dial(t)
		s := newSession(t, c)
		if withPTY {
			s.RequestPty("x", 1, 1, nil)
		}
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start("echo $$; exec sleep 1000"); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 20)
		n, err := out.Read(line)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		for i := 0; ; i++ {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
				break
			}
			if i == 100 {
				t.Fatalf("process %d lives on (pty: %v)", pid, withPTY)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func TestForward(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			c.Write(b)
			c.Close()
		}
	}()
	c := serveTest(t).dial(t)
	conn, err := c.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("ping"))
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if b, err := io.ReadAll(conn); string(b) != "ping" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	conn.Close()
	if _, err := c.Dial("tcp", "127.0.0.1:1"); err == nil {
		t.Error("connected to a closed port")
	}
	if _, _, err := c.OpenChannel("x11", nil); err == nil {
		t.Error("an unknown channel was opened")
	}
}

func TestOnlyTheAuthorizedKey(t *testing.T) {
	s := serveTest(t)
	other, _ := newKey(t)
	for name, auth := range map[string][]ssh.AuthMethod{
		"another key": {ssh.PublicKeys(other)},
		"a password":  {ssh.Password("")},
		"nothing":     nil,
	} {
		c, err := ssh.Dial("tcp", s.addr, &ssh.ClientConfig{User: "root", Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second})
		if err == nil {
			c.Close()
			t.Errorf("%s was let in", name)
		}
	}
}

// Requests in an impossible order or form get a refusal, and hurt nobody.
func TestBadRequests(t *testing.T) {
	c := serveTest(t).dial(t)
	ch, reqs, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	for _, r := range []struct {
		name    string
		payload []byte
	}{
		{"pty-req", []byte{1, 2}}, {"window-change", nil}, {"exec", []byte{0, 0, 0, 9, 'x'}}, {"env", nil},
		{"env", ssh.Marshal(struct{ N, V string }{"A=B", "x"})}, {"env", ssh.Marshal(struct{ N, V string }{"A", "x\x00y"})},
		{"env", ssh.Marshal(struct{ N, V string }{"A", strings.Repeat("x", maxEnvBytes)})},
		{"exec", ssh.Marshal(struct{ C string }{"a\x00b"})},
		{"signal", ssh.Marshal(struct{ N string }{"TERM"})}, {"subsystem", ssh.Marshal(struct{ N string }{"sftp"})}, {"auth-agent-req@openssh.com", nil},
	} {
		if ok, err := ch.SendRequest(r.name, true, r.payload); ok || err != nil {
			t.Errorf("%s %q: %v, %v", r.name, r.payload[:min(20, len(r.payload))], ok, err)
		}
	}
	if ok, err := ch.SendRequest("exec", true, ssh.Marshal(struct{ C string }{"sleep 100"})); !ok || err != nil {
		t.Fatalf("exec: %v, %v", ok, err)
	}
	for _, name := range []string{"exec", "shell", "pty-req", "window-change"} {
		if ok, _ := ch.SendRequest(name, true, ssh.Marshal(struct{ C string }{"true"})); ok {
			t.Errorf("a second %s was accepted", name)
		}
	}
	if ok, _ := ch.SendRequest("signal", true, ssh.Marshal(struct{ N string }{"NONSENSE"})); ok {
		t.Error("a nonsense signal was sent")
	}
	ch.Close()
}

func TestOptions(t *testing.T) {
	_, hostPEM := newKey(t)
	user, _ := newKey(t)
	line := string(ssh.MarshalAuthorizedKey(user.PublicKey()))
	for _, o := range []Options{{}, {HostKey: hostPEM}, {HostKey: "x", AuthorizedKey: line}, {HostKey: hostPEM, AuthorizedKey: line + line}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := Serve(context.Background(), l, o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

func FuzzRequests(f *testing.F) {
	f.Add("pty-req", ssh.Marshal(ptyRequest{Term: "x"}))
	f.Add("env", ssh.Marshal(struct{ N, V string }{"A", "b"}))
	f.Add("window-change", ssh.Marshal(windowChange{1, 2, 3, 4}))
	f.Add("exec", ssh.Marshal(struct{ C string }{"x"}))
	f.Fuzz(func(t *testing.T, name string, payload []byte) {
		ss := &session{s: &server{}}
		for range 2 {
			ss.prepare(context.Background(), &ssh.Request{Type: name, Payload: payload}, nil)
			ss.control(&ssh.Request{Type: name, Payload: payload})
		}
		for _, v := range ss.env {
			if strings.ContainsRune(v, 0) {
				t.Errorf("%q", v)
			}
		}
	})
}

// lockedBuffer is written by one goroutine and looked at by another.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *lockedBuffer) waitFor(t *testing.T, want string) {
	t.Helper()
	for range 500 {
		if strings.Contains(b.String(), want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%q did not come: %q", want, b.String())
}
