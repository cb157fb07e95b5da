// Package tray is what the icon in the desktop's status area shows and does, as
// plain values: View makes the menu from what is known of a machine, and the
// functions beside it say which program each entry runs. It draws no menu: that
// is cmd/berth-tray, on the desktop's own library.
//
// Follow tells of all that happens to the machine, whoever does it, without
// asking again and again.
package tray

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/machine"
)

// Known is all that the menu is made from.
type Known struct {
	Machine  string // its name
	Snapshot api.Snapshot
	Usage    *api.Usage // nil when it is not known
	CPU      float64    // share of one CPU in use
	Note     string     // what went wrong with the last click, if anything
	Login    bool       // it starts at login
}

// Verb is what a click does.
type Verb string

// The verbs. Those of containers and ports have an argument.
const (
	None          Verb = ""
	Start         Verb = "start"
	Stop          Verb = "stop"
	Restart       Verb = "restart"
	StopContainer Verb = "stop container" // Arg: its ID
	ContainerLogs Verb = "container logs" // Arg: its name
	OpenPort      Verb = "open port"      // Arg: a URL
	Shell         Verb = "shell"
	Settings      Verb = "settings"
	Login         Verb = "login" // starts at login from now on, or no longer
	Quit          Verb = "quit"
)

// Action is a click's meaning.
type Action struct {
	Do  Verb
	Arg string
}

// Item is one entry of the menu.
type Item struct {
	Label     string
	Action    Action
	Enabled   bool
	Check     bool // it can be ticked
	Ticked    bool
	Separator bool // a line, and nothing else
	Children  []Item
}

// View is the icon and its menu.
type View struct {
	Look    Look
	Tooltip string
	Items   []Item
}

// maxShown bounds how many containers the menu has, and maxText a line's length
// in characters.
const maxShown, maxText = 15, 70

// NewView makes the view of what is known.
func NewView(k Known) View {
	s := k.Snapshot.Status
	line := Item{Separator: true}
	items := []Item{text(headline(k))}
	if s.LastError != "" {
		items = append(items, text(s.LastError))
	}
	if k.Note != "" && k.Note != s.LastError {
		items = append(items, text(k.Note))
	}
	if s.State == api.Running && k.Usage != nil {
		items = append(items, text(usage(*k.Usage, k.CPU)))
	}
	items = append(items, line)
	items = append(items, verbs(s.State)...)
	if list := containers(k.Snapshot.Containers); len(list) > 0 {
		items = append(append(items, line), list...)
	}
	items = append(items, line,
		Item{Label: "Open a Shell", Action: Action{Do: Shell}, Enabled: s.State == api.Running},
		Item{Label: "Settings Folder", Action: Action{Do: Settings}, Enabled: true},
		Item{Label: "Start at Login", Action: Action{Do: Login}, Enabled: true, Check: true, Ticked: k.Login},
		line, quit(s.State))
	return View{Look: look(s), Tooltip: headline(k), Items: items}
}

// text is an entry to read.
func text(s string) Item { return Item{Label: short(s)} }

// short fits a message into a line of the menu.
func short(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if r := []rune(s); len(r) > maxText {
		s = strings.TrimSpace(string(r[:maxText-1])) + "…"
	}
	return s
}

func look(s api.Status) Look {
	switch s.State {
	case api.Starting, api.Stopping:
		return LookBusy
	case api.Failed:
		return LookTrouble
	case api.Running:
		if s.Engine != nil && !s.Engine.Running {
			return LookTrouble
		}
		return LookRunning
	}
	return LookStopped
}

func headline(k Known) string {
	name := "Berth"
	if k.Machine != machine.Default {
		name += " " + strconv.Quote(k.Machine)
	}
	s := k.Snapshot.Status
	switch s.State {
	case api.Failed:
		return name + " has stopped by itself"
	case api.Starting:
		if s.Phase != "" {
			return name + " is starting: " + s.Phase
		}
	case api.Running:
		if s.Engine != nil && !s.Engine.Running {
			return name + "'s engine is being restarted"
		}
		if s.Paused {
			return name + " is paused"
		}
		if n := len(k.Snapshot.Containers); n > 0 {
			return fmt.Sprintf("%s is running, %s", name, plural(n, "container"))
		}
	case "":
		return name + " is stopped"
	}
	return name + " is " + string(s.State)
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

// usage rounds, so that the menu does not change with every byte.
func usage(u api.Usage, cpu float64) string {
	const mib = 1 << 20
	return fmt.Sprintf("Memory: %d of %d MiB, CPU: %.0f %%", u.MemoryUsed/mib, u.MemoryTotal/mib, 100*cpu)
}

func verbs(s api.State) []Item {
	running := s == api.Running
	return []Item{
		{Label: "Start", Action: Action{Do: Start}, Enabled: !s.Alive()},
		{Label: "Stop", Action: Action{Do: Stop}, Enabled: running || s == api.Starting},
		{Label: "Restart", Action: Action{Do: Restart}, Enabled: running},
	}
}

func containers(all []api.Container) []Item {
	var items []Item
	for _, c := range all[:min(len(all), maxShown)] {
		items = append(items, Item{Label: short(title(c)), Enabled: true, Children: container(c)})
	}
	if more := len(all) - maxShown; more > 0 {
		items = append(items, text(fmt.Sprintf("and %d more", more)))
	}
	return items
}

func title(c api.Container) string {
	s := c.Name
	if s == "" {
		s = c.ID[:min(len(c.ID), 12)]
	}
	if c.Image != "" {
		s += " (" + c.Image + ")"
	}
	if c.State != "running" {
		s += ", " + c.State
	}
	return s
}

func container(c api.Container) []Item {
	var items []Item
	for _, p := range c.Ports {
		if p.Protocol == "tcp" {
			items = append(items, Item{Label: fmt.Sprintf("Open Port %d", p.Host), Action: Action{OpenPort, address(p)}, Enabled: true})
		}
	}
	name := c.Name
	if name == "" {
		name = c.ID
	}
	return append(items,
		Item{Label: "Logs", Action: Action{ContainerLogs, name}, Enabled: true},
		Item{Label: "Stop", Action: Action{StopContainer, c.ID}, Enabled: true})
}

// address is where a browser finds a published port.
func address(p api.Port) string {
	scheme := "http"
	if slices.Contains([]uint16{443, 8443}, p.Container) {
		scheme = "https"
	}
	return scheme + "://localhost:" + strconv.Itoa(int(p.Host))
}

func quit(s api.State) Item {
	label := "Quit"
	if s.Alive() {
		label = "Quit (the machine goes on)"
	}
	return Item{Label: label, Action: Action{Do: Quit}, Enabled: true}
}

// SameShape reports whether two menus differ in labels, ticks and what is enabled
// at most: then one can become the other while it is open.
func SameShape(a, b []Item) bool {
	return slices.EqualFunc(a, b, func(x, y Item) bool {
		return x.Separator == y.Separator && x.Check == y.Check && x.Action == y.Action && SameShape(x.Children, y.Children)
	})
}
