package main

import (
	"testing"
	"time"
)

// TestMenuOpened has Windows report a menu of this process.
func TestMenuOpened(t *testing.T) {
	opened := menuOpened(t.Context())
	desktop, _, _ := user32.NewProc("GetDesktopWindow").Call()
	notify := user32.NewProc("NotifyWinEvent")
	for range 100 { // the first may come before the hook is there
		notify.Call(0x0004, desktop, 0, 0) // EVENT_SYSTEM_MENUSTART: of a menu bar
		select {
		case <-opened:
			t.Fatal("another event is taken for a menu that is opened")
		default:
		}
		notify.Call(eventMenuPopupStart, desktop, 0, 0)
		select {
		case <-opened:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Error("a menu was opened, and nothing told of it")
}
