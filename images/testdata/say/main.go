// Command say prints what it was built for, and its arguments. As an interpreter of
// programs it so tells which one it was given.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

func main() { fmt.Printf("%s: %s\n", runtime.GOARCH, strings.Join(os.Args, " ")) }
