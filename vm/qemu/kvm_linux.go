package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/vm/internal/kvm"
)

// RunProbeChild is the first call of main in every program that uses this
// driver: when the program was started as the KVM probe's child, it probes and
// exits. Without the call the driver never uses KVM.
func RunProbeChild() { kvm.RunProbeChild() }

// native is this host's accelerator.
const native = KVM

// nativeFault says what is wrong with KVM; "" is nothing. What a trial has found
// is kept in cacheDir.
func nativeFault(ctx context.Context, p program, arch, model, cacheDir string) (string, error) {
	if fault := kvm.Open(); fault != "" {
		return fault, nil
	}
	if cacheDir != "" {
		if fault, ok := readProbe(filepath.Join(cacheDir, probeFile), probeKeyFor(p), bootID()); ok {
			return fault, nil
		}
	}
	fault, err := kvm.Try(ctx)
	if err == nil && fault == "" {
		fault, err = tryQEMU(ctx, p, arch, KVM, model)
	}
	if err == nil {
		noteFault(p, cacheDir, fault)
	}
	return fault, err
}

const (
	// probeFile is where a trial's result is kept, in the cache's directory.
	probeFile = "kvm.json"

	// probeVersion counts what a trial consists of: an older one's result says
	// nothing.
	probeVersion = 2
)

// noteFault keeps what a trial has found, or what a machine did later, for the
// trials to come.
func noteFault(p program, cacheDir, fault string) {
	if cacheDir != "" {
		writeProbe(filepath.Join(cacheDir, probeFile), probeResult{probeKey: probeKeyFor(p), Boot: bootID(), Fault: fault})
	}
}

func probeKeyFor(p program) probeKey {
	return probeKey{Version: probeVersion, Kernel: kernelRelease(), CPU: cpuModel(), QEMU: p.version.String()}
}

// probeKey is what a probe's result depends on.
type probeKey struct {
	Version int    `json:"version"`
	Kernel  string `json:"kernel"`
	CPU     string `json:"cpu"`
	QEMU    string `json:"qemu"`
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
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
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
