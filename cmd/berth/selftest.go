package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berthvm/berth/host/machine"
)

const (
	// stepTimeout bounds one command of the self-test; an emulated guest is slow.
	stepTimeout = 4 * time.Minute
	// clockSkew is how far the guest's clock may be from the host's, in whole
	// seconds, with the time that asking for it takes.
	clockSkew = 5 * time.Second
	// token is what goes through the machine and must come back.
	token = "berth-self-test-7c1f"
)

// errSkip is wrapped by the reason why a step does not apply to this host.
var errSkip = errors.New("skipped")

func skip(why string) error { return fmt.Errorf("%w: %s", errSkip, why) }

// step is one thing that the self-test tries. try returns what it found.
type step struct {
	name   string
	try    func(*trial, context.Context) (detail string, err error)
	remedy string
}

// steps are in the order in which they depend on each other.
var steps = []step{
	{"boot", (*trial).start, `Run "berth doctor", which looks for the cause.`},
	{"container", (*trial).container, ""},
	{"clock", (*trial).clock, ""},
	{"shell in the machine", (*trial).shell, ""},
	{"host folder", (*trial).folder, `The folder for temporary files must be shared: see "shares" in "berth machine config".`},
	{"published port", (*trial).port, "Look for a firewall on this host that keeps programs from its own loopback."},
	{"host's loopback", (*trial).loopback, "Look for a firewall on this host that keeps programs from its own loopback."},
	{"image build", (*trial).build, ""},
	{"registry on localhost:5000", (*trial).registry, ""},
	{"docker client", (*trial).docker, ""},
	{"memory given back", (*trial).memory, ""},
	{"pause and resume", (*trial).pause, ""},
	{"saved state", (*trial).save, ""},
	{"data after a restart", (*trial).restart, ""},
	{"stop", (*trial).stop, ""},
}

// trial is a machine of its own, with a home of its own: the user's machines and
// docker's configuration are not touched.
type trial struct {
	self   string // this program
	home   machine.Home
	dir    string // what is shared with it
	env    []string
	broken bool // it does not boot: nothing else is tried
}

// selfTest tries what the machine is for, on a machine of its own, and calls tell
// with each finding as soon as there is one.
func (a *app) selfTest(ctx context.Context, tell func(finding)) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find this program: %w", err)
	}
	root, err := os.MkdirTemp("", "berth-selftest-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	t, err := newTrial(self, root)
	if err != nil {
		return err
	}
	for _, s := range steps {
		if ctx.Err() != nil {
			break
		}
		tell(t.run(ctx, s))
	}
	// Also when it was interrupted: nothing is left behind.
	tell(t.run(context.WithoutCancel(ctx), step{"nothing left behind", (*trial).clear, "Remove " + root + "."}))
	return context.Cause(ctx)
}

func newTrial(self, root string) (*trial, error) {
	t := &trial{self: self, dir: filepath.Join(root, "shared")}
	if err := os.Mkdir(t.dir, 0o755); err != nil {
		return nil, err
	}
	own := map[string]string{machine.EnvHome: filepath.Join(root, "berth"), "DOCKER_CONFIG": filepath.Join(root, "docker"),
		"BERTH_MACHINE": "", "DOCKER_HOST": "", "DOCKER_CONTEXT": ""}
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		if _, ok := own[key]; !ok {
			t.env = append(t.env, kv)
		}
	}
	for key, value := range own {
		if value != "" {
			t.env = append(t.env, key+"="+value)
		}
	}
	var err error
	t.home, err = machine.Locate(func(key string) string { return own[key] })
	return t, err
}

func (t *trial) run(ctx context.Context, s step) finding {
	if t.broken && s.name != "nothing left behind" {
		return finding{Check: s.name, Result: skipped, Detail: "the machine does not boot"}
	}
	began := time.Now()
	detail, err := s.try(t, ctx)
	took := time.Since(began).Round(100 * time.Millisecond)
	switch {
	case errors.Is(err, errSkip):
		return finding{Check: s.name, Result: skipped, Detail: strings.TrimPrefix(err.Error(), errSkip.Error()+": ")}
	case err != nil:
		t.broken = t.broken || s.name == "boot"
		return finding{s.name, bad, err.Error(), s.remedy}
	}
	return finding{Check: s.name, Result: good, Detail: fmt.Sprintf("%s (%s)", detail, took)}
}

// berth runs this program on the machine of the trial and returns what it prints.
func (t *trial) berth(ctx context.Context, args ...string) (string, error) {
	return t.command(ctx, append([]string{t.self}, args...)...)
}

func (t *trial) command(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = t.env, &out, &errs, time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s: not done after %s", strings.Join(argv[1:], " "), stepTimeout)
	}
	if err != nil {
		said := strings.TrimSpace(errs.String())
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv[1:], " "), err, said[strings.LastIndexByte(said, '\n')+1:])
	}
	return strings.TrimSpace(out.String()), nil
}

// expect is an error unless the output is the token.
func expect(got string, err error) error {
	if err == nil && got != token {
		err = fmt.Errorf("%q came back instead of %q", got, token)
	}
	return err
}

func (t *trial) machine() (machine.Machine, error) { return t.home.Machine(machine.Default) }

func (t *trial) start(ctx context.Context) (string, error) {
	if _, err := t.berth(ctx, "start"); err != nil {
		return "", err
	}
	m, err := t.machine()
	if err != nil {
		return "", err
	}
	s := m.LastState()
	return strings.TrimSpace(s.Hypervisor + " " + acceleration(s)), nil
}

func (t *trial) container(ctx context.Context) (string, error) {
	return "ran and was removed", expect(t.berth(ctx, "run", "--rm", "hello", "echo", token))
}

func (t *trial) clock(ctx context.Context) (string, error) {
	out, err := t.berth(ctx, "ssh", "--", "date", "+%s")
	if err != nil {
		return "", err
	}
	seconds, err := strconv.ParseInt(out, 10, 64)
	if err != nil {
		return "", fmt.Errorf("the guest's date is %q", out)
	}
	off := time.Since(time.Unix(seconds, 0)).Round(time.Second)
	if off.Abs() > clockSkew {
		return "", fmt.Errorf("the guest's clock is off by %s", off)
	}
	return "the guest's is the host's", nil
}

func (t *trial) shell(ctx context.Context) (string, error) {
	return "a command ran there by ssh", expect(t.berth(ctx, "ssh", "--", "echo", token))
}

// folder reads a file of the host in a container, and one of a container on the host.
func (t *trial) folder(ctx context.Context) (string, error) {
	if err := os.WriteFile(filepath.Join(t.dir, "in"), []byte(token), 0o644); err != nil {
		return "", err
	}
	if _, err := t.berth(ctx, "run", "--rm", "-v", t.dir+":/shared", "hello", "cp", "/shared/in", "/shared/out"); err != nil {
		return "", err
	}
	out, err := os.ReadFile(filepath.Join(t.dir, "out"))
	return "read and written on both sides", expect(string(out), err)
}

func (t *trial) port(ctx context.Context) (string, error) {
	const serve = "echo " + token + " >/tmp/token; exec httpd -f -h /tmp"
	if _, err := t.berth(ctx, "run", "-d", "--init", "--name", "web", "-p", "127.0.0.1:0:80", "hello", "sh", "-c", serve); err != nil {
		return "", err
	}
	address, err := t.berth(ctx, "port", "web", "80/tcp")
	if err != nil {
		return "", err
	}
	address, _, _ = strings.Cut(address, "\n")
	if err := expect(fetch(ctx, "http://"+address+"/token")); err != nil {
		return "", err
	}
	if _, err := t.berth(ctx, "rm", "-f", "web"); err != nil {
		return "", err
	}
	if conn, err := net.DialTimeout("tcp", address, time.Second); err == nil {
		conn.Close()
		return "", fmt.Errorf("%s is still open after its container is gone", address)
	}
	return address + " answered, and is closed again", nil
}

// fetch gets a page, of a server that may take a moment to listen.
func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
			resp.Body.Close()
			return strings.TrimSpace(string(body)), err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// loopback has a container reach a server on this host.
func (t *trial) loopback(ctx context.Context) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, token) })}
	go server.Serve(l)
	defer server.Close()
	url := fmt.Sprintf("http://host.docker.internal:%d/", l.Addr().(*net.TCPAddr).Port)
	return "a container reaches it as host.docker.internal", expect(t.berth(ctx, "run", "--rm", "hello", "wget", "-q", "-O", "-", url))
}

func (t *trial) build(ctx context.Context) (string, error) {
	dir := filepath.Join(t.dir, "build")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM hello\nRUN echo "+token+" >/token\n"), 0o644); err != nil {
		return "", err
	}
	if _, err := t.berth(ctx, "build", "-q", "-t", "berth-self-test", dir); err != nil {
		return "", err
	}
	return "the built image runs", expect(t.berth(ctx, "run", "--rm", "berth-self-test", "cat", "/token"))
}

// registry pushes an image to a registry of the host and pulls it back, where there is one.
func (t *trial) registry(ctx context.Context) (string, error) {
	const host, image = "localhost:5000", "localhost:5000/berth-self-test:latest"
	conn, err := net.DialTimeout("tcp", host, time.Second)
	if err != nil {
		return "", skip("nothing listens there")
	}
	conn.Close()
	for _, args := range [][]string{{"tag", "hello", image}, {"push", "-q", image}, {"rmi", image}, {"pull", "-q", image}} {
		if _, err := t.berth(ctx, args...); err != nil {
			return "", err
		}
	}
	return "pushed, removed and pulled an image", expect(t.berth(ctx, "run", "--rm", image, "echo", token))
}

func (t *trial) docker(ctx context.Context) (string, error) {
	program, err := exec.LookPath("docker")
	if err != nil {
		return "", skip("there is none in PATH")
	}
	m, err := t.machine()
	if err != nil {
		return "", err
	}
	out, err := t.command(ctx, program, "--context", m.ContextName(), "version", "--format", "{{.Client.Version}} speaks to {{.Server.Os}}/{{.Server.Arch}}")
	return out, err
}

// memoryBlock is what a container takes and gives back, in MiB; memorySlack is how
// much of it may stay.
const memoryBlock, memorySlack = 256, 96

func (t *trial) memory(ctx context.Context) (string, error) {
	m, err := t.machine()
	if err != nil {
		return "", err
	}
	pid := m.LastState().PID
	before, err := residentMiB(pid)
	if err != nil {
		return "", err
	}
	hold := fmt.Sprintf("dd if=/dev/zero of=/dev/shm/x bs=1M count=%d 2>/dev/null && echo %s && sleep 3600", memoryBlock, token)
	if _, err := t.berth(ctx, "run", "-d", "--init", "--name", "eater", "--shm-size", "300m", "hello", "sh", "-c", hold); err != nil {
		return "", err
	}
	high, err := t.awaitMemory(ctx, pid, func(now int64) bool { return now > before+memoryBlock-memorySlack })
	if err != nil {
		return "", fmt.Errorf("a container with %d MiB made no difference: %w", memoryBlock, err)
	}
	if _, err := t.berth(ctx, "rm", "-f", "eater"); err != nil {
		return "", err
	}
	low, err := t.awaitMemory(ctx, pid, func(now int64) bool { return now < before+memorySlack })
	if err != nil {
		return "", fmt.Errorf("the host does not get back what a container has freed: %w", err)
	}
	return fmt.Sprintf("%d MiB with a container of %d MiB, %d MiB after it", high, memoryBlock, low), nil
}

func (t *trial) awaitMemory(ctx context.Context, pid int, enough func(mib int64) bool) (int64, error) {
	for deadline := time.Now().Add(time.Minute); ; {
		now, err := residentMiB(pid)
		if err != nil || enough(now) {
			return now, err
		}
		if time.Now().After(deadline) {
			return now, fmt.Errorf("it holds %d MiB after a minute", now)
		}
		select {
		case <-ctx.Done():
			return now, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (t *trial) pause(ctx context.Context) (string, error) {
	for _, verb := range []string{"pause", "resume"} {
		if _, err := t.berth(ctx, "machine", verb); err != nil {
			return "", err
		}
	}
	return "it goes on", expect(t.berth(ctx, "ssh", "--", "echo", token))
}

// save has a container keep in memory what only a machine that goes on still knows.
func (t *trial) save(ctx context.Context) (string, error) {
	const keep = "echo " + token + " >/dev/shm/token; exec sleep 3600"
	if _, err := t.berth(ctx, "run", "-d", "--init", "--name", "keeper", "hello", "sh", "-c", keep); err != nil {
		return "", err
	}
	_, err := t.berth(ctx, "machine", "save")
	if err == nil {
		_, err = t.berth(ctx, "start")
	} else if _, why, ok := strings.Cut(err.Error(), errors.ErrUnsupported.Error()+": "); ok {
		err = skip(why)
	}
	if err == nil {
		err = expect(t.berth(ctx, "exec", "keeper", "cat", "/dev/shm/token"))
	}
	if _, e := t.berth(ctx, "rm", "-f", "keeper"); err == nil {
		err = e
	}
	return "a container went on after it", err
}

func (t *trial) restart(ctx context.Context) (string, error) {
	if _, err := t.berth(ctx, "run", "--rm", "-v", "keep:/keep", "hello", "sh", "-c", "echo "+token+" >/keep/token"); err != nil {
		return "", err
	}
	if _, err := t.berth(ctx, "restart"); err != nil {
		return "", err
	}
	return "the volume is whole", expect(t.berth(ctx, "run", "--rm", "-v", "keep:/keep", "hello", "cat", "/keep/token"))
}

func (t *trial) stop(ctx context.Context) (string, error) {
	if _, err := t.berth(ctx, "stop"); err != nil {
		return "", err
	}
	m, err := t.machine()
	if err != nil {
		return "", err
	}
	if s := m.LastState(); s.State.Alive() || s.LastError != "" {
		return "", fmt.Errorf("the machine is %s: %s", s.State, s.LastError)
	}
	return "in order", nil
}

func (t *trial) clear(ctx context.Context) (string, error) {
	if _, err := t.berth(ctx, "delete", "--all", "--force"); err != nil {
		return "", err
	}
	if left := t.home.Directories(); len(left) > 0 {
		return "", fmt.Errorf("left: %s", strings.Join(left, ", "))
	}
	return "the machine and its files are gone", nil
}
