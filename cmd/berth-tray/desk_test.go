//go:build !windows

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/host/autostart"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/tray"
)

// patience bounds what should come about soon.
const patience = 20 * time.Second

// paper is a screen that keeps what it is shown.
type paper struct {
	click chan tray.Action
	open  chan struct{}

	mu    sync.Mutex // guards views
	views []tray.View
}

func (p *paper) clicks() <-chan tray.Action { return p.click }
func (p *paper) opened() <-chan struct{}    { return p.open }
func (p *paper) show(v tray.View) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.views = append(p.views, v)
}

func (p *paper) labels() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.views) == 0 {
		return nil
	}
	var all []string
	for _, i := range p.views[len(p.views)-1].Items {
		all = append(all, map[bool]string{true: "x "}[i.Ticked]+i.Label)
	}
	return all
}

// await returns once the menu has the line.
func (p *paper) await(t *testing.T, label string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !slices.Contains(p.labels(), label); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never shown: %q, but %q", label, p.labels())
		}
	}
}

func TestDesk(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", "")
	home, err := machine.Locate(func(key string) string { return map[string]string{machine.EnvHome: dir}[key] })
	if err != nil {
		t.Fatal(err)
	}
	m, err := home.Machine("work")
	if err != nil {
		t.Fatal(err)
	}
	screen := &paper{click: make(chan tray.Action), open: make(chan struct{})}
	ran := make(chan string, 10)
	d := desk{
		home: home, machine: m, screen: screen, self: "/opt/berth-tray", berth: "/opt/berth",
		launch: func(argv []string, window bool) (func() error, error) {
			ran <- strings.Join(argv, " ") + map[bool]string{true: " in a window"}[window]
			return func() error {
				if slices.Contains(argv, "start") {
					return errors.New("berth: cannot start: no hypervisor")
				}
				return nil
			}, nil
		},
		around: tray.Surroundings{GOOS: "windows", Getenv: os.Getenv},
	}
	ended := make(chan error, 1)
	go func() { ended <- d.run(context.Background()) }()

	screen.await(t, `Berth "work" is stopped`)
	for _, c := range []struct {
		action tray.Action
		want   string
	}{
		{tray.Action{Do: tray.Start}, "/opt/berth --machine work machine start"},
		{tray.Action{Do: tray.Stop}, "/opt/berth --machine work machine stop"},
		{tray.Action{Do: tray.Restart}, "/opt/berth --machine work machine restart"},
		{tray.Action{Do: tray.Shell}, "/opt/berth --machine work machine ssh in a window"},
		{tray.Action{Do: tray.ContainerLogs, Arg: "web"}, "/opt/berth --machine work container logs --follow --tail 1000 web in a window"},
		{tray.Action{Do: tray.OpenPort, Arg: "http://localhost:1"}, "rundll32 url.dll,FileProtocolHandler http://localhost:1"},
		{tray.Action{Do: tray.Settings}, "explorer " + filepath.Join(dir, "config")},
	} {
		screen.click <- c.action
		if got := <-ran; got != c.want {
			t.Errorf("%s: %s, want %s", c.action.Do, got, c.want)
		}
		if c.action.Do == tray.Start {
			screen.await(t, "cannot start: no hypervisor")
		}
	}
	screen.click <- tray.Action{Do: tray.StopContainer, Arg: "web"} // nothing runs
	screen.await(t, "the machine is not running")
	screen.click <- tray.Action{Do: tray.Login}
	screen.await(t, "x Start at Login")
	if body, err := os.ReadFile(autostart.Where(tray.LoginName(home))); err != nil || !strings.Contains(string(body), "--machine work") {
		t.Errorf("%s, %v", body, err)
	}
	screen.click <- tray.Action{Do: tray.Login}
	screen.await(t, "Start at Login")
	screen.click <- tray.Action{Do: tray.Quit}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestLastLine(t *testing.T) {
	for in, want := range map[string]string{"": "", "one": "one", "Starting\n  image 0.1s\nberth: no\n\n": "berth: no"} {
		if got := lastLine([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestLaunch runs real programs.
func TestLaunch(t *testing.T) {
	wait, err := launch([]string{"sh", "-c", "echo first >&2; echo no such disk >&2; exit 3"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := wait(); err == nil || err.Error() != "no such disk" {
		t.Errorf("%v", err)
	}
	if _, err := launch([]string{"/no/such/program"}, true); err == nil {
		t.Error("a program that is not there runs")
	}
}
