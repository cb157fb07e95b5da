package forward

import "testing"

func shortDir(t *testing.T) string { return t.TempDir() }

func TestDescriptor(t *testing.T) {
	if got := descriptor("S-1-5-21-1"); got != "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;S-1-5-21-1)" {
		t.Error(got)
	}
}
