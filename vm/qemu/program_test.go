package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/berthvm/berth/vm"
)

func TestParseVersion(t *testing.T) {
	tests := []struct {
		text string
		want version
		ok   bool
	}{
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright", version{7, 2, 22}, true},
		{"QEMU emulator version 10.0.2\n", version{10, 0, 2}, true},
		{"QEMU emulator version 9.1\n", version{9, 1, 0}, true},
		{"warning: x\nQEMU emulator version 8.2.1 (v8.2.1)", version{8, 2, 1}, true},
		{"QEMU emulator version 99999.2.1", version{}, false},
		{"bash: no such thing", version{}, false},
		{"", version{}, false},
	}
	for _, tt := range tests {
		got, err := parseVersion([]byte(tt.text))
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("parseVersion(%q) = %v, %v, want %v", tt.text, got, err, tt.want)
		}
	}
}

func TestVersionLess(t *testing.T) {
	order := []version{{0, 0, 0}, {7, 1, 9}, {7, 2, 0}, {7, 2, 22}, {8, 0, 0}, {10, 0, 0}}
	for i, a := range order {
		for j, b := range order {
			if got := a.less(b); got != (i < j) {
				t.Errorf("%v.less(%v) = %t", a, b, got)
			}
		}
	}
}

// script writes a program that stands for QEMU.
func script(t *testing.T, body string) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell")
	}
	name := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestFindProgram(t *testing.T) {
	tests := []struct {
		name, body, want string // want: in the error, "" for none
	}{
		{"good", `echo 'QEMU emulator version 7.2.0'; echo '-sandbox on'`, ""},
		{"too old", `echo 'QEMU emulator version 6.2.0'`, "is QEMU 6.2.0, but 7.2.0 or newer is needed: install it with"},
		{"broken", `exit 127`, "does not run"},
		{"something else", `echo hello`, "does not say which version"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := findProgram(t.Context(), script(t, tt.body), "amd64")
			if tt.want == "" {
				if err != nil || !p.sandbox || p.version != minVersion {
					t.Errorf("findProgram() = %+v, %v", p, err)
				}
				return
			}
			if !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("findProgram() = %v, want ErrUnavailable and %q", err, tt.want)
			}
		})
	}
}

func TestProgramMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	d := New(Options{})
	for range 2 {
		_, err := d.Probe(t.Context())
		if !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), "install it with") && runtime.GOOS == "linux" {
			t.Fatalf("Probe() without QEMU = %v", err)
		}
	}
}

func TestUsualDirs(t *testing.T) {
	env := map[string]string{"ProgramFiles": "/pf"}
	for _, tt := range []struct{ goos, want string }{
		{"darwin", "/opt/homebrew/bin"}, {"darwin", "/usr/local/bin"}, {"windows", filepath.Join("/pf", "qemu")},
	} {
		if got := usualDirs(tt.goos, func(name string) string { return env[name] }); !slices.Contains(got, tt.want) {
			t.Errorf("usualDirs(%s) = %q, want %q among them", tt.goos, got, tt.want)
		}
	}
}

func TestRemedy(t *testing.T) {
	for _, tt := range []struct{ goos, arch, want string }{
		{"linux", "amd64", "sudo apt-get install qemu-system-x86"},
		{"linux", "arm64", "sudo apt-get install qemu-system-arm"},
		{"darwin", "arm64", "brew install qemu"},
		{"windows", "amd64", "winget install SoftwareFreedomConservancy.QEMU"},
	} {
		if got := remedy(tt.goos, tt.arch); !strings.Contains(got, tt.want) {
			t.Errorf("remedy(%s, %s) = %q, want %q in it", tt.goos, tt.arch, got, tt.want)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parseVersion([]byte(text))
		if err == nil && v.less(version{}) {
			t.Errorf("parseVersion(%q) = %v", text, v)
		}
	})
}
