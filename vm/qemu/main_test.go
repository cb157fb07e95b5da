package qemu

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	RunProbeChild()
	os.Exit(m.Run())
}
