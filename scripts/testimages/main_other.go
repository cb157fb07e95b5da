//go:build !linux

// Command testimages builds the images that the long tests run: on Linux only, as
// it installs Debian's packages in a folder.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "testimages: works on Linux only")
	os.Exit(1)
}
