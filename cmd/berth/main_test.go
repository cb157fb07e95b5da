package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/fakeguest"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/vmfake"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"berth": func() { os.Exit(run(os.Args[1:], fake())) },
	})
}

// fake is the program on a hypervisor and a guest that are not real. The
// variable BERTH_FAKE makes them misbehave.
func fake() wiring {
	w := production()
	fault, arg, _ := strings.Cut(os.Getenv("BERTH_FAKE"), ":")
	w.driver = func(machine.Machine, machine.Config, *slog.Logger) vm.Driver {
		o := vmfake.Options{}
		guest := fakeguest.Options{}
		switch fault {
		case "hang":
			guest.HangBefore = arg
		case "slow":
			guest.EngineDelay = 500 * time.Millisecond
		case "stubborn":
			guest.NoPowerOff = true
		case "panic":
			guest.Panics = true
		case "protocol":
			guest.Protocol = 99
		case "no-hypervisor":
			o.ProbeErr = fmt.Errorf("%w: QEMU is not installed: install it with \"apt-get install qemu-system-x86\"", vm.ErrUnavailable)
		}
		o.Guest = fakeguest.New(guest)
		return vmfake.New(o)
	}
	w.image = func(_ context.Context, dir string) (daemon.Image, error) {
		file := func(name string) string { return filepath.Join(dir, name) }
		if _, err := os.Stat(file("root")); err != nil {
			return daemon.Image{}, fmt.Errorf("guest image is missing: %w", err)
		}
		return daemon.Image{Version: "fake", Arch: runtime.GOARCH, Kernel: file("kernel"), Initrd: file("initrd"), Root: file("root")}, nil
	}
	w.builder = func() (string, error) {
		if program := os.Getenv("BERTH_FAKE_BUILDER"); program != "" {
			return program, nil
		}
		return findBuilder()
	}
	w.system = []installed{{
		what: "a service of the fake system",
		there: func() bool {
			_, err := os.Stat(os.Getenv("BERTH_FAKE_SERVICE"))
			return err == nil
		},
		remove: func(context.Context, *app) error { return os.Remove(os.Getenv("BERTH_FAKE_SERVICE")) },
	}}
	w.guest = func(o *daemon.Options) {
		reachGuest(o)
		o.Listen = listenHere
		o.Network = func(context.Context) (daemon.Network, error) { return fakeguest.Network{}, nil }
	}
	return w
}

// TestScripts runs testdata/*.txtar, or testdata/windows/*.txtar there: the program as a
// user meets it, but for the virtual machine.
func TestScripts(t *testing.T) {
	dir := "testdata"
	if runtime.GOOS == "windows" {
		dir = filepath.Join(dir, "windows")
	}
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			image := filepath.Join(e.WorkDir, "image")
			for _, dir := range []string{home, image} {
				if err := os.Mkdir(dir, 0o700); err != nil {
					return err
				}
			}
			for _, name := range []string{"kernel", "initrd", "root"} {
				if err := os.WriteFile(filepath.Join(image, name), nil, 0o600); err != nil {
					return err
				}
			}
			if runtime.GOOS == "windows" { // testscript's has no drive
				e.Setenv("USERPROFILE", e.WorkDir)
			}
			e.Setenv("BERTH_HOME", home)
			e.Setenv("BERTH_IMAGE", image)
			e.Setenv("DOCKER_CONFIG", filepath.Join(e.WorkDir, "docker"))
			e.Defer(func() { cleanUp(t, home) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":      exits,
			"killdaemon": killDaemon,
			"gone":       gone,
			"inphase":    inPhase,
			"crlf":       crlf,
		},
	})
}

// exits N COMMAND...: like exec, but the exit code must be N.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%v: exit code %d, want %d\n%s%s", args[1:], got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
	if stderr := ts.ReadFile("stderr"); want != 0 && want < 100 && strings.Count(strings.TrimSpace(stderr), "\n") > 0 && !strings.HasPrefix(stderr, "Starting") {
		ts.Fatalf("%v: more than one line:\n%s", args[1:], stderr)
	}
}

// crlf FROM TO: copies a file with the ends of lines that Windows has.
func crlf(ts *testscript.TestScript, _ bool, args []string) {
	text := strings.ReplaceAll(ts.ReadFile(args[0]), "\n", "\r\n")
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}

// killdaemon: the machine's daemon gets no chance.
func killDaemon(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(ts.Exec("berth", "status", "--format", "json"))
	var s api.Status
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &s))
	ts.Check(kill(s.PID))
	for range 1000 { // it takes the kernel a moment
		if leftovers(ts.MkAbs(ts.Getenv("BERTH_HOME"))) != "default has a daemon" {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// kill ends a process at once.
func kill(pid int) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Kill()
}

// inphase NAME: waits until the machine starts and is in the phase.
func inPhase(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := ts.Exec("berth", "status", "--format", "json")
		var s api.Status
		if err == nil {
			err = json.Unmarshal([]byte(ts.ReadFile("stdout")), &s)
		}
		if err == nil && s.State == api.Starting && s.Phase == args[0] {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("never in phase %s: %+v, %v", args[0], s, err)
		}
	}
}

// gone: there is neither a daemon nor a socket.
func gone(ts *testscript.TestScript, _ bool, _ []string) {
	if left := leftovers(ts.MkAbs(ts.Getenv("BERTH_HOME"))); left != "" {
		ts.Fatalf("left: %s", left)
	}
}

func leftovers(root string) string {
	home, err := machine.Locate(func(string) string { return root })
	if err != nil {
		return err.Error()
	}
	for _, name := range []string{"default", "work"} {
		m, err := home.Machine(name)
		if err != nil {
			return err.Error()
		}
		if machine.Locked(m.DaemonLock()) {
			return name + " has a daemon"
		}
		if found, _ := filepath.Glob(filepath.Join(m.SocketDir, "*.sock")); len(found) > 0 {
			return fmt.Sprint(found)
		}
	}
	return ""
}

func cleanUp(t *testing.T, root string) {
	home, err := machine.Locate(func(string) string { return root })
	if err != nil {
		t.Fatal(err)
	}
	names, err := home.Names()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		m, err := home.Machine(name)
		if err != nil {
			t.Fatal(err)
		}
		if s := m.LastState(); s.PID > 0 {
			kill(s.PID)
		}
		os.RemoveAll(m.SocketDir)
	}
}

// TestCommandTree: no name, alias, flag or shorthand is there twice on the way to
// any command, every command explains itself, and nothing of docker's shadows
// what every command has.
func TestCommandTree(t *testing.T) {
	a, err := newApp(fake())
	if err != nil {
		t.Fatal(err)
	}
	root := a.root(t.Context())
	commands := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		commands++
		names := map[string]string{}
		for _, sub := range c.Commands() {
			for _, name := range append([]string{sub.Name()}, sub.Aliases...) {
				if other, ok := names[name]; ok && other != sub.Name() {
					t.Errorf("%s: %q is both %q and %q", c.CommandPath(), name, other, sub.Name())
				}
				names[name] = sub.Name()
			}
			walk(sub)
		}
		if c.Short == "" {
			t.Errorf("%s has no description", c.CommandPath())
		}
		shorthands := map[string]string{}
		check := func(f *pflag.Flag) {
			if f.Shorthand == "" || f.Name == "help" {
				return
			}
			if other, ok := shorthands[f.Shorthand]; ok && other != f.Name {
				t.Errorf("%s: -%s is both --%s and --%s", c.CommandPath(), f.Shorthand, other, f.Name)
			}
			shorthands[f.Shorthand] = f.Name
		}
		c.LocalFlags().VisitAll(check)
		c.InheritedFlags().VisitAll(check)
		if f := c.Flags().Lookup("machine"); c != root && f != nil && f != root.PersistentFlags().Lookup("machine") {
			t.Errorf("%s has a --machine of its own", c.CommandPath())
		}
	}
	walk(root)
	if commands < 80 {
		t.Errorf("only %d commands: docker's are missing", commands)
	}
	for name := range absent {
		if c, _, err := root.Find([]string{name}); err == nil && c != root {
			t.Errorf("%q is there but should not be", name)
		}
	}
}

func TestExitCodes(t *testing.T) {
	if got := exitCode(fmt.Errorf("x: %w", signaled{syscall.SIGINT})); got != 130 {
		t.Errorf("SIGINT: %d", got)
	}
	if got := exitCode(fmt.Errorf("x: %w", syscall.ENOSPC)); got != exitAtRisk {
		t.Errorf("ENOSPC: %d", got)
	}
	if got := exitCode(fmt.Errorf("x: %w", vm.ErrUnavailable)); got != exitUnsupported {
		t.Errorf("ErrUnavailable: %d", got)
	}
}
