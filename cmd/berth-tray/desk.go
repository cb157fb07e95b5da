package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/autostart"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/tray"
)

// screen is the icon and its menu.
type screen interface {
	// show replaces what is shown.
	show(tray.View)
	// clicks and opened tell of what the user does; neither is ever closed.
	clicks() <-chan tray.Action
	opened() <-chan struct{}
}

const (
	// The guest is asked for what it uses when the menu is opened, and for a while
	// after: nothing says when it is closed.
	sampleEvery = time.Second
	sampleFor   = 10 * time.Second
	askTimeout  = 10 * time.Second
)

// desk brings together the screen, the machine and the user's programs.
type desk struct {
	home    machine.Home
	machine machine.Machine
	screen  screen
	self    string // this program
	berth   string // berth's
	// launch starts a program that goes on by itself, in a window of its own or
	// in none. The function it returns waits for it and says what it printed last.
	launch func(argv []string, window bool) (wait func() error, err error)
	around tray.Surroundings

	tasks sync.WaitGroup
	known tray.Known
	last  *api.Usage // the sample before known.Usage
}

// usageReply is an answer to a question for the usage; nil if there was none.
type usageReply struct{ *api.Usage }

// run goes on until the user quits, somebody dismisses the icon, or ctx ends.
func (d *desk) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer d.tasks.Wait()
	defer cancel()
	snapshots, ended := make(chan api.Snapshot), make(chan error, 2)
	d.tasks.Go(func() {
		ended <- tray.Follow(ctx, d.machine, func(s api.Snapshot) {
			select {
			case snapshots <- s:
			case <-ctx.Done():
			}
		})
	})
	d.tasks.Go(func() { ended <- tray.Dismissed(ctx, d.home) })
	d.known = tray.Known{Machine: d.machine.Name, Login: autostart.Enabled(tray.LoginName(d.home))}
	notes, samples := make(chan string, 1), make(chan usageReply, 1)
	ask, tick := false, (<-chan time.Time)(nil)
	var until time.Time
	for {
		if ask {
			ask = false
			d.sample(ctx, samples)
		}
		d.screen.show(tray.NewView(d.known))
		select {
		case err := <-ended:
			if errors.Is(err, context.Canceled) {
				err = nil
			}
			return err
		case s := <-snapshots:
			ask = d.changed(s)
		case note := <-notes:
			d.known.Note = note
		case <-d.screen.opened():
			d.known.Login = autostart.Enabled(tray.LoginName(d.home)) // settings change it too
			until, tick = time.Now().Add(sampleFor), time.After(sampleEvery)
			ask = true
		case <-tick:
			tick = nil
			if ask = time.Now().Before(until); ask {
				tick = time.After(sampleEvery)
			}
		case u := <-samples:
			d.used(u.Usage)
		case a := <-d.screen.clicks():
			if a.Do == tray.Quit {
				return nil
			}
			d.known.Note = ""
			d.act(ctx, a, notes)
		}
	}
}

// changed takes what is new of the machine, and reports whether the usage is to be
// asked for, so that the menu has its line from the beginning.
func (d *desk) changed(s api.Snapshot) (ask bool) {
	if s.Status.State != d.known.Snapshot.Status.State {
		d.known.Usage, d.last = nil, nil
		ask = s.Status.State == api.Running
	}
	d.known.Snapshot = s
	return ask
}

func (d *desk) used(u *api.Usage) {
	if u == nil {
		return
	}
	var earlier api.Usage // the boot
	if d.last != nil {
		earlier = *d.last
	}
	d.known.CPU, d.known.Usage, d.last = u.CPUSince(earlier), u, u
}

// sample asks the guest for what it uses.
func (d *desk) sample(ctx context.Context, to chan<- usageReply) {
	if d.known.Snapshot.Status.State != api.Running {
		return
	}
	d.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		u, err := api.NewClient(d.machine.APIAddress()).Usage(ctx)
		reply := usageReply{&u}
		if err != nil {
			reply.Usage = nil
		}
		select {
		case to <- reply:
		case <-ctx.Done():
		}
	})
}

// act does what a click means. What takes time goes on beside; what went wrong
// becomes a note.
func (d *desk) act(ctx context.Context, a tray.Action, notes chan<- string) {
	note := func(err error) {
		if err == nil {
			return
		}
		log.Print(a.Do, ": ", err)
		select {
		case notes <- strings.TrimPrefix(err.Error(), "berth: "):
		case <-ctx.Done():
		}
	}
	beside := func(f func() error) { d.tasks.Go(func() { note(f()) }) }
	switch a.Do {
	case tray.Start, tray.Stop, tray.Restart:
		beside(func() error { return d.wait(ctx, d.command("machine", string(a.Do))) })
	case tray.StopContainer:
		beside(func() error { return d.stopContainer(ctx, a.Arg) })
	case tray.ContainerLogs:
		beside(func() error { return d.terminal(d.command("container", "logs", "--follow", "--tail", "1000", a.Arg)) })
	case tray.Shell:
		beside(func() error { return d.terminal(d.command("machine", "ssh")) })
	case tray.OpenPort:
		beside(func() error { return d.open(a.Arg) })
	case tray.Settings:
		beside(func() error { return d.open(filepath.Dir(d.machine.ConfigFile)) })
	case tray.Login:
		d.toggleLogin(note)
	}
}

func (d *desk) stopContainer(ctx context.Context, id string) error {
	err := api.NewClient(d.machine.APIAddress()).StopContainer(ctx, id)
	if errors.Is(err, api.ErrUnreachable) {
		return errors.New("the machine is not running")
	}
	return err
}

// command is berth's command line for this machine.
func (d *desk) command(words ...string) []string {
	return append([]string{d.berth, "--machine", d.machine.Name}, words...)
}

// wait runs a command without a window. When the icon goes first, the command goes on.
func (d *desk) wait(ctx context.Context, argv []string) error {
	wait, err := d.launch(argv, false)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- wait() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (d *desk) terminal(argv []string) error {
	argv = d.around.Terminal(argv...)
	if argv == nil {
		return errors.New("no terminal was found: set TERMINAL to yours")
	}
	return d.let(argv, true)
}

func (d *desk) open(what string) error { return d.let(d.around.Open(what), false) }

// let starts a program and forgets it.
func (d *desk) let(argv []string, window bool) error {
	wait, err := d.launch(argv, window)
	if err == nil {
		go wait() // reaps it
	}
	return err
}

func (d *desk) toggleLogin(note func(error)) {
	var err error
	if d.known.Login {
		err = autostart.Disable(tray.LoginName(d.home))
	} else {
		err = autostart.Enable(tray.LoginEntry(d.home, d.self, d.machine.Name))
	}
	d.known.Login = autostart.Enabled(tray.LoginName(d.home))
	if err != nil {
		d.tasks.Go(func() { note(fmt.Errorf("start at login: %w", err)) })
	}
}

// lastLine is what a program has said at its end.
func lastLine(output []byte) string {
	output = bytes.TrimSpace(output)
	return string(bytes.TrimSpace(output[bytes.LastIndexByte(output, '\n')+1:]))
}
