//go:build unix

package usernet

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestHostServersAreReadAgain(t *testing.T) {
	h := &hostServers{path: filepath.Join(t.TempDir(), "resolv.conf")}
	at := time.Now().Add(-time.Hour)
	for _, step := range []struct{ content, want string }{
		{"", "[127.0.0.1:53]"}, // no file
		{"nameserver 10.0.0.1\nsearch corp\nnameserver fd00::1\n", "[10.0.0.1:53 [fd00::1]:53]"},
		{"# a VPN came\nnameserver 10.9.9.9\nnameserver nonsense\n", "[10.9.9.9:53]"},
		{"options edns0\n", "[127.0.0.1:53]"},
		{"nameserver fe80::1%eth0\n", "[[fe80::1%eth0]:53]"},
	} {
		if step.content != "" {
			if err := os.WriteFile(h.path, []byte(step.content), 0o600); err != nil {
				t.Fatal(err)
			}
			at = at.Add(time.Second)
			os.Chtimes(h.path, at, at)
		}
		for range 2 {
			if got := fmt.Sprint(h.get()); got != step.want {
				t.Errorf("%q: %s, want %s", step.content, got, step.want)
			}
		}
	}
}
