//go:build !windows

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// onResize calls f when the terminal's size changes, until stop is called.
func onResize(f func()) (stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	go func() {
		for range c {
			f()
		}
	}()
	return func() {
		signal.Stop(c)
		close(c)
	}
}
