package monitor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Slack is how late the monitor may be: long beside its 20 µs, and short beside
// what a blocked goroutine costs those that wait behind it.
const Slack = 5 * time.Millisecond

// Relax lets this program's monitor thread be late by Slack. It is to be called
// once, early in main.
func Relax() error {
	tid, err := thread()
	if err == nil {
		// Of a thread other than the caller's there is no system call for it.
		err = os.WriteFile(slackFile(tid), strconv.AppendInt(nil, Slack.Nanoseconds(), 10), 0)
	}
	if err != nil {
		return fmt.Errorf("cannot slow the runtime's monitor thread down: %w", err)
	}
	return nil
}

// thread returns the monitor's thread ID. The runtime makes it before any other
// thread, and the kernel lists threads in the order in which they were made.
func thread() (string, error) {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return "", err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(2)
	if err != nil {
		return "", err
	}
	if len(names) < 2 {
		return "", errors.New("there is only one thread")
	}
	return names[1], nil
}

// slackFile is outside the task directory, which has no such file: the kernel
// accepts any thread's ID as a name in /proc.
func slackFile(tid string) string { return "/proc/" + tid + "/timerslack_ns" }
