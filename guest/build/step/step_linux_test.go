package step

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/buildkit/executor"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	bknet "github.com/moby/buildkit/util/network"
)

// TestOpenIn: no link in a mount's source leads out of it.
func TestOpenIn(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	for name, body := range map[string]string{dir + "/in": "in", outside + "/secret": "secret", dir + "/etc": ""} {
		if err := os.WriteFile(name, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"absolute": outside + "/secret", "relative": "../" + filepath.Base(outside) + "/secret", "up": "../../../../..", "good": "/in",
		"proc": "/proc/self/root",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"in": "in", "good": "in", "/good": "in", "../../in": "in", "up/in": "in",
		"absolute": "", "relative": "", "proc": "", "missing": "",
	} {
		f, err := openIn(dir, name)
		if err != nil {
			if want != "" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		got, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		f.Close()
		if err != nil || string(got) != want || want == "" {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
	}
	f, err := openIn(dir, "up")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a, _ := os.Stat(dir)
	if b, err := f.Stat(); err != nil || !os.SameFile(a, b) {
		t.Errorf("the way up ends at %v, %v", b, err)
	}
}

// TestProxy: a step that may reach what a proxy lets through only does not run without
// that.
func TestProxy(t *testing.T) {
	meta := executor.Meta{Args: []string{"true"}, Proxy: &bknet.ProxyConfig{}}
	_, err := new(Executor).Run(t.Context(), "", executor.Mount{}, nil, executor.ProcessInfo{Meta: meta}, nil)
	if !errors.Is(err, errProxy) {
		t.Errorf("error %v", err)
	}
}

// TestInput: whatever a frontend asks for, a step's cgroup is below that of all steps,
// and its rights are those of a container.
func TestInput(t *testing.T) {
	for parent, want := range map[string]string{
		"": "/berth-build/id", "p": "/berth-build/p/id", "/p/q/": "/berth-build/p/q/id",
		"../../berth": "/berth-build/berth/id", "/../..": "/berth-build/id", "p/../../../q": "/berth-build/q/id",
	} {
		b := &building{id: "id", meta: executor.Meta{CgroupParent: parent}}
		in := b.input(nil, false)
		if in.Cgroup != want {
			t.Errorf("below %q the cgroup is %s, want %s", parent, in.Cgroup, want)
		}
		if hc := in.HostConfig; hc.Privileged || len(hc.CapAdd) > 0 || len(hc.SecurityOpt) > 0 || hc.PidMode != "" || hc.IpcMode != "" || !hc.NetworkMode.IsBridge() {
			t.Errorf("a step is given %+v", hc)
		}
	}
	b := &building{id: "id", tool: true, meta: executor.Meta{NetMode: pb.NetMode_NONE}}
	if hc := b.input(nil, true).HostConfig; !slices.Contains(hc.CapDrop, "ALL") || !slices.Contains(hc.SecurityOpt, "no-new-privileges") ||
		!hc.ReadonlyRootfs || !hc.NetworkMode.IsNone() {
		t.Errorf("a tool is given %+v", hc)
	}
}

// TestParents: a cgroup that a build asks for stays as long as one of its steps.
func TestParents(t *testing.T) {
	for group, want := range map[string]string{
		"/berth-build/id": "", "/berth-build/p/id": "/berth-build/p", "/berth-build/p/q/id": "/berth-build/p/q /berth-build/p",
	} {
		if got := strings.Join(between(group), " "); got != want {
			t.Errorf("above %s there is %q, want %q", group, got, want)
		}
	}
	e := &Executor{parents: map[string]int{}}
	e.holdParents("/berth-build/p/one")
	e.holdParents("/berth-build/p/q/two")
	for _, drop := range []struct{ step, gone string }{{"/berth-build/p/q/two", "/berth-build/p/q"}, {"/berth-build/p/one", "/berth-build/p"}} {
		if got := strings.Join(e.unheld(drop.step), " "); got != drop.gone {
			t.Errorf("with %s goes %q, want %q", drop.step, got, drop.gone)
		}
	}
}

func TestResult(t *testing.T) {
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrUnexpectedEOF)
	killed := func() (uint64, error) { return 1, nil }
	for _, c := range []struct {
		name  string
		ctx   context.Context
		exit  int
		oom   func() (uint64, error)
		valid []int
		want  int // -1: no error
		cause error
	}{
		{name: "good", want: -1},
		{name: "bad", exit: 3, want: 3},
		{name: "allowed", exit: 3, valid: []int{3, 4}, want: -1},
		{name: "zero is not allowed", valid: []int{3}, want: 0},
		{name: "no memory", exit: 137, oom: killed, want: 137, cause: syscall.ENOMEM},
		{name: "cancelled", ctx: cancelled, exit: 137, want: 137, cause: io.ErrUnexpectedEOF},
		{name: "cancelled at its end", ctx: cancelled, want: 0, cause: io.ErrUnexpectedEOF},
	} {
		ctx := c.ctx
		if ctx == nil {
			ctx = t.Context()
		}
		err := result(ctx, c.exit, c.oom, c.valid)
		var exit *gateway.ExitError
		switch {
		case c.want < 0:
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		case !errors.As(err, &exit) || int(exit.ExitCode) != c.want:
			t.Errorf("%s: %v, want exit code %d", c.name, err, c.want)
		case c.cause != nil && !errors.Is(exit.Err, c.cause):
			t.Errorf("%s: cause %v, want %v", c.name, exit.Err, c.cause)
		}
	}
}
