//go:build unix

package qemu

import (
	"context"
	"strings"
	"testing"
	"time"
)

// TestTryQEMU checks what is made of a QEMU that tries KVM.
func TestTryQEMU(t *testing.T) {
	tests := []struct {
		name, body, want string // want: in the fault, "" for none
	}{
		{"firmware runs", "echo SeaBIOS; echo 'enter handle_19:'; exec sleep 60", ""},
		{"aborts", "echo 'qemu-system-x86_64: error: failed to set MSR' >&2; echo 'kvm.c:1: Assertion' >&2; exit 134", "QEMU does not get along with it: failed to set MSR"},
		{"ends early", "exit 0", "QEMU does not get along with it"},
		{"hangs", "echo SeaBIOS; exec sleep 60", "hangs in its firmware"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			begin := time.Now()
			fault, err := tryQEMU(t.Context(), program{path: script(t, tt.body)}, "amd64", KVM, "host")
			if err != nil || (tt.want == "") != (fault == "") || !strings.Contains(fault, tt.want) || strings.Contains(fault, "Assertion") {
				t.Errorf("tryQEMU() = %q, %v, want %q", fault, err, tt.want)
			}
			if took := time.Since(begin); took > 3*trialTime {
				t.Errorf("it took %v", took)
			}
		})
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tryQEMU(gone, program{path: script(t, "exec sleep 60")}, "amd64", KVM, "host"); err == nil {
		t.Error("tryQEMU with a cancelled context succeeded")
	}
}
