//go:build !darwin || cgo

package main

import (
	"context"
	"runtime"
	"sync"
	"time"

	"fyne.io/systray"

	"github.com/berthvm/berth/host/tray"
)

// display shows an icon while body runs, and returns its error.
func display(ctx context.Context, body func(context.Context, screen) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := session(ctx, cancel); err != nil {
		return err
	}
	ended := make(chan error, 1)
	ready := func() {
		go func() {
			ended <- body(ctx, newStatusArea(ctx))
			systray.Quit()
		}()
	}
	systray.Run(ready, cancel)
	return <-ended
}

// statusArea is the desktop's, by the library. Only one goroutine calls show.
type statusArea struct {
	ctx   context.Context
	click chan tray.Action
	open  <-chan struct{}
	title string
	drawn bool
	items []tray.Item         // that are shown
	shown []*systray.MenuItem // of items, in the order of a walk; nil for lines

	mu   sync.Mutex // guards look
	look tray.Look
}

func newStatusArea(ctx context.Context) *statusArea {
	return &statusArea{ctx: ctx, click: make(chan tray.Action, 8), open: menuOpened(ctx)}
}

func (a *statusArea) clicks() <-chan tray.Action { return a.click }
func (a *statusArea) opened() <-chan struct{}    { return a.open }

func (a *statusArea) show(v tray.View) {
	if !a.drawn {
		if runtime.GOOS == "linux" { // on a Mac it would stand beside the icon
			systray.SetTitle("Berth")
		}
		// The library misses an icon that comes while it is registering.
		time.AfterFunc(time.Second, a.drawIcon)
	}
	if !a.drawn || v.Look != a.look {
		a.mu.Lock()
		a.look = v.Look
		a.mu.Unlock()
		a.drawIcon()
	}
	if v.Tooltip != a.title {
		a.title = v.Tooltip
		systray.SetTooltip(v.Tooltip)
	}
	if a.drawn && tray.SameShape(a.items, v.Items) {
		rest := a.shown
		change(&rest, a.items, v.Items)
	} else {
		systray.ResetMenu()
		a.shown = a.shown[:0]
		a.build(nil, v.Items)
	}
	a.items, a.drawn = v.Items, true
}

func (a *statusArea) drawIcon() {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch runtime.GOOS {
	case "windows":
		systray.SetIcon(tray.ICO(a.look, 16, 20, 24, 32, 48))
	case "darwin":
		systray.SetIcon(tray.PNG(a.look, 64))
	default: // the library takes half-clear pixels for other colours
		systray.SetIcon(tray.HardPNG(a.look, 128))
	}
}

// build adds the items below a parent, or to the menu.
func (a *statusArea) build(parent *systray.MenuItem, items []tray.Item) {
	for _, item := range items {
		if item.Separator {
			systray.AddSeparator()
			a.shown = append(a.shown, nil)
			continue
		}
		m := add(parent, item)
		if !item.Enabled {
			m.Disable()
		}
		a.shown = append(a.shown, m)
		if item.Action.Do != tray.None {
			go a.listen(m, item.Action)
		}
		a.build(m, item.Children)
	}
}

func add(parent *systray.MenuItem, item tray.Item) *systray.MenuItem {
	switch {
	case parent != nil:
		return parent.AddSubMenuItem(item.Label, "")
	case item.Check:
		return systray.AddMenuItemCheckbox(item.Label, "", item.Ticked)
	}
	return systray.AddMenuItem(item.Label, "")
}

// listen hands on an item's clicks until the library takes the item away.
func (a *statusArea) listen(m *systray.MenuItem, action tray.Action) {
	for range m.ClickedCh {
		select {
		case a.click <- action:
		case <-a.ctx.Done():
		}
	}
}

// change makes shown items, of which rest are the first, what they should be now.
func change(rest *[]*systray.MenuItem, old, now []tray.Item) {
	for i, item := range now {
		m := (*rest)[0]
		*rest = (*rest)[1:]
		if m == nil {
			continue
		}
		if item.Label != old[i].Label {
			m.SetTitle(item.Label)
		}
		switch {
		case item.Enabled && !old[i].Enabled:
			m.Enable()
		case !item.Enabled && old[i].Enabled:
			m.Disable()
		}
		switch {
		case item.Ticked && !old[i].Ticked:
			m.Check()
		case !item.Ticked && old[i].Ticked:
			m.Uncheck()
		}
		change(rest, old[i].Children, item.Children)
	}
}
