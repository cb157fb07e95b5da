// Berth-init is the guest's PID 1: see guest/boot. Under the name docker-init it
// is PID 1 of a container that asked for one: see guest/container/reaper.
package main

import (
	"fmt"
	"os"
	"path"

	"github.com/berthvm/berth/guest/boot"
	"github.com/berthvm/berth/guest/container/reaper"
)

// version is set by the linker.
var version = "dev"

func main() {
	if path.Base(os.Args[0]) == reaper.Name {
		reaper.Main(os.Args[1:])
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "berth-init is the first process of Berth's guest; it does nothing elsewhere")
		os.Exit(1)
	}
	boot.Run(version)
}
