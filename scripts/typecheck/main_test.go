package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const driver = "../../vm/vz"

func darwin(arch string) platform { return platform{"darwin", arch, true} }

// TestFindsSeededErrors puts mistakes into the macOS driver, as they would be
// made by hand, and wants each found in its file.
func TestFindsSeededErrors(t *testing.T) {
	tests := []struct {
		name, arch, file string
		right, wrong     string
		want             string
	}{
		{"a method that vz lacks", "arm64", "system_darwin.go", "b.vm.Start()", "b.vm.Begin()", "Begin"},
		{"the same for Intel", "amd64", "system_darwin.go", "b.vm.Start()", "b.vm.Begin()", "Begin"},
		{"an argument's type", "arm64", "configure_darwin.go", "NewVirtualMachineConfiguration(loader, s.cpus,", "NewVirtualMachineConfiguration(loader, s.kernel,", "cannot use s.kernel"},
		{"an unused variable", "arm64", "configure_darwin.go", "sync = vz.DiskImageSynchronizationModeFsync", "none := vz.DiskImageSynchronizationModeFsync", "declared and not used"},
		{"a call that Intel lacks", "amd64", "apple_darwin_amd64.go", "return nil, nil }", "return vz.NewLinuxRosettaDirectoryShare() }", "undefined"},
		{"another number of a state", "arm64", "system_darwin.go", "uint(stateError -", "uint(statePaused -", "overflows"},
		{"an interface not met", "arm64", "system_darwin.go", "func (b *box) canSave()", "func (b *box) canStore()", "missing method canSave"},
		{"syntax", "arm64", "apple_darwin_arm64.go", "return nil, nil", "return nil,, nil", "expected operand"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			overlay, file := seed(t, tt.file, tt.right, tt.wrong)
			faults, _, err := check(darwin(tt.arch), overlay, []string{driver})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range faults {
				if strings.Contains(f.Error(), tt.want) && strings.Contains(f.Error(), file) {
					return
				}
			}
			t.Errorf("no error with %q in %s among %v", tt.want, file, faults)
		})
	}
}

// seed returns an overlay in which a file of the driver has a mistake, and the
// name of that file, which an error has to mention.
func seed(t *testing.T, name, right, wrong string) (overlay, file string) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(driver, name))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), right) {
		t.Fatalf("%s has no %q any more: adapt the test", name, right)
	}
	dir := t.TempDir()
	bad := filepath.Join(dir, name)
	if err := os.WriteFile(bad, []byte(strings.Replace(string(text), right, wrong, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{path: bad}})
	if err != nil {
		t.Fatal(err)
	}
	overlay = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, list, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay, name
}

func TestDriver(t *testing.T) {
	for _, arch := range []string{"arm64", "amd64"} {
		faults, packages, err := check(darwin(arch), "", []string{driver})
		if err != nil || len(faults) > 0 {
			t.Errorf("%s: %v %v", arch, faults, err)
		}
		if packages < 50 {
			t.Errorf("%s: only %d packages: the library is not among them", arch, packages)
		}
	}
}

func TestNoSuchPackage(t *testing.T) {
	faults, _, err := check(darwin("arm64"), "", []string{"./nowhere"})
	if err == nil && len(faults) == 0 {
		t.Error("a package that does not exist passes")
	}
}
