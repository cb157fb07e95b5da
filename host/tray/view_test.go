package tray

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/host/api"
)

// render writes a menu as lines: "-" for a line, "!" before what cannot be
// clicked, "x" before what is ticked.
func render(items []Item, indent string) string {
	var b strings.Builder
	for _, i := range items {
		mark := ""
		switch {
		case i.Separator:
			b.WriteString(indent + "-\n")
			continue
		case i.Ticked:
			mark = "x "
		case !i.Enabled:
			mark = "! "
		}
		do := ""
		if i.Action.Do != None {
			do = " => " + strings.TrimSpace(string(i.Action.Do)+" "+i.Action.Arg)
		}
		b.WriteString(indent + mark + i.Label + do + "\n" + render(i.Children, indent+"  "))
	}
	return b.String()
}

func TestView(t *testing.T) {
	web := api.Container{ID: "0123456789abcdef", Name: "web", Image: "nginx:1", State: "running",
		Ports: []api.Port{{Host: 8080, Container: 80, Protocol: "tcp"}, {Host: 8443, Container: 443, Protocol: "tcp"}, {Host: 53, Container: 53, Protocol: "udp"}}}
	for _, test := range []struct {
		name  string
		known Known
		look  Look
		menu  string
	}{
		{"never started", Known{Machine: "default"}, LookStopped, `
! Berth is stopped
-
Start => start
! Stop => stop
! Restart => restart
-
! Open a Shell => shell
Settings Folder => settings
Start at Login => login
-
Quit => quit
`},
		{"running", Known{Machine: "work", Login: true, CPU: 0.254, Usage: &api.Usage{MemoryUsed: 300 << 20, MemoryTotal: 2 << 30},
			Snapshot: api.Snapshot{Status: api.Status{State: api.Running}, Containers: []api.Container{web, {ID: "fedcba98765432100", State: "paused"}}}}, LookRunning, `
! Berth "work" is running, 2 containers
! Memory: 300 of 2048 MiB, CPU: 25 %
-
! Start => start
Stop => stop
Restart => restart
-
web (nginx:1)
  Open Port 8080 => open port http://localhost:8080
  Open Port 8443 => open port https://localhost:8443
  Logs => container logs web
  Stop => stop container 0123456789abcdef
fedcba987654, paused
  Logs => container logs fedcba98765432100
  Stop => stop container fedcba98765432100
-
Open a Shell => shell
Settings Folder => settings
x Start at Login => login
-
Quit (the machine goes on) => quit
`},
		{"starting", Known{Machine: "default", Usage: &api.Usage{}, Snapshot: api.Snapshot{Status: api.Status{State: api.Starting, Phase: "boot"}}}, LookBusy, `
! Berth is starting: boot
-
! Start => start
Stop => stop
! Restart => restart
-
! Open a Shell => shell
Settings Folder => settings
Start at Login => login
-
Quit (the machine goes on) => quit
`},
		{"trouble", Known{Machine: "default", Note: "cannot start: the disk is full\nand so on", Snapshot: api.Snapshot{Status: api.Status{State: api.Failed,
			LastError: "the virtual machine was killed from outside, and this goes on for much longer than a menu is wide"}}}, LookTrouble, `
! Berth has stopped by itself
! the virtual machine was killed from outside, and this goes on for muc…
! cannot start: the disk is full
-
Start => start
! Stop => stop
! Restart => restart
-
! Open a Shell => shell
Settings Folder => settings
Start at Login => login
-
Quit => quit
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := NewView(test.known)
			if got := "\n" + render(v.Items, ""); got != test.menu {
				t.Errorf("menu:%s\nwant:%s", got, test.menu)
			}
			if v.Look != test.look {
				t.Errorf("look %s, want %s", v.Look, test.look)
			}
			if v.Tooltip != v.Items[0].Label {
				t.Errorf("tooltip %q", v.Tooltip)
			}
		})
	}
}

func TestLookOfADeadEngine(t *testing.T) {
	s := api.Status{State: api.Running, Engine: &api.Engine{Running: false}}
	if got := NewView(Known{Machine: "default", Snapshot: api.Snapshot{Status: s}}); got.Look != LookTrouble {
		t.Errorf("%s, %q", got.Look, got.Tooltip)
	}
}

func TestManyContainers(t *testing.T) {
	var all []api.Container
	for i := range 100 {
		all = append(all, api.Container{ID: fmt.Sprint(i), Name: fmt.Sprint("c", i), State: "running"})
	}
	items := containers(all)
	if last := items[len(items)-1]; len(items) != maxShown+1 || last.Label != "and 85 more" || last.Enabled {
		t.Errorf("%d items, the last %+v", len(items), last)
	}
}

func TestSameShape(t *testing.T) {
	k := Known{Machine: "default", Usage: &api.Usage{}, Snapshot: api.Snapshot{Status: api.Status{State: api.Running, Since: time.Unix(1, 0)},
		Containers: []api.Container{{ID: "1", Name: "a", State: "running"}}}}
	a := NewView(k).Items
	k.Usage, k.Login = &api.Usage{MemoryUsed: 1 << 30}, true
	if b := NewView(k).Items; !SameShape(a, b) || slices.EqualFunc(a, b, func(x, y Item) bool { return x.Label == y.Label && x.Ticked == y.Ticked }) {
		t.Error("other figures make another menu")
	}
	k.Snapshot.Containers = []api.Container{{ID: "2", Name: "a", State: "running"}}
	if SameShape(a, NewView(k).Items) {
		t.Error("another container is taken for the same")
	}
}
