//go:build darwin && cgo

package main

import (
	"context"

	"fyne.io/systray"
)

// session has nothing to check: the desktop is always there.
func session(context.Context, func()) error { return nil }

// menuOpened tells when the menu is opened.
func menuOpened(context.Context) <-chan struct{} { return systray.TrayOpenedCh }
