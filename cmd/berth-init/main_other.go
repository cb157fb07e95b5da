//go:build !linux

// Berth-init is the guest's PID 1 and runs on Linux only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "berth-init runs on Linux only")
	os.Exit(1)
}
