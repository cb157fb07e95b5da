package container

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	needRoot(t)
	got := sh(t, testSpec(rootfs(t)), "echo $$; hostname; id -u; pwd; echo $HOME; ls /proc/self/fd | wc -l")
	want := "1\nbox\n0\n/\n/root\n4"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRunEnvironment(t *testing.T) {
	needRoot(t)
	got := sh(t, testSpec(rootfs(t)), "mount; ls -l /dev; cat /proc/self/status; cat /proc/kcore | wc -c; ls /sys/firmware | wc -l")
	t.Log(got)
	if !strings.Contains(got, "devpts") {
		t.Error("no devpts")
	}
}
