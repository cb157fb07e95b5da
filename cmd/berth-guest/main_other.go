//go:build !linux

// Command berth-guest is the engine inside the machine: it runs on Linux only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "berth-guest runs inside the machine, on Linux")
	os.Exit(1)
}
