// Berth runs containers in a light Linux virtual machine. This command is all of
// its host side: it manages machines, is the daemon behind a running one
// ("berth daemon", started by "berth start"), and has docker's commands built in.
//
// How it talks to people:
//   - standard output holds results only; progress and messages go to standard
//     error, progress as one updated line on a terminal and as plain lines
//     elsewhere, and colours on a terminal only (and never with NO_COLOR);
//   - an error is one line that says what to do;
//   - the exit code says what kind of failure it was, see exit.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	hooks() // children of the drivers' probes end here
	os.Exit(run(os.Args[1:], production()))
}

// signaled is the cause of a context that a signal has ended.
type signaled struct{ os.Signal }

func (s signaled) Error() string { return "interrupted" }

// run is the program, without the process.
func run(args []string, w wiring) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		s, ok := <-signals
		if ok {
			cancel(signaled{s})
			signal.Stop(signals) // the second one ends the process at once
		}
	}()
	a, err := newApp(w)
	if err == nil {
		root := a.root(ctx)
		root.SetArgs(args)
		err = root.ExecuteContext(ctx)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil && errors.Is(err, context.Canceled) {
		if errors.As(err, new(dockerError)) {
			cause = fromDocker(cause)
		}
		err = cause
	}
	if err != nil && !wordless(err) {
		fmt.Fprintln(w.err, message(err))
	}
	return exitCode(err)
}
