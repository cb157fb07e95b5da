//go:build unix

package launch

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthvm/berth/host/machine"
)

// TestStartMistrustsOthersSockets plays another user of the host, who has made the
// directory for sockets first and says that the machine is running.
func TestStartMistrustsOthersSockets(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give a directory away")
	}
	dir := t.TempDir()
	home, err := machine.Locate(func(string) string { return dir })
	if err != nil {
		t.Fatal(err)
	}
	m, err := home.Machine("default")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.MakeSocketDir(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(m.SocketDir) })
	l, err := net.Listen("unix", m.APIAddress())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		t.Error("the stranger was asked")
		w.Write([]byte(`{"state":"running"}`))
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	if err := os.Chown(m.SocketDir, 12345, -1); err != nil {
		t.Fatal(err)
	}
	_, err = Start(context.Background(), Options{Machine: m, Daemon: []string{filepath.Join(dir, "none")}})
	if err == nil || !strings.Contains(err.Error(), "belongs to another user") {
		t.Errorf("Start: %v", err)
	}
}
