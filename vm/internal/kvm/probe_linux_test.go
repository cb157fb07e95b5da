package kvm

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// hangEnv makes the probe's child hang.
const hangEnv = "BERTH_KVM_PROBE_HANG"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(hangEnv) != "":
		time.Sleep(time.Hour)
	case os.Getenv(probeEnv) != "":
		RunProbeChild()
	}
	os.Exit(m.Run())
}

// TestTry checks that the probe ends soon, whatever this host's KVM is.
func TestTry(t *testing.T) {
	if fault, err := Try(t.Context()); err != nil || !strings.Contains(fault, "does not probe") {
		t.Errorf("Try() in a program that cannot be the child = %q, %v", fault, err)
	}
	probeReady.Store(true)
	defer probeReady.Store(false)
	if fault := Open(); fault != "" {
		t.Skip(fault)
	}
	begin := time.Now()
	fault, err := Try(t.Context())
	t.Logf("Try() = %q, %v", fault, err)
	if took := time.Since(begin); err != nil || took > 5*time.Second {
		t.Errorf("Try() = %q, %v after %v", fault, err, took)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Try(gone); err == nil {
		t.Error("Try with a cancelled context succeeded")
	}
}

// TestTryHangs checks that a guest that hangs is a fault, soon.
func TestTryHangs(t *testing.T) {
	probeReady.Store(true)
	defer probeReady.Store(false)
	probeExtra = []string{hangEnv + "=1"}
	defer func() { probeExtra = nil }()
	begin := time.Now()
	fault, err := Try(t.Context())
	if err != nil || !strings.Contains(fault, "hangs") {
		t.Errorf("Try() = %q, %v", fault, err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("Try took %v", took)
	}
}
