package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"slices"

	"github.com/godbus/dbus/v5"
)

// watcher is the name under which a desktop takes icons.
const watcher = "org.kde.StatusNotifierWatcher"

// session checks that there is a desktop to show an icon on, and has over called
// when it ends.
func session(ctx context.Context, over func()) error {
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return errors.New("no desktop was found (neither DISPLAY nor WAYLAND_DISPLAY is set): run this in one")
	}
	bus, err := dbus.SessionBus() // the library's too
	if err != nil {
		return fmt.Errorf("no desktop session was found (%w): run this in one", err)
	}
	var there bool
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, watcher).Store(&there); err != nil {
		return fmt.Errorf("the desktop's session does not answer: %w", err)
	}
	if !there {
		log.Print("this desktop shows no status icons now: the icon comes as soon as it does; GNOME needs the extension AppIndicator for it")
	}
	context.AfterFunc(bus.Context(), over)
	return nil
}

// menuCalls are the calls of a desktop that shows our menu, or is about to.
var menuCalls = []string{"AboutToShow", "AboutToShowGroup", "Event", "EventGroup"}

// menuOpened tells when the menu is opened. The library hears it from some
// desktops only (others say it in a way it ignores), so a second connection
// listens for the calls themselves: nothing comes but those.
func menuOpened(ctx context.Context) <-chan struct{} {
	opened := make(chan struct{})
	bus, err := dbus.SessionBus()
	if err != nil {
		return opened
	}
	monitor, err := dbus.ConnectSessionBus()
	if err != nil {
		log.Print("what Berth uses will not be kept up to date: ", err)
		return opened
	}
	var rules []string
	for _, member := range menuCalls {
		rules = append(rules, "type='method_call',interface='com.canonical.dbusmenu',path='/StatusNotifierItem/menu',member='"+member+"'")
	}
	calls := make(chan *dbus.Message, 16)
	if err := monitor.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.Monitoring.BecomeMonitor", 0, rules, uint32(0)).Err; err != nil {
		log.Print("what Berth uses will not be kept up to date: ", err)
		monitor.Close()
		return opened
	}
	monitor.Eavesdrop(calls)
	context.AfterFunc(ctx, func() { monitor.Close() })
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-monitor.Context().Done():
				return
			case call := <-calls:
				if call == nil {
					return
				}
				to, _ := call.Headers[dbus.FieldDestination].Value().(string)
				if !slices.Contains(bus.Names(), to) {
					continue // another program's menu
				}
				select {
				case opened <- struct{}{}:
				case <-ctx.Done():
				}
			}
		}
	}()
	return opened
}
