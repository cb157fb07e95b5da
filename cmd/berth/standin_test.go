package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/vmfake"
)

// maker is a driver with disks of its own.
type maker struct{ vm.Driver }

func (maker) DiskSuffix() string           { return ".vhdx" }
func (maker) MakeDisk(string, int64) error { return nil }

func TestChoose(t *testing.T) {
	off := fmt.Errorf("%w: the feature is off", vm.ErrUnavailable)
	named := func(name string, err error) vm.Driver {
		return vmfake.New(vmfake.Options{Caps: vm.Caps{Driver: name, Reason: "no WHPX"}, ProbeErr: err})
	}
	for _, test := range []struct {
		name, disk string
		absent     error
		want       string // the driver
		reason     string
	}{
		{"all is there", "", nil, "better", "no WHPX"},
		{"its own disk", "data.vhdx", nil, "better", "no WHPX"},
		{"another's disk", "data.img", nil, "other", "a .img file, which QEMU has made; no WHPX"},
		{"not there", "", off, "other", "the feature is off; no WHPX"},
		{"not there, another's disk", "data.img", off, "other", "the feature is off; no WHPX"},
		{"not there any more", "data.vhdx", off, "better", ""}, // whose Probe says what to do
	} {
		home, err := machine.Locate(func(string) string { return t.TempDir() })
		if err != nil {
			t.Fatal(err)
		}
		m, err := home.Machine("default")
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		if test.disk != "" {
			if err := os.WriteFile(filepath.Join(m.DataDir, test.disk), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d := choose(m, maker{named("better", nil)}, named("other", nil), test.absent)
		caps, err := d.Probe(t.Context())
		if err != nil || caps.Driver != test.want || !strings.HasSuffix(caps.Reason, test.reason) {
			t.Errorf("%s: %+v, %v", test.name, caps, err)
		}
		if _, ok := d.(vm.DiskMaker); ok != (test.want == "better") {
			t.Errorf("%s: the driver has disks of its own: %t", test.name, ok)
		}
	}
	missing := errors.New("QEMU is not installed")
	_, err := standIn{named("other", fmt.Errorf("%w: %w", vm.ErrUnavailable, missing)), off}.Probe(t.Context())
	if !errors.Is(err, vm.ErrUnavailable) || !errors.Is(err, missing) || !strings.Contains(err.Error(), "the feature is off") {
		t.Errorf("with neither: %v", err)
	}
}
