package container

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestMountNamespaceOfAnother: a container can live in its creator's mount
// namespace or in any other; that one's root stays as it is, execs see the
// container's, and of mounts in the creator's nothing is left.
func TestMountNamespaceOfAnother(t *testing.T) {
	needRoot(t)
	sleeper := exec.Command("sleep", "1000")
	sleeper.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		sleeper.Process.Kill()
		sleeper.Wait()
	}()
	foreign := "/proc/" + strconv.Itoa(sleeper.Process.Pid) + "/ns/mnt"
	for name, path := range map[string]string{"inherited": "", "joined": foreign} {
		t.Run(name, func(t *testing.T) {
			before := mountsHere(t)
			spec := testSpec(rootfs(t), "sleep", "1000")
			spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.MountNamespace })
			want := "/proc/self/ns/mnt"
			if path != "" {
				spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace, Path: path})
				want = path
			}
			b, err := create(t, testConfig(t, spec))
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Start(testContext(t)); err != nil {
				t.Fatal(err)
			}
			wanted, _ := os.Readlink(want)
			if got, _ := os.Readlink("/proc/" + strconv.Itoa(b.PID()) + "/ns/mnt"); got != wanted || got == "" {
				t.Errorf("the container is in %s, want %s", got, wanted)
			}
			if out, err := execIn(t, b.Container, "echo /bin/b* $$", nil); err != nil || !strings.HasPrefix(out, "/bin/busybox ") {
				t.Errorf("an exec sees %q, %v", out, err)
			}
			if root, err := os.Readlink("/proc/" + strconv.Itoa(sleeper.Process.Pid) + "/root"); root != "/" {
				t.Errorf("the other's root is %s, %v", root, err)
			}
			if err := b.Delete(testContext(t)); err != nil {
				t.Fatal(err)
			}
			if after := mountsHere(t); after != before {
				t.Errorf("mounts before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

func mountsHere(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return string(mounts)
}
