//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestSelfTest has berth try itself on this host: nothing that applies to it is a
// problem, and nothing is left.
func TestSelfTest(t *testing.T) {
	needFull(t)
	h := ownHome(t)
	r := h.berth().exec("doctor", "--selftest", "--format", "json")
	var findings []struct{ Check, Result, Detail string }
	if err := json.Unmarshal([]byte(r.out), &findings); err != nil || r.code != 0 {
		t.Fatalf("%v: %s", err, r)
	}
	for _, f := range findings {
		t.Logf("%s: %s: %s", f.Result, f.Check, f.Detail)
		skips := f.Check == "registry on localhost:5000" || f.Check == "docker client" || f.Check == "saved state"
		if f.Result != "ok" && (f.Result != "skipped" || !skips) {
			t.Errorf("%s is %s: %s", f.Check, f.Result, f.Detail)
		}
	}
	if len(findings) < 16 {
		t.Errorf("only %d findings", len(findings))
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "berth-selftest-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
