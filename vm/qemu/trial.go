package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

const (
	// trialTime is how long QEMU's firmware may take; it needs a tenth of that
	// when it is emulated.
	trialTime = 3 * time.Second

	// firmwareDone is what SeaBIOS says when it has set the board up and looks for
	// something to boot.
	firmwareDone = "enter handle_19"
)

// switchOff is a kernel for arm64 that powers the machine off, by PSCI.
var switchOff = []byte{
	0x00, 0x01, 0x80, 0xd2, // movz x0, #0x0008
	0x00, 0x80, 0xb0, 0xf2, // movk x0, #0x8400, lsl #16
	0x02, 0x00, 0x00, 0xd4, // hvc #0
}

// tryQEMU finds out whether QEMU itself gets along with an accelerator and a model
// of CPU: there are kernels whose KVM runs an instruction, but not QEMU's choice of
// registers or not firmware. It returns what is wrong; "" is nothing.
func tryQEMU(ctx context.Context, p program, arch, accel, model string) (fault string, err error) {
	limit, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	code, err := os.CreateTemp("", "berth-probe-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(code.Name())
	_, err = code.Write(switchOff)
	if code.Close(); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(limit, p.path, trialArgs(arch, accel, model, code.Name())...)
	cmd.SysProcAttr = procAttr()
	cmd.WaitDelay = time.Second
	out := &awaited{text: firmwareDone, seen: cancel}
	words := &tail{}
	cmd.Stdout, cmd.Stderr = out, words
	done := make(chan error, 1)
	go func() { done <- cmd.Run() }()
	select {
	case err = <-done:
	case <-time.After(2 * trialTime):
		return "QEMU hangs with it, and cannot even be killed", nil
	}
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case out.found || err == nil && arch == "arm64":
		return "", nil
	case limit.Err() != nil:
		return fmt.Sprintf("it runs an instruction, but QEMU's guest hangs in its firmware (%v)", trialTime), nil
	}
	why, _, _ := strings.Cut(words.String(), "; ") // the rest is about QEMU's source
	why = strings.TrimPrefix(why, "error: ")
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		why = err.Error()
	} else if why == "" {
		why = "it ended before its firmware was done"
	}
	return "QEMU does not get along with it: " + why, nil
}

// trialArgs make a machine that ends by itself, or says that it has come far
// enough.
func trialArgs(arch, accel, model, code string) []string {
	args := []string{"-no-user-config", "-nodefaults", "-display", "none", "-m", "64"}
	machine := machineArgs(arch, accel, runtime.GOOS, 1)
	machine[1] = strings.Replace(machine[1], ",memory-backend=mem", "", 1)
	args = append(append(args, machine...), cpuArgs(model, 1)...)
	if arch == "arm64" {
		return append(args, "-kernel", code)
	}
	return append(args,
		"-chardev", "stdio,id=firmware,signal=off",
		"-device", "isa-debugcon,iobase=0x402,chardev=firmware")
}

// awaited calls seen once a text was written to it.
type awaited struct {
	text  string
	seen  func()
	found bool
	data  []byte
}

// Write implements io.Writer.
func (a *awaited) Write(p []byte) (int, error) {
	if a.found {
		return len(p), nil
	}
	a.data = append(a.data, p...)
	if bytes.Contains(a.data, []byte(a.text)) {
		a.found, a.data = true, nil
		a.seen()
	} else if extra := len(a.data) - tailSize; extra > 0 {
		a.data = a.data[extra:]
	}
	return len(p), nil
}
