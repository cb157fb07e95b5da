//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds one command of a test. It is far beyond what a command takes
// under TCG on a loaded machine, and only there so that a hang is reported with
// the command that hangs.
const patience = 4 * time.Minute

// long is how much patience a command deserves that starts real programs from
// images of their own size, and waits until they are healthy.
const long = 20 * time.Minute

// root is the module's top folder.
var root = func() string {
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		panic(err)
	}
	return dir
}()

func TestMain(m *testing.M) {
	if work, address := os.Getenv(portWork), os.Getenv(portAddress); work != "" {
		os.Exit(portClient(work, address)) // a process of BenchmarkPorts
	}
	code := m.Run()
	suite.close()
	os.Exit(code)
}

// suite is what all tests share; it is made by the first that needs it.
var suite shared

type shared struct {
	once     sync.Once
	err      error
	home     *home
	registry *registry
}

func (s *shared) close() {
	if s.home != nil {
		if err := s.home.remove(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
		}
	}
	if s.registry != nil {
		s.registry.close()
	}
}

// needVM skips the test where no VM was asked for.
func needVM(t testing.TB) {
	t.Helper()
	if os.Getenv("BERTH_VM") != "1" {
		t.Skip("boots a VM: run with BERTH_VM=1, or make test-e2e")
	}
}

// needFull skips the test but in the long suite.
func needFull(t testing.TB) {
	t.Helper()
	needVM(t)
	if os.Getenv("BERTH_FULL") != "1" {
		t.Skip("takes long: run with BERTH_FULL=1, or make test-full")
	}
}

// machine returns the shared home, its machine running and the registry filled.
func machine(t testing.TB) *home {
	t.Helper()
	needVM(t)
	suite.once.Do(func() {
		if suite.home, suite.err = newHome(); suite.err != nil {
			return
		}
		if suite.registry, suite.err = startRegistry(suite.home.dir); suite.err != nil {
			return
		}
		suite.err = suite.home.boot()
		if suite.err != nil {
			return
		}
		for _, args := range [][]string{
			{"tag", "hello", suite.registry.image("hello:1")},
			{"push", suite.registry.image("hello:1")},
		} {
			if r := suite.home.berth().exec(args...); r.code != 0 {
				suite.err = fmt.Errorf("filling the registry: %s", r)
				return
			}
		}
	})
	if suite.err != nil {
		t.Fatalf("no machine to test: %v", suite.err)
	}
	return suite.home
}

// ownHome makes a home for one test that breaks things; nothing of it is left
// at the test's end.
func ownHome(t testing.TB) *home {
	t.Helper()
	needVM(t)
	h, err := newHome()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("machine's log:\n%s", tail(h.berth().exec("machine", "logs").out, 60))
		}
		if err := h.remove(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// home is one BERTH_HOME with its own docker configuration.
type home struct{ dir string }

func newHome() (*home, error) {
	dir, err := os.MkdirTemp("", "berth-e2e-")
	return &home{dir}, err
}

func (h *home) env() []string {
	env := []string{
		"BERTH_HOME=" + filepath.Join(h.dir, "berth"),
		"DOCKER_CONFIG=" + filepath.Join(h.dir, "docker"),
		"HOME=" + h.dir,
	}
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		switch key {
		case "BERTH_HOME", "DOCKER_CONFIG", "HOME", "BERTH_MACHINE", "DOCKER_HOST", "DOCKER_CONTEXT":
		default:
			env = append(env, kv)
		}
	}
	return env
}

func (h *home) boot() error {
	if r := h.berth().exec("start"); r.code != 0 {
		return fmt.Errorf("%s\n%s", r, tail(h.berth().exec("machine", "logs").out, 60))
	}
	return nil
}

// bootWith boots the machine with a configuration, which is YAML.
func (h *home) bootWith(t testing.TB, config string) {
	t.Helper()
	write(t, filepath.Join(h.dir, "berth", "config", "default.yaml"), config)
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
}

// remove deletes the home's machines and proves that nothing of them is left.
func (h *home) remove() error {
	h.berth().exec("delete", "--force")
	defer os.RemoveAll(h.dir)
	if left := h.processes(); len(left) > 0 {
		return fmt.Errorf("processes left after delete: %v", left)
	}
	return nil
}

// processes lists what runs with this home in its environment or arguments.
func (h *home) processes() []string {
	var found []string
	entries, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range entries {
		if filepath.Base(p) == fmt.Sprint(os.Getpid()) {
			continue
		}
		environ, _ := os.ReadFile(p + "/environ")
		cmdline, _ := os.ReadFile(p + "/cmdline")
		if bytes.Contains(environ, []byte(h.dir)) || bytes.Contains(cmdline, []byte(h.dir)) {
			line := strings.ReplaceAll(string(cmdline), "\x00", " ")
			if strings.Contains(line, "registry serve") {
				continue
			}
			found = append(found, filepath.Base(p)+": "+line)
		}
	}
	return found
}

// berth is the built-in client and the command line of the machine.
func (h *home) berth() cli {
	return cli{name: "berth", bin: filepath.Join(root, "bin", "berth"), env: h.env()}
}

// docker is the stock client, which knows Berth by its docker context alone.
func (h *home) docker() cli {
	return cli{name: "docker", bin: filepath.Join(root, "bin", "tools", "docker"), env: h.env(), pre: []string{"--context", "berth"}}
}

// clients are the two that every docker command must work with alike.
func (h *home) clients() []cli { return []cli{h.berth(), h.docker()} }

// cli runs one program as a user would.
type cli struct {
	name string
	bin  string
	env  []string
	pre  []string // arguments before the command
	dir  string   // where it runs; empty: here
	// patience is how long one command may take; zero is what every one may.
	patience time.Duration
}

func (c cli) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.bin, append(append([]string(nil), c.pre...), args...)...)
	cmd.Env, cmd.Dir = c.env, c.dir
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// result is what a command left.
type result struct {
	cmd  string
	out  string // standard output
	err  string // standard error
	code int    // -1 when it did not end by itself
	took time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit %d after %v\n%s%s", r.cmd, r.code, r.took.Round(time.Millisecond), tail(r.out, 30), tail(r.err, 30))
}

func (c cli) exec(args ...string) result { return c.execIn("", args...) }

// execIn runs the command with in as its standard input.
func (c cli) execIn(in string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(c.patience, patience))
	defer cancel()
	cmd := c.command(ctx, args...)
	cmd.Stdin = strings.NewReader(in)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	begin := time.Now()
	err := cmd.Run()
	r := result{cmd: c.name + " " + strings.Join(args, " "), out: out.String(), err: stderr.String(), took: time.Since(begin)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		r.code = -1
		r.err += err.Error()
	}
	return r
}

// ok runs a command that must succeed and returns its output, trimmed.
func (c cli) ok(t testing.TB, args ...string) string {
	t.Helper()
	r := c.exec(args...)
	if r.code != 0 {
		t.Fatalf("%s", r)
	}
	return strings.TrimSpace(r.out)
}

// fails runs a command that must fail with one clear message that holds want.
func (c cli) fails(t testing.TB, want string, args ...string) result {
	t.Helper()
	r := c.exec(args...)
	switch {
	case r.code == 0:
		t.Errorf("%s\nit should have failed", r)
	case r.code < 0:
		t.Errorf("%s\nit should have ended by itself", r)
	case !strings.Contains(strings.ToLower(r.err+r.out), strings.ToLower(want)):
		t.Errorf("%s\nthe message should hold %q", r, want)
	case strings.Contains(r.err, "goroutine "):
		t.Errorf("%s\nit panicked", r)
	}
	return r
}

// buildProgram compiles the source of a static program, in an environment with env
// added, and returns its path.
func buildProgram(t testing.TB, source string, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	build := exec.Command("go", "build", "-o", program, filepath.Join(dir, "main.go"))
	build.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// eventually waits for a condition that comes about by itself.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		if cond() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never came about: %s", what)
		}
	}
}

// tail returns the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	if len(lines) == 1 && lines[0] == "" {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

// registry is a stock distribution registry on the host's loopback.
type registry struct {
	addr string
	cmd  *exec.Cmd
}

func startRegistry(dir string) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	config := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "registry"), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(root, "bin", "tools", "registry"), "serve", config)
	logFile, err := os.Create(filepath.Join(dir, "registry.log")) // it calls every missing blob an error
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd.Stderr = logFile
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &registry{addr: addr, cmd: cmd}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			resp.Body.Close()
			return r, nil
		}
		if time.Now().After(deadline) {
			r.close()
			return nil, fmt.Errorf("the test registry does not answer: %w", err)
		}
	}
}

// image names a repository of the registry.
func (r *registry) image(name string) string {
	_, port, _ := net.SplitHostPort(r.addr)
	return "localhost:" + port + "/" + name
}

func (r *registry) close() {
	r.cmd.Process.Kill()
	r.cmd.Wait()
}
