//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestUnprivilegedUser: an ordinary user starts and uses a machine, and another
// user of the same host cannot reach it. Where the suite itself runs as an
// ordinary user every other test shows the first half.
func TestUnprivilegedUser(t *testing.T) {
	needVM(t)
	if os.Getuid() != 0 {
		t.Skip("needs root to become two ordinary users; the whole suite runs as one here")
	}
	dir, err := os.MkdirTemp("", "berth-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	for _, args := range [][]string{
		{"cp", "-r", filepath.Join(root, "bin", "berth"), filepath.Join(root, "bin", "image"), dir},
		{"chmod", "-R", "a+rX", dir},
		{"install", "-d", "-o", "64001", "-g", "64001", "-m", "700", filepath.Join(dir, "home")},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	as := func(uid uint32, name string, args ...string) result {
		home := filepath.Join(dir, "home")
		cmd := exec.Command(name, args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "BERTH_HOME=" + home + "/berth", "DOCKER_CONFIG=" + home + "/docker"}
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		r := result{cmd: strings.Join(append([]string{name}, args...), " "), out: string(out)}
		if err != nil {
			r.code = cmd.ProcessState.ExitCode()
			r.err = err.Error()
		}
		return r
	}
	berth := filepath.Join(dir, "berth")
	defer as(64001, berth, "delete", "--force")
	if r := as(64001, berth, "start"); r.code != 0 {
		t.Fatalf("%s\n%s", r, as(64001, berth, "machine", "logs").out)
	}
	if r := as(64001, berth, "run", "--rm", "hello", "echo", "ahoy"); r.code != 0 || !strings.Contains(r.out, "ahoy") {
		t.Errorf("%s", r)
	}
	shown := as(64001, berth, "status", "--format", "json")
	var s status
	if err := json.Unmarshal([]byte(shown.out), &s); err != nil {
		t.Fatalf("%v: %s", err, shown)
	}
	path := s.DockerSocket
	// The other user can neither list nor open anything of it.
	for _, args := range [][]string{{"test", "-w", path}, {"ls", filepath.Dir(path)}, {"ls", filepath.Join(dir, "home")}} {
		if r := as(64002, args[0], args[1:]...); r.code == 0 {
			t.Errorf("another user could: %s", r)
		}
	}
}
