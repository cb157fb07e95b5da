package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container/initproc"
)

// The test binary is its own berth-exec.
func init() {
	if os.Args[0] == "berth-exec" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if os.Args[0] == "berth-exec" {
		initproc.Main()
	}
	os.Exit(m.Run())
}

// runtimeUnderTest runs command lines against one state directory.
type runtimeUnderTest struct {
	t    *testing.T
	root string
}

// call runs one command line and returns exit code, output and errors.
func (r runtimeUnderTest) call(args ...string) (int, string, string) {
	r.t.Helper()
	out, err := os.CreateTemp(r.t.TempDir(), "out")
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	errs, err := os.CreateTemp(r.t.TempDir(), "err")
	if err != nil {
		r.t.Fatal(err)
	}
	defer errs.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		r.t.Fatal(err)
	}
	defer null.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	a := &app{stdin: null, stdout: out, stderr: errs}
	code := a.main(ctx, append([]string{"--root", r.root, "--berth-exec", "/proc/self/exe"}, args...))
	read := func(f *os.File) string {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			r.t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			r.t.Fatal(err)
		}
		return string(b)
	}
	return code, read(out), read(errs)
}

func (r runtimeUnderTest) must(args ...string) string {
	r.t.Helper()
	code, out, errs := r.call(args...)
	if code != 0 {
		r.t.Fatalf("%v: exit code %d: %s", args, code, errs)
	}
	return out
}

// bundle makes a bundle whose program is a shell script.
func bundle(t *testing.T, script string, edit func(*specs.Spec)) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and busybox-static")
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "rootfs/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rootfs/bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "sleep", "id", "cat", "echo", "env", "true"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "rootfs/bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	spec := exampleSpec()
	spec.Root.Readonly = false
	spec.Process.Terminal = false
	spec.Process.Args = []string{"sh", "-c", script}
	spec.Mounts = spec.Mounts[:len(spec.Mounts)-1] // no cgroup: not everywhere
	if edit != nil {
		edit(spec)
	}
	writeJSON(t, filepath.Join(dir, "config.json"), spec)
	return dir
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLifecycle(t *testing.T) {
	r := runtimeUnderTest{t, filepath.Join(t.TempDir(), "root")}
	dir := bundle(t, "exec sleep 1000", func(s *specs.Spec) { s.Annotations = map[string]string{"a": "b"} })
	pidFile := filepath.Join(t.TempDir(), "pid")
	r.must("create", "--bundle", dir, "--pid-file", pidFile, "one")
	t.Cleanup(func() { r.call("delete", "--force", "one") })
	state := func() ociState {
		var s ociState
		if err := json.Unmarshal([]byte(r.must("state", "one")), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := state()
	if s.Status != specs.StateCreated || s.ID != "one" || s.Bundle != dir || s.Annotations["a"] != "b" || s.Version == "" {
		t.Errorf("%+v", s)
	}
	if b, err := os.ReadFile(pidFile); err != nil || string(b) != jsonNumber(s.Pid) {
		t.Errorf("pid file %q %v, want %d", b, err, s.Pid)
	}
	if code, _, errs := r.call("create", "--bundle", dir, "one"); code == 0 || !strings.Contains(errs, "exists") {
		t.Errorf("second create: %d %s", code, errs)
	}
	r.must("start", "one")
	if code, _, errs := r.call("start", "one"); code == 0 || !strings.Contains(errs, "running") {
		t.Errorf("second start: %d %s", code, errs)
	}
	if s := state(); s.Status != specs.StateRunning {
		t.Errorf("%+v", s)
	}
	if out := r.must("exec", "--env", "X=1", "--cwd", "/bin", "-u", "5:6", "one", "sh", "-c", "echo $X $PWD; id"); out != "1 /bin\nuid=5 gid=6\n" {
		t.Errorf("exec: %q", out)
	}
	if code, _, _ := r.call("exec", "one", "sh", "-c", "exit 9"); code != 9 {
		t.Errorf("exit code %d", code)
	}
	if code, _, errs := r.call("exec", "one", "missing"); code != 1 || !strings.Contains(errs, "not found") {
		t.Errorf("exec of nothing: %d %q", code, errs)
	}
	if out := r.must("list", "-q"); out != "one\n" {
		t.Errorf("list: %q", out)
	}
	if out := r.must("list"); !strings.Contains(out, "running") {
		t.Errorf("list: %q", out)
	}
	if out := r.must("ps", "-f", "json", "one"); !strings.Contains(out, jsonNumber(s.Pid)) {
		t.Errorf("ps: %q", out)
	}
	if code, _, errs := r.call("delete", "one"); code == 0 || !strings.Contains(errs, "--force") {
		t.Errorf("delete of a running container: %d %s", code, errs)
	}
	r.must("kill", "one", "KILL")
	for range 200 {
		if s = state(); s.Status == specs.StateStopped {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if s.Status != specs.StateStopped || s.Pid != 0 {
		t.Errorf("%+v", s)
	}
	if code, _, _ := r.call("kill", "one", "KILL"); code == 0 {
		t.Error("a stopped container was killed")
	}
	r.must("delete", "one")
	if code, _, errs := r.call("state", "one"); code == 0 || !strings.Contains(errs, "does not exist") {
		t.Errorf("state: %d %s", code, errs)
	}
	r.must("delete", "--force", "one")
}

func jsonNumber(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}

func TestRun(t *testing.T) {
	r := runtimeUnderTest{t, filepath.Join(t.TempDir(), "root")}
	dir := bundle(t, "echo out; echo err >&2; exit 7", nil)
	code, out, errs := r.call("run", "-b", dir, "one")
	if code != 7 || out != "out\n" || errs != "err\n" {
		t.Errorf("%d %q %q", code, out, errs)
	}
	if out := r.must("list", "-q"); out != "" {
		t.Errorf("left: %q", out)
	}
	code, _, _ = r.call("run", "--bundle", bundle(t, "kill -9 $$", func(s *specs.Spec) {
		var keep []specs.LinuxNamespace // a first process cannot kill itself
		for _, ns := range s.Linux.Namespaces {
			if ns.Type != specs.PIDNamespace {
				keep = append(keep, ns)
			}
		}
		s.Linux.Namespaces = keep
	}), "two")
	if code != 128+9 {
		t.Errorf("killed: %d", code)
	}
}

func TestTerminal(t *testing.T) {
	r := runtimeUnderTest{t, filepath.Join(t.TempDir(), "root")}
	dir := bundle(t, "test -t 0 && echo terminal", func(s *specs.Spec) { s.Process.Terminal = true })
	if code, out, errs := r.call("run", "-b", dir, "one"); code != 0 || out != "terminal\r\n" {
		t.Errorf("%d %q %q", code, out, errs)
	}
	if code, _, errs := r.call("create", "-b", dir, "two"); code != 1 || !strings.Contains(errs, "--console-socket") {
		t.Errorf("%d %q", code, errs)
	}
}

// TestBadConfig checks what comes before a specification: JSON and its types.
func TestBadConfig(t *testing.T) {
	r := runtimeUnderTest{t, filepath.Join(t.TempDir(), "root")}
	dir := t.TempDir()
	for text, want := range map[string]string{
		"":                          "not valid JSON",
		"{":                         "not valid JSON",
		"[]":                        "does not fit",
		"{} {}":                     "more than one",
		`{"process":{"args":"sh"}}`: "process.args",
		`{"linux":{"resources":{"pids":{"limit":"x"}}}}`: "linux.resources.pids.limit",
		`{"hostname":7}`:                  "hostname",
		`{"process":{"user":{"uid":-1}}}`: "process.user.uid",
		`{}`:                              "ociVersion",
	} {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		code, _, errs := r.call("create", "--bundle", dir, "x")
		if code != 1 || !strings.Contains(errs, want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: %d %q, want %q", text, code, errs, want)
		}
	}
	if code, _, errs := r.call("create", "--bundle", "/nowhere", "x"); code != 1 || !strings.Contains(errs, "config.json") {
		t.Errorf("%d %q", code, errs)
	}
}

func TestUsage(t *testing.T) {
	r := runtimeUnderTest{t, filepath.Join(t.TempDir(), "root")}
	log := filepath.Join(t.TempDir(), "log")
	for _, args := range [][]string{
		{}, {"dance"}, {"create"}, {"create", "a", "b"}, {"create", "--no-pivot", "x"}, {"start"}, {"state", "x"},
		{"kill", "x", "SIGNOTHING"}, {"list", "-f", "xml"}, {"--systemd-cgroup", "list"}, {"--rootless=true", "list"},
		{"--log-format", "xml", "list"}, {"exec", "x"}, {"update", "--memory", "much", "x"}, {"create", "--preserve-fds", "900", "x"},
		{"spec", "--rootless"}, {"--unknown"},
	} {
		if code, _, errs := r.call(args...); code != 1 || errs == "" {
			t.Errorf("%v: %d %q", args, code, errs)
		}
	}
	if code, _, _ := r.call("--log", log, "--log-format", "json", "state", "x"); code != 1 {
		t.Error(code)
	}
	var entry map[string]string
	if b, err := os.ReadFile(log); err != nil || json.Unmarshal(b, &entry) != nil || !strings.Contains(entry["msg"], "does not exist") {
		t.Errorf("%s %v", b, err)
	}
	if out := r.must("--version"); !strings.Contains(out, specs.Version) {
		t.Error(out)
	}
	if !json.Valid([]byte(r.must("features"))) {
		t.Error("features is not JSON")
	}
	dir := t.TempDir()
	r.must("spec", "--bundle", dir)
	if _, err := loadSpec(dir); err != nil {
		t.Error(err)
	}
	if code, _, _ := r.call("spec", "-b", dir); code != 1 {
		t.Error("config.json was overwritten")
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := json.Marshal(exampleSpec())
	f.Add(b)
	f.Add([]byte(`{"process":{"args":3}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := decode(bytes.NewReader(b), "x", new(specs.Spec)); err != nil && strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("more than one line: %q", err)
		}
	})
}
