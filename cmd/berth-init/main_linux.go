// Berth-init is the guest's PID 1: see guest/boot.
package main

import (
	"fmt"
	"os"

	"github.com/berthvm/berth/guest/boot"
)

// version is set by the linker.
var version = "dev"

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "berth-init is the first process of Berth's guest; it does nothing elsewhere")
		os.Exit(1)
	}
	boot.Run(version)
}
