package kvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// Path is where KVM is.
	Path = "/dev/kvm"

	// probeEnv tells this program, run as a child of itself, to be the probe.
	probeEnv = "BERTH_KVM_PROBE"
	probeOK  = "kvm works"

	// probeTime is how long the guest may take.
	probeTime = 500 * time.Millisecond
)

// probeReady is set once the program has shown that it is able to be the child.
var probeReady atomic.Bool

// probeExtra is more environment for the child, in tests.
var probeExtra []string

// RunProbeChild is the first call of main in every program that calls Try: when
// the program was started as the probe's child, it probes and exits. Without the
// call Try runs nothing and finds KVM at fault.
func RunProbeChild() {
	probeReady.Store(true)
	if os.Getenv(probeEnv) == "" {
		return
	}
	if err := runGuest(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(probeOK)
	os.Exit(0)
}

// Open says what keeps this user from KVM; "" is nothing. It does not try it out.
func Open() (fault string) {
	f, err := os.OpenFile(Path, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no " + Path + ": switch on virtualization in the firmware, or nested virtualization for this machine"
	case errors.Is(err, fs.ErrPermission):
		return Path + " is not yours to use: run `sudo usermod -aG kvm $USER` and log in again"
	case err != nil:
		return fmt.Sprintf("%s does not open: %v", Path, err)
	}
	f.Close()
	return ""
}

// Try runs a few instructions in a guest, in a child process that may hang, and says
// what went wrong; "" is nothing. The error is ctx's.
func Try(ctx context.Context) (fault string, err error) {
	if !probeReady.Load() {
		return "this program does not probe it", nil
	}
	limit, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	cmd := exec.CommandContext(limit, "/proc/self/exe")
	cmd.Env = append([]string{probeEnv + "=1"}, probeExtra...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := cmd.Output()
		done <- result{out, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-time.After(3 * probeTime):
		// Killed, and still there: it hangs in the kernel. The goroutine waits
		// for it for as long as that lasts.
		return "a guest hangs, and cannot even be killed", nil
	}
	text := strings.TrimSpace(string(r.out))
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case r.err == nil && text == probeOK:
		return "", nil
	case limit.Err() != nil:
		return fmt.Sprintf("a guest hangs, or is slower than if it were emulated: it took over %v for its first instructions", probeTime), nil
	case text != "":
		return text, nil
	}
	return fmt.Sprintf("the probe failed: %v", r.err), nil
}
