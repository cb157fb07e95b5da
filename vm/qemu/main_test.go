package qemu

import (
	"os"
	"testing"
)

// The test program stands in for QEMU, and for a daemon that runs one, when the
// environment asks for it.
const (
	standInEnv = "BERTH_TEST_QEMU"
	daemonEnv  = "BERTH_TEST_DAEMON"
)

func TestMain(m *testing.M) {
	RunProbeChild()
	if mode := os.Getenv(standInEnv); mode != "" {
		standIn(mode)
		os.Exit(3)
	}
	if dir := os.Getenv(daemonEnv); dir != "" {
		daemon(dir)
		os.Exit(3)
	}
	os.Exit(m.Run())
}
