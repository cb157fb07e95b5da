package engine_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	apinet "github.com/moby/moby/api/types/network"
	"go.uber.org/goleak"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/enginetest"
	"github.com/berthvm/berth/guest/engine/filter"
	"github.com/berthvm/berth/guest/engine/logfile"
	"github.com/berthvm/berth/guest/engine/stdio"
)

func TestMain(m *testing.M) {
	// The programs of a played crash go on, as real ones would.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/berthvm/berth/guest/engine/enginetest.(*process).run"),
		goleak.IgnoreAnyFunction("github.com/berthvm/berth/guest/engine/enginetest.(*process).program"))
}

var ctx = context.Background()

func create(t *testing.T, e *engine.Engine, name string, hc *apicontainer.HostConfig, cmd ...string) string {
	t.Helper()
	id, _, err := e.Create(ctx, engine.CreateOptions{Name: name, HostConfig: hc,
		Config: &apicontainer.Config{Image: "img", Cmd: cmd, OpenStdin: true, StdinOnce: true}})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func start(t *testing.T, e *engine.Engine, id string) {
	t.Helper()
	if err := e.Start(ctx, id); err != nil {
		t.Fatal(err)
	}
}

func wait(t *testing.T, e *engine.Engine, id string, cond apicontainer.WaitCondition) int {
	t.Helper()
	c, err := e.Wait(ctx, id, cond)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-c:
		return r.Code
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing came of waiting for %q", id, cond)
		return 0
	}
}

func logs(t *testing.T, e *engine.Engine, id string) string {
	t.Helper()
	var b strings.Builder
	err := e.Logs(ctx, id, logfile.ReadOptions{Tail: -1}, func(bool) error { return nil },
		func(l logfile.Entry) error { b.Write(l.Line); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func status(t *testing.T, e *engine.Engine, id string) apicontainer.State {
	t.Helper()
	i, err := e.Inspect(ctx, id, false)
	if err != nil {
		t.Fatal(err)
	}
	return *i.State
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s did not come about", what)
}

func TestRun(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	id := create(t, e, "one", nil, "echo", "a", "b")
	if s := status(t, e, id); s.Status != "created" {
		t.Errorf("status %s", s.Status)
	}
	done, err := e.Wait(ctx, id, apicontainer.WaitConditionNextExit)
	if err != nil {
		t.Fatal(err)
	}
	start(t, e, id)
	if r := <-done; r.Code != 0 {
		t.Errorf("exit code %d", r.Code)
	}
	if got := logs(t, e, "one"); got != "a\nb\n" {
		t.Errorf("logged %q", got)
	}
	if s := status(t, e, id[:12]); s.Status != "exited" || s.FinishedAt < s.StartedAt {
		t.Errorf("state %+v", s)
	}
	start(t, e, id) // again: output is added
	wait(t, e, id, "")
	if got := logs(t, e, "one"); got != "a\nb\na\nb\n" {
		t.Errorf("logged %q", got)
	}
	if err := e.Remove(ctx, "/one", engine.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if left := w.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := e.Inspect(ctx, id, false); !errdefs.IsNotFound(err) {
		t.Errorf("after removal: %v", err)
	}
}

func TestAutoRemoveLeavesNothing(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	for _, cmd := range [][]string{{"echo", "x"}, {"exit", "7"}, {"nosuch"}} {
		id := create(t, e, "", &apicontainer.HostConfig{AutoRemove: true}, cmd...)
		done, err := e.Wait(ctx, id, apicontainer.WaitConditionRemoved)
		if err != nil {
			t.Fatal(err)
		}
		err = e.Start(ctx, id)
		if (err != nil) != (cmd[0] == "nosuch") {
			t.Errorf("%q: %v", cmd, err)
		}
		<-done
		if _, err := e.Inspect(ctx, id, false); !errdefs.IsNotFound(err) {
			t.Errorf("%q: after removal: %v", cmd, err)
		}
		eventually(t, "nothing left behind", func() bool { return len(w.Leftovers()) == 0 })
	}
}

func TestStartErrors(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	for cmd, c := range map[string]struct {
		code int
		text string
	}{
		"nosuch":      {127, `exec: "nosuch": executable file not found in $PATH`},
		"forbidden":   {126, `exec: "forbidden": permission denied`},
		"too-capable": {126, `exec: "too-capable": operation not permitted`},
	} {
		id := create(t, e, "", nil, cmd)
		err := e.Start(ctx, id)
		if err == nil || !strings.Contains(err.Error(), c.text) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", cmd, err)
		}
		if s := status(t, e, id); s.ExitCode != c.code || s.Status != "created" || s.Error == "" {
			t.Errorf("%s: state %+v", cmd, s)
		}
		if err := e.Remove(ctx, id, engine.RemoveOptions{}); err != nil {
			t.Error(err)
		}
	}
	if left := w.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestStopKillRestart(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	zero := 0
	polite := create(t, e, "polite", nil, "sleep")
	deaf := create(t, e, "deaf", nil, "deaf")
	start(t, e, polite)
	start(t, e, deaf)
	if err := e.Start(ctx, polite); !errors.Is(err, engine.ErrNotModified) {
		t.Errorf("start of a running container: %v", err)
	}
	if err := e.Remove(ctx, polite, engine.RemoveOptions{}); !errdefs.IsConflict(err) {
		t.Errorf("removal of a running container: %v", err)
	}
	if err := e.Kill(ctx, polite, "USR1"); err != nil {
		t.Error(err)
	}
	eventually(t, "the signal", func() bool { return strings.Contains(logs(t, e, polite), "signal 10") })
	if err := e.Restart(ctx, polite, engine.StopOptions{}); err != nil {
		t.Error(err)
	}
	if s := status(t, e, polite); s.Status != "running" {
		t.Errorf("after restart: %+v", s)
	}
	if err := e.Stop(ctx, polite, engine.StopOptions{}); err != nil {
		t.Error(err)
	}
	if s := status(t, e, polite); s.ExitCode != 15 {
		t.Errorf("after stop: %+v", s)
	}
	if err := e.Stop(ctx, polite, engine.StopOptions{}); !errors.Is(err, engine.ErrNotModified) {
		t.Errorf("stop of a stopped container: %v", err)
	}
	if err := e.Stop(ctx, deaf, engine.StopOptions{Timeout: &zero}); err != nil {
		t.Error(err)
	}
	if s := status(t, e, deaf); s.ExitCode != 137 {
		t.Errorf("after a stop that killed: %+v", s)
	}
	if err := e.Kill(ctx, deaf, ""); !errdefs.IsConflict(err) {
		t.Errorf("kill of a stopped container: %v", err)
	}
}

func TestRestartPolicies(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	policy := func(name apicontainer.RestartPolicyMode, n int) *apicontainer.HostConfig {
		return &apicontainer.HostConfig{RestartPolicy: apicontainer.RestartPolicy{Name: name, MaximumRetryCount: n}}
	}
	failing := create(t, e, "failing", policy("on-failure", 2), "exit", "3")
	fine := create(t, e, "fine", policy("on-failure", 0), "exit", "0")
	always := create(t, e, "always", policy("always", 0), "exit", "0")
	for _, id := range []string{failing, fine, always} {
		start(t, e, id)
	}
	eventually(t, "the end of the failing one", func() bool {
		i, err := e.Inspect(ctx, failing, false)
		return err == nil && i.State.Status == "exited" && i.RestartCount == 2 && i.State.ExitCode == 3
	})
	if i, _ := e.Inspect(ctx, fine, false); i.RestartCount != 0 || i.State.Status != "exited" {
		t.Errorf("fine: %d restarts, %s", i.RestartCount, i.State.Status)
	}
	eventually(t, "a restart", func() bool {
		i, err := e.Inspect(ctx, always, false)
		return err == nil && i.RestartCount >= 1
	})
	if err := e.Stop(ctx, always, engine.StopOptions{}); err != nil && !errors.Is(err, engine.ErrNotModified) {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if s := status(t, e, always); s.Status != "exited" {
		t.Errorf("a stopped container is %s", s.Status)
	}
}

// TestCrashOfTheEngine: containers run on, and the next engine knows what they
// printed and how they ended meanwhile.
func TestCrashOfTheEngine(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	stays := create(t, e, "stays", nil, "lines")
	ends := create(t, e, "ends", nil, "sleep")
	start(t, e, stays)
	start(t, e, ends)
	attached := attach(t, e, stays)
	attached.type_("before\n")
	eventually(t, "the first line", func() bool { return logs(t, e, stays) == ">before\n" })
	exec, err := e.ExecCreate(ctx, stays, apicontainer.ExecCreateRequest{Cmd: []string{"sleep"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.ExecStart(ctx, exec, nil, engine.Attached{}); err != nil {
		t.Fatal(err)
	}
	e.Close()
	attached.end()

	w.Signal("container/"+ends, 15)
	eventually(t, "the end without an engine", func() bool { return w.Exited("container/" + ends) })

	e = w.Engine()
	wait(t, e, ends, "")
	if s := status(t, e, ends); s.Status != "exited" || s.ExitCode != 15 {
		t.Errorf("what ended meanwhile is %+v", s)
	}
	if s := status(t, e, stays); s.Status != "running" {
		t.Errorf("what runs on is %+v", s)
	}
	if x, err := e.ExecInspect(ctx, exec); err != nil || !x.Running {
		t.Errorf("the exec is %+v, %v", x, err)
	}
	attached = attach(t, e, stays)
	attached.type_("after\n")
	eventually(t, "the second line", func() bool { return logs(t, e, stays) == ">before\n>after\n" })
	if err := e.Remove(ctx, stays, engine.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	attached.end()
	if err := e.Remove(ctx, ends, engine.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	eventually(t, "nothing left behind", func() bool { return len(w.Leftovers()) == 0 })
}

// TestCrashWhileConnecting: what an engine had begun to connect or disconnect when it
// crashed is as if it had not begun, or finished.
func TestCrashWhileConnecting(t *testing.T) {
	for _, connected := range []bool{false, true} { // before the crash, by the record
		w := enginetest.New(t)
		e := w.Engine()
		id := create(t, e, "one", nil, "sleep")
		start(t, e, id)
		if connected {
			if err := e.Connect(ctx, "other", id, nil); err != nil {
				t.Fatal(err)
			}
		}
		e.Close()
		if err := w.Connected(id, "other", !connected); err != nil {
			t.Fatal(err)
		}
		e = w.Engine()
		if err := e.Connect(ctx, "other", id, nil); err != nil {
			t.Errorf("connected before: %v; after the crash: %v", connected, err)
		}
		if err := e.Disconnect(ctx, "other", id, false); err != nil {
			t.Error(err)
		}
	}
}

// TestCrashInTeardown: an exit is not lost when the engine crashes between taking
// the container down and recording it, nor the count of a policy's restarts.
func TestCrashInTeardown(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	limited := func(n int) *apicontainer.HostConfig {
		return &apicontainer.HostConfig{RestartPolicy: apicontainer.RestartPolicy{Name: apicontainer.RestartPolicyOnFailure, MaximumRetryCount: n}}
	}
	once := create(t, e, "once", nil, "sleep")
	start(t, e, once)
	again := create(t, e, "again", limited(1), "sleep")
	start(t, e, again)
	begin := time.Now()
	e.Close()
	for _, id := range []string{once, again} {
		w.Signal("container/"+id, 15)
		eventually(t, "the end without an engine", func() bool { return w.Exited("container/" + id) })
		w.Forget(id)
	}
	e = w.Engine()
	wait(t, e, once, "")
	if s := status(t, e, once); s.Status != "exited" || s.ExitCode != 15 {
		t.Errorf("what ended is %+v", s)
	}
	past, _, err := e.Journal.Subscribe(begin)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(past, func(m events.Message) bool {
		return m.Action == events.ActionDie && m.Actor.ID == once && m.Actor.Attributes["exitCode"] == "15"
	}) {
		t.Errorf("no event tells of the end: %v", past)
	}
	eventually(t, "the policy's restart", func() bool { // not the run that has ended, and is not dealt with yet
		c, err := e.Inspect(ctx, again, false)
		return err == nil && c.State.Status == "running" && c.RestartCount == 1
	})
	e.Close()
	w.Signal("container/"+again, 15)
	eventually(t, "the second end", func() bool { return w.Exited("container/" + again) })
	e = w.Engine()
	eventually(t, "the policy gives up", func() bool {
		c, err := e.Inspect(ctx, again, false)
		return err == nil && c.State.Status == "exited" && c.State.ExitCode == 15 && c.RestartCount == 1
	})
}

// TestWaitAfterCrash: each condition can be waited for in an engine that took over,
// also across what a restart policy does.
func TestWaitAfterCrash(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	always := create(t, e, "always", &apicontainer.HostConfig{RestartPolicy: apicontainer.RestartPolicy{Name: "always"}}, "sleep")
	once := create(t, e, "once", &apicontainer.HostConfig{AutoRemove: true}, "sleep")
	never := create(t, e, "never", nil, "sleep")
	start(t, e, always)
	start(t, e, once)
	e.Close()
	e = w.Engine()
	waits := map[string]<-chan engine.WaitResult{}
	for what, c := range map[string]struct {
		id   string
		cond apicontainer.WaitCondition
	}{
		"next": {always, apicontainer.WaitConditionNextExit}, "end": {always, apicontainer.WaitConditionNotRunning},
		"gone": {once, apicontainer.WaitConditionRemoved}, "unborn": {never, apicontainer.WaitConditionNextExit},
	} {
		ch, err := e.Wait(ctx, c.id, c.cond)
		if err != nil {
			t.Fatal(err)
		}
		waits[what] = ch
	}
	if code := wait(t, e, never, apicontainer.WaitConditionNotRunning); code != 0 {
		t.Errorf("what never ran ended with %d", code)
	}
	w.Signal("container/"+always, 15)
	if r := <-waits["next"]; r.Code != 15 {
		t.Errorf("the next exit is %+v", r)
	}
	eventually(t, "the policy's restart", func() bool {
		c, err := e.Inspect(ctx, always, false)
		return err == nil && c.State.Status == "running" && c.RestartCount == 1
	})
	select {
	case r := <-waits["end"]:
		t.Errorf("a restart was taken for the end: %+v", r)
	case r := <-waits["unborn"]:
		t.Errorf("what never ran has ended: %+v", r)
	default:
	}
	if err := e.Stop(ctx, always, engine.StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if r := <-waits["end"]; r.Code != 15 {
		t.Errorf("the end is %+v", r)
	}
	w.Signal("container/"+once, 15)
	if r := <-waits["gone"]; r.Code != 15 {
		t.Errorf("what removed itself had ended with %+v", r)
	}
	if err := e.Remove(ctx, never, engine.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	<-waits["unborn"]
}

// TestCrashAtStart: a run whose start was not recorded before the engine crashed
// is not lost, even if it has ended since.
func TestCrashAtStart(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	begin := time.Now()
	records := map[string][]byte{}
	path := func(id string) string { return w.Dir + "/state/containers/" + id + "/container.json" }
	run := func(name string, hc *apicontainer.HostConfig) string {
		id := create(t, e, name, hc, "sleep")
		b, err := os.ReadFile(path(id))
		if err != nil {
			t.Fatal(err)
		}
		records[id] = b
		start(t, e, id)
		return id
	}
	ended, runs, auto := run("ended", nil), run("runs", nil), run("auto", &apicontainer.HostConfig{AutoRemove: true})
	e.Close()
	for id, b := range records {
		if err := os.WriteFile(path(id), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{ended, auto} {
		w.Signal("container/"+id, 10)
		w.Signal("container/"+id, 15)
		eventually(t, "the end without an engine", func() bool { return w.Exited("container/" + id) })
	}
	e = w.Engine()
	if code := wait(t, e, ended, ""); code != 15 {
		t.Errorf("the run ended with %d", code)
	}
	if s := status(t, e, ended); s.Status != "exited" || s.ExitCode != 15 || s.StartedAt < begin.UTC().Format(time.RFC3339Nano) || s.FinishedAt < s.StartedAt {
		t.Errorf("what ended is %+v", s)
	}
	if got := logs(t, e, ended); got != "signal 10\n" {
		t.Errorf("logged %q", got)
	}
	if s := status(t, e, runs); s.Status != "running" || s.Pid == 0 {
		t.Errorf("what runs is %+v", s)
	}
	eventually(t, "the removal", func() bool { _, err := e.Inspect(ctx, auto, false); return errdefs.IsNotFound(err) })
	past, _, err := e.Journal.Subscribe(begin)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{ended, auto} {
		if !slices.ContainsFunc(past, func(m events.Message) bool {
			return m.Action == events.ActionDie && m.Actor.ID == id && m.Actor.Attributes["exitCode"] == "15"
		}) {
			t.Errorf("no event tells of the end of %s: %v", id, past)
		}
	}
}

func TestRebootAppliesPolicies(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	policy := func(name apicontainer.RestartPolicyMode) *apicontainer.HostConfig {
		return &apicontainer.HostConfig{RestartPolicy: apicontainer.RestartPolicy{Name: name}}
	}
	for name, hc := range map[string]*apicontainer.HostConfig{
		"no": nil, "always": policy("always"), "unless": policy("unless-stopped"), "stopped": policy("unless-stopped"),
		"auto": {AutoRemove: true},
	} {
		start(t, e, create(t, e, name, hc, "sleep"))
	}
	if err := e.Stop(ctx, "stopped", engine.StopOptions{}); err != nil {
		t.Fatal(err)
	}
	e.Close()
	w.Reboot()
	e = w.Engine()
	e.Settle(ctx, "")
	for name, want := range map[string]apicontainer.ContainerState{"no": "exited", "always": "running", "unless": "running", "stopped": "exited"} {
		if s := status(t, e, name); s.Status != want {
			t.Errorf("%s is %+v, want %s", name, s, want)
		}
	}
	if s := status(t, e, "no"); s.ExitCode != 255 {
		t.Errorf("what the reboot ended has exit code %d", s.ExitCode)
	}
	eventually(t, "the removal", func() bool { _, err := e.Inspect(ctx, "auto", false); return errdefs.IsNotFound(err) })
}

func TestShutdownKeepsPolicies(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	start(t, e, create(t, e, "up", &apicontainer.HostConfig{RestartPolicy: apicontainer.RestartPolicy{Name: "unless-stopped"}}, "sleep"))
	if err := e.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	w.Reboot()
	e = w.Engine()
	e.Settle(ctx, "up")
	if s := status(t, e, "up"); s.Status != "running" {
		t.Errorf("after the boot: %+v", s)
	}
}

func TestBrokenRecordIsCleanedUp(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	id := create(t, e, "torn", nil, "sleep")
	e.Close()
	if err := os.Truncate(w.Dir+"/state/containers/"+id+"/container.json", 0); err != nil {
		t.Fatal(err)
	}
	e = w.Engine()
	if left := w.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	create(t, e, "torn", nil, "sleep")
}

func TestExec(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	id := create(t, e, "cc", nil, "sleep")
	if _, err := e.ExecCreate(ctx, id, apicontainer.ExecCreateRequest{Cmd: []string{"echo"}}); !errdefs.IsConflict(err) {
		t.Errorf("exec in a container that does not run: %v", err)
	}
	start(t, e, id)
	for _, c := range []struct {
		cmd  []string
		code int
		out  string
		fail bool
	}{
		{[]string{"echo", "x"}, 0, "x\n", false},
		{[]string{"exit", "9"}, 9, "", false},
		{[]string{"nosuch"}, 127, "", true},
	} {
		x, err := e.ExecCreate(ctx, id, apicontainer.ExecCreateRequest{Cmd: c.cmd, AttachStdout: true, AttachStderr: true})
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		err = e.ExecStart(ctx, x, nil, engine.Attached{Begin: func(bool) (func(stdio.Stream, []byte) error, error) {
			return func(_ stdio.Stream, p []byte) error { out.Write(p); return nil }, nil
		}})
		if (err != nil) != c.fail {
			t.Errorf("%q: %v", c.cmd, err)
		}
		st, err := e.ExecInspect(ctx, x)
		if err != nil || st.Running || st.ExitCode == nil || *st.ExitCode != c.code || out.String() != c.out {
			t.Errorf("%q: %+v, printed %q", c.cmd, st, out.String())
		}
		if err := e.ExecStart(ctx, x, nil, engine.Attached{}); !errdefs.IsConflict(err) {
			t.Errorf("a second start: %v", err)
		}
	}
	late, err := e.ExecCreate(ctx, id, apicontainer.ExecCreateRequest{Cmd: []string{"echo"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Stop(ctx, id, engine.StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := e.ExecStart(ctx, late, nil, engine.Attached{}); !errdefs.IsNotFound(err) {
		t.Errorf("a start after the container's end: %v", err)
	}
	start(t, e, id)
	if err := e.ExecStart(ctx, late, nil, engine.Attached{}); !errdefs.IsNotFound(err) {
		t.Errorf("a start in the container's next run: %v", err)
	}
	if err := e.Remove(ctx, id, engine.RemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
}

func TestHealthTimeout(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	for cmd, want := range map[string]apicontainer.HealthcheckResult{
		"late": {}, // the start does not count
		"deaf": {ExitCode: -1, Output: "Health check exceeded timeout (500ms)"},
	} {
		id, _, err := e.Create(ctx, engine.CreateOptions{Config: &apicontainer.Config{Image: "img", Cmd: []string{"sleep"},
			Healthcheck: &apicontainer.HealthConfig{Test: []string{"CMD", cmd}, Interval: time.Millisecond, Timeout: 500 * time.Millisecond}}})
		if err != nil {
			t.Fatal(err)
		}
		start(t, e, id)
		eventually(t, "a check", func() bool { return len(status(t, e, id).Health.Log) > 0 })
		if got := status(t, e, id).Health.Log[0]; got.ExitCode != want.ExitCode || got.Output != want.Output {
			t.Errorf("%s: %+v", cmd, got)
		}
		if err := e.Remove(ctx, id, engine.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
}

func TestNames(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	id := create(t, e, "taken", nil, "sleep")
	_, _, err := e.Create(ctx, engine.CreateOptions{Name: "/taken", Config: &apicontainer.Config{Image: "img"}})
	if !errdefs.IsConflict(err) || !strings.Contains(err.Error(), `The container name "/taken" is already in use by container "`+id+`"`) {
		t.Errorf("a taken name: %v", err)
	}
	for _, name := range []string{"x", "../x", "a b", "-a", "a/b"} {
		if _, _, err := e.Create(ctx, engine.CreateOptions{Name: name, Config: &apicontainer.Config{Image: "img"}}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	other := create(t, e, "", nil, "sleep")
	if err := e.Rename(ctx, other, "taken"); !errdefs.IsConflict(err) {
		t.Errorf("rename to a taken name: %v", err)
	}
	if err := e.Rename(ctx, id, "free"); err != nil {
		t.Fatal(err)
	}
	if err := e.Rename(ctx, other, "taken"); err != nil {
		t.Errorf("rename to a name that is free again: %v", err)
	}
	e.Close()
	e = w.Engine()
	if i, err := e.Inspect(ctx, "free", false); err != nil || i.ID != id {
		t.Errorf("after a restart: %v", err)
	}
}

func TestCreateChecks(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	for what, o := range map[string]engine.CreateOptions{
		"no config":     {},
		"no image":      {Config: &apicontainer.Config{}},
		"bad workdir":   {Config: &apicontainer.Config{Image: "img", WorkingDir: "rel"}},
		"bad signal":    {Config: &apicontainer.Config{Image: "img", StopSignal: "NOPE"}},
		"bad env":       {Config: &apicontainer.Config{Image: "img", Env: []string{"=x"}}},
		"small memory":  {Config: &apicontainer.Config{Image: "img"}, HostConfig: &apicontainer.HostConfig{Resources: apicontainer.Resources{Memory: 1}}},
		"bad cap":       {Config: &apicontainer.Config{Image: "img"}, HostConfig: &apicontainer.HostConfig{CapAdd: []string{"FLY"}}},
		"bad log":       {Config: &apicontainer.Config{Image: "img"}, HostConfig: &apicontainer.HostConfig{LogConfig: apicontainer.LogConfig{Type: "x"}}},
		"bad bind":      {Config: &apicontainer.Config{Image: "img"}, HostConfig: &apicontainer.HostConfig{Binds: []string{"a:b:c:d"}}},
		"rm and policy": {Config: &apicontainer.Config{Image: "img"}, HostConfig: &apicontainer.HostConfig{AutoRemove: true, RestartPolicy: apicontainer.RestartPolicy{Name: "always"}}},
		"bad seccomp":   {Config: &apicontainer.Config{Image: "img"}, HostConfig: &apicontainer.HostConfig{SecurityOpt: []string{"what=ever"}}},
	} {
		if _, _, err := e.Create(ctx, o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, _, err := e.Create(ctx, engine.CreateOptions{Config: &apicontainer.Config{Image: "nothere"}})
	if !errdefs.IsNotFound(err) {
		t.Errorf("missing image: %v", err)
	}
	if left := w.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestEvents(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	_, sub, err := e.Journal.Subscribe(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	id := create(t, e, "ev", nil, "exit", "4")
	start(t, e, id)
	wait(t, e, id, "")
	if err := e.Remove(ctx, id, engine.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		m := <-sub.C
		got = append(got, string(m.Action))
		if m.Action == events.ActionDie && m.Actor.Attributes["exitCode"] != "4" {
			t.Errorf("die carries %v", m.Actor.Attributes)
		}
		if m.Action == events.ActionDestroy {
			break
		}
	}
	if s := strings.Join(got, " "); s != "create connect start disconnect die destroy" {
		t.Errorf("events: %s", s)
	}
}

func TestPublishedPorts(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	bind := func(port string, bindings ...apinet.PortBinding) *apicontainer.HostConfig {
		return &apicontainer.HostConfig{PortBindings: apinet.PortMap{apinet.MustParsePort(port): bindings}}
	}
	id := create(t, e, "pub", bind("80/tcp", apinet.PortBinding{HostPort: "8080-8082"}, apinet.PortBinding{HostIP: netip.MustParseAddr("127.0.0.1")}), "sleep")
	start(t, e, id)
	want := "tcp 127.0.0.1:40000 tcp [::]:8081"
	if got := strings.Join(w.Listeners(), " "); got != want {
		t.Errorf("the host listens on %s, want %s", got, want)
	}
	six := create(t, e, "six", bind("80/tcp", apinet.PortBinding{HostIP: netip.IPv6Unspecified(), HostPort: "8090"}), "sleep")
	start(t, e, six)
	if got := strings.Join(w.Listeners(), " "); got != want+" tcp6 [::]:8090" {
		t.Errorf("for all IPv6 addresses the host listens on %s", got)
	}
	if err := e.Stop(ctx, six, engine.StopOptions{}); err != nil {
		t.Fatal(err)
	}
	i, err := e.Inspect(ctx, id, false)
	if err != nil {
		t.Fatal(err)
	}
	got := i.NetworkSettings.Ports[apinet.MustParsePort("80/tcp")]
	if len(got) != 3 || got[0].HostPort != "40000" || got[1].HostPort != "8081" || got[2].HostIP != netip.IPv6Unspecified() {
		t.Errorf("inspect shows %+v", got)
	}
	taken := create(t, e, "taken", bind("80/tcp", apinet.PortBinding{HostPort: "8080"}), "sleep")
	const words = "failed to set up container networking: driver failed programming external connectivity on endpoint taken (ep): " +
		"Bind for 0.0.0.0:8080 failed: port is already allocated"
	if err := e.Start(ctx, taken); err == nil || err.Error() != words {
		t.Errorf("a taken port: %v", err)
	}
	if got := strings.Join(w.Listeners(), " "); got != want {
		t.Errorf("after a failure the host listens on %s", got)
	}
	e.Close()
	w.DropListeners() // the engine's connections are gone with it
	e = w.Engine()
	if got := strings.Join(w.Listeners(), " "); got != want {
		t.Errorf("after a crash the host listens on %s, want %s", got, want)
	}
	if err := e.Stop(ctx, id, engine.StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := w.Listeners(); len(got) > 0 {
		t.Errorf("after the stop the host listens on %v", got)
	}
}

func TestParallel(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	done := make(chan error)
	const n = 30
	for range n {
		go func() {
			id, _, err := e.Create(ctx, engine.CreateOptions{Config: &apicontainer.Config{Image: "img", Cmd: []string{"sleep"}}})
			if err == nil {
				err = e.Start(ctx, id)
			}
			if err == nil {
				_, err = e.List(ctx, engine.ListOptions{All: true})
			}
			if err == nil {
				err = e.Remove(ctx, id, engine.RemoveOptions{Force: true})
			}
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if left := w.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestEndOfOutput: who sees an attached container's output end may ask at once how
// it ended, and remove its networks.
func TestEndOfOutput(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	id := create(t, e, "short", nil, "exit", "3")
	c := attach(t, e, id)
	start(t, e, id)
	c.end()
	info, err := e.Inspect(ctx, id, false)
	if err != nil {
		t.Fatal(err)
	}
	if s := info.State; s.Running || s.ExitCode != 3 {
		t.Errorf("after the end of the output it is %s with exit code %d", s.Status, s.ExitCode)
	}
	if ep := info.NetworkSettings.Networks["bridge"]; ep == nil || ep.IPAddress.IsValid() {
		t.Errorf("after the end of the output it is still on the network: %+v", ep)
	}
}

// TestAncestor: a filter by an image finds the containers of what was made from it,
// too.
func TestAncestor(t *testing.T) {
	e := enginetest.New(t).Engine()
	for _, img := range []string{"child", "img"} {
		if _, _, err := e.Create(ctx, engine.CreateOptions{Name: "of-" + img, Config: &apicontainer.Config{Image: img, Cmd: []string{"true"}}}); err != nil {
			t.Fatal(err)
		}
	}
	for image, want := range map[string]string{"img": "/of-img /of-child", "child": "/of-child", "none": ""} {
		list, err := e.List(ctx, engine.ListOptions{All: true, Filters: filter.Set{"ancestor": {image: true}}})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, c := range list {
			names = append(names, c.Names...)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("of %s: %q, want %q", image, got, want)
		}
	}
}

// TestLogPath: the files of one driver only are for others to read, once there are any.
func TestLogPath(t *testing.T) {
	e := enginetest.New(t).Engine()
	for driver, shown := range map[string]bool{"json-file": true, "local": false, "none": false} {
		id := create(t, e, driver, &apicontainer.HostConfig{LogConfig: apicontainer.LogConfig{Type: driver}}, "echo", "x")
		if info, err := e.Inspect(ctx, id, false); err != nil || info.LogPath != "" {
			t.Errorf("%s, not started: %+v, %v", driver, info.LogPath, err)
		}
		start(t, e, id)
		if info, err := e.Inspect(ctx, id, false); err != nil || (info.LogPath != "") != shown {
			t.Errorf("%s: %+v, %v", driver, info.LogPath, err)
		}
	}
}

// TestNonBlockingLog: in that mode a container goes on when its log takes nothing.
func TestNonBlockingLog(t *testing.T) {
	e := enginetest.New(t).Engine()
	const much = 200_000 // bytes; the pipe and the log take less between them
	id := create(t, e, "chatty", &apicontainer.HostConfig{LogConfig: apicontainer.LogConfig{Type: "json-file",
		Config: map[string]string{"mode": "non-blocking", "max-buffer-size": "100k"}}},
		"echo", strings.Repeat("x", much), strings.Repeat("y", much), strings.Repeat("z", much), "end")
	other := create(t, e, "other", nil, "echo", "x")
	start(t, e, other)
	info, err := e.Inspect(ctx, other, false)
	if err != nil {
		t.Fatal(err)
	}
	path := strings.ReplaceAll(info.LogPath, other, id)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	seen, attached := make(chan struct{}), make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		attached <- e.Attach(ctx, id, engine.Attached{Stdout: true, Stream: true, Begin: func(bool) (func(stdio.Stream, []byte) error, error) {
			close(begun)
			return func(_ stdio.Stream, p []byte) error {
				if strings.HasSuffix(string(p), "end\n") {
					close(seen)
				}
				return nil
			}, nil
		}})
	}()
	<-begun
	start(t, e, id)
	select {
	case <-seen:
	case <-time.After(10 * time.Second):
		t.Error("the container waits for its log")
	}
	logged, err := io.ReadAll(log)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-attached; err != nil {
		t.Error(err)
	}
	if code := wait(t, e, id, apicontainer.WaitConditionNotRunning); code != 0 {
		t.Errorf("it exited with %d", code)
	}
	if !strings.HasPrefix(string(logged), `{"log":"xxx`) || len(logged) > 2*much {
		t.Errorf("%d bytes were logged: %.100s", len(logged), logged)
	}
}

// client is someone attached to a container.
type client struct {
	in   *os.File
	done chan error
}

func attach(t *testing.T, e *engine.Engine, id string) *client {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &client{in: w, done: make(chan error, 1)}
	begun := make(chan struct{})
	go func() {
		c.done <- e.Attach(ctx, id, engine.Attached{Stdin: r, Interrupt: func() { r.SetReadDeadline(time.Unix(1, 0)) },
			Stdout: true, Stderr: true, Stream: true,
			Begin: func(bool) (func(stdio.Stream, []byte) error, error) {
				close(begun)
				return func(stdio.Stream, []byte) error { return nil }, nil
			}})
		r.Close()
	}()
	<-begun
	return c
}

func (c *client) type_(s string) { c.in.WriteString(s) }

func (c *client) end() { <-c.done; c.in.Close() }
