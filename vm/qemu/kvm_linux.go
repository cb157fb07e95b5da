package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	kvmPath = "/dev/kvm"

	// probeEnv tells this program, run as a child of itself, to be the probe.
	probeEnv = "BERTH_KVM_PROBE"
	probeOK  = "kvm works"

	// probeTime is how long one instruction may take.
	probeTime = 500 * time.Millisecond
)

// probeReady is set once the program has shown that it is able to be the child.
var probeReady atomic.Bool

// RunProbeChild is the first call of main in every program that uses this
// driver: when the program was started as the probe's child, it probes and
// exits. Without the call the driver never tries KVM.
func RunProbeChild() {
	probeReady.Store(true)
	if os.Getenv(probeEnv) == "" {
		return
	}
	if err := runOneInstruction(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(probeOK)
	os.Exit(0)
}

// kvmFault says what is wrong with KVM; "" is nothing.
func kvmFault(ctx context.Context, p program, arch, cacheDir string) (string, error) {
	f, err := os.OpenFile(kvmPath, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no " + kvmPath + ": switch on virtualization in the firmware, or nested virtualization for this machine", nil
	case errors.Is(err, fs.ErrPermission):
		return kvmPath + " is not yours to use: run `sudo usermod -aG kvm $USER` and log in again", nil
	case err != nil:
		return fmt.Sprintf("%s does not open: %v", kvmPath, err), nil
	}
	f.Close()
	key := probeKey{Kernel: kernelRelease(), CPU: cpuModel(), QEMU: p.version.String()}
	cache := filepath.Join(cacheDir, "kvm.json")
	if cacheDir != "" {
		if fault, ok := readProbe(cache, key, bootID()); ok {
			return fault, nil
		}
	}
	fault, err := probeKVM(ctx)
	if err == nil && fault == "" {
		fault, err = tryQEMU(ctx, p, arch)
	}
	if err == nil && cacheDir != "" {
		writeProbe(cache, probeResult{probeKey: key, Boot: bootID(), Fault: fault})
	}
	return fault, err
}

// probeKVM tries KVM in a child process, which may hang.
func probeKVM(ctx context.Context) (fault string, err error) {
	if !probeReady.Load() {
		return "this program does not probe it", nil
	}
	limit, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	cmd := exec.CommandContext(limit, "/proc/self/exe")
	cmd.Env = []string{probeEnv + "=1"}
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
		return fmt.Sprintf("a guest hangs: it did not run one instruction within %v", probeTime), nil
	case text != "":
		return text, nil
	}
	return fmt.Sprintf("the probe failed: %v", r.err), nil
}

// probeKey is what a probe's result depends on.
type probeKey struct {
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	QEMU   string `json:"qemu"`
}

// probeResult is what the cache holds.
type probeResult struct {
	probeKey
	Boot  string `json:"boot"` // the host's boot id
	Fault string `json:"fault"`
}

// readProbe looks a result up. A bad one holds for one boot of the host only:
// what mends it, a setting of the firmware or of an outer hypervisor, takes a
// boot too.
func readProbe(name string, key probeKey, boot string) (fault string, ok bool) {
	data, err := os.ReadFile(name)
	if err != nil {
		return "", false
	}
	var r probeResult
	if json.Unmarshal(data, &r) != nil || r.probeKey != key {
		return "", false
	}
	return r.Fault, r.Fault == "" || r.Boot == boot
}

// writeProbe stores a result. A cache that cannot be written is no cache.
func writeProbe(name string, r probeResult) {
	data, err := json.Marshal(r)
	if err != nil {
		return
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".kvm-*")
	if err != nil {
		return
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// cpuModel returns the first processor's lines that name it.
func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(info), "\n\n")
	var model []string
	for line := range strings.Lines(first) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "model name", "stepping", "microcode", "CPU implementer", "CPU part", "CPU revision":
			model = append(model, strings.TrimSpace(value))
		}
	}
	return strings.Join(model, " ")
}
