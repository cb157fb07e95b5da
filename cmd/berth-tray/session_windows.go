package main

import (
	"context"
	"log"
	"runtime"
	"unsafe"

	"golang.org/x/sys/windows"
)

// session has nothing to check: the desktop is always there.
func session(context.Context, func()) error { return nil }

var (
	user32           = windows.NewLazySystemDLL("user32.dll")
	procSetEventHook = user32.NewProc("SetWinEventHook")
	procUnhookEvent  = user32.NewProc("UnhookWinEvent")
	procGetMessage   = user32.NewProc("GetMessageW")
	procPostToThread = user32.NewProc("PostThreadMessageW")
	procPeekMessage  = user32.NewProc("PeekMessageW")
	onMenuPopup      = windows.NewCallback(menuPopup)
	popups           = make(chan struct{}, 1) // one that nobody has taken is enough
)

const (
	eventMenuPopupStart = 0x0006 // EVENT_SYSTEM_MENUPOPUPSTART
	outOfContext        = 0      // WINEVENT_OUTOFCONTEXT
	wmQuit              = 0x0012
)

// message is MSG of winuser.h.
type message struct {
	window  uintptr
	kind    uint32
	w, l    uintptr
	time    uint32
	x, y    int32
	private uint32
}

// menuOpened tells when a menu of this process is opened. The library does not say it
// on Windows, which tells whoever asks for the events of a process.
func menuOpened(ctx context.Context) <-chan struct{} {
	go func() {
		// The events come to the thread that asks for them, as messages.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var m message
		procPeekMessage.Call(uintptr(unsafe.Pointer(&m)), 0, 0, 0, 0) // makes the thread's queue
		thread := windows.GetCurrentThreadId()
		hook, _, err := procSetEventHook.Call(eventMenuPopupStart, eventMenuPopupStart, 0, onMenuPopup,
			uintptr(windows.GetCurrentProcessId()), 0, outOfContext)
		if hook == 0 {
			log.Print("what Berth uses will not be kept up to date: ", err)
			return
		}
		defer procUnhookEvent.Call(hook)
		stop := context.AfterFunc(ctx, func() { procPostToThread.Call(uintptr(thread), wmQuit, 0, 0) })
		defer stop()
		for {
			if more, _, _ := procGetMessage.Call(uintptr(unsafe.Pointer(&m)), 0, 0, 0); int32(more) <= 0 {
				return
			}
		}
	}()
	return popups
}

// menuPopup is a WINEVENTPROC.
func menuPopup(hook, event, window, object, child, thread, time uintptr) uintptr {
	select {
	case popups <- struct{}{}:
	default:
	}
	return 0
}
