package vmfake_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/testguest"
	"github.com/berthvm/berth/vm/vmfake"
	"github.com/berthvm/berth/vm/vmtest"
)

// config returns a machine of which only the files matter.
func config(t *testing.T) vm.Config {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return vm.Config{Name: "fake", CPUs: 1, MemoryMiB: 256, Kernel: kernel}
}

// suiteGuest runs the suite's guest program.
func suiteGuest(ctx context.Context, hw *vmfake.Hardware) vmfake.Exit {
	exit, err := testguest.Run(ctx, hw, testguest.Hooks{Button: hw.PowerButton(), Console: hw.Console()})
	switch {
	case err != nil, exit == testguest.Fault:
		return vmfake.Fault
	case exit == testguest.Reboot:
		return vmfake.Reboot
	}
	return vmfake.PowerOff
}

func TestContract(t *testing.T) {
	vmtest.Run(t, vmfake.New(vmfake.Options{Guest: suiteGuest}), config(t))
}

func TestFault(t *testing.T) {
	d := vmfake.New(vmfake.Options{Guest: func(context.Context, *vmfake.Hardware) vmfake.Exit { return vmfake.Fault }})
	m, err := d.New(t.Context(), config(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(t.Context()); !errors.Is(err, vmfake.ErrFault) {
		t.Errorf("Wait() = %v, want %v", err, vmfake.ErrFault)
	}
}

func TestOptionErrors(t *testing.T) {
	fail := errors.New("no such hypervisor")
	d := vmfake.New(vmfake.Options{ProbeErr: fail})
	if _, err := d.Probe(t.Context()); !errors.Is(err, fail) {
		t.Errorf("Probe() = %v", err)
	}
	if _, err := d.New(t.Context(), config(t), t.TempDir()); !errors.Is(err, fail) {
		t.Errorf("New() = %v", err)
	}
	m, err := vmfake.New(vmfake.Options{StartErr: fail}).New(t.Context(), config(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Start(t.Context()); !errors.Is(err, fail) {
		t.Errorf("Start() = %v", err)
	}
	if err := m.Wait(t.Context()); !errors.Is(err, fail) {
		t.Errorf("Wait() = %v", err)
	}
}

// TestIdleGuest checks the guest that is used when none is given.
func TestIdleGuest(t *testing.T) {
	m, err := vmfake.New(vmfake.Options{}).New(t.Context(), config(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(t.Context()); err != nil {
		t.Errorf("Wait() = %v, want nil", err)
	}
}
