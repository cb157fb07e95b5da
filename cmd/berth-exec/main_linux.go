// Command berth-exec is the first process of every container, before the user's
// program. It takes no arguments: its orders come over an inherited socket, see
// guest/container/order. It is of no use on its own.
package main

import (
	"runtime"

	"github.com/berthvm/berth/guest/container/initproc"
)

// The main goroutine stays on the process's first thread, whose credentials,
// filter and namespaces become the program's.
func init() { runtime.LockOSThread() }

func main() { initproc.Main() }
