package daemon

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/fakeguest"
	"github.com/berthvm/berth/vm"
)

// folderServer answers nothing, and notes that it was closed.
type folderServer struct{ closed atomic.Bool }

func (*folderServer) HandleRequest(_, _ [][]byte) int { return 0 }
func (*folderServer) Reset() error                    { return nil }
func (s *folderServer) Close() error {
	s.closed.Store(true)
	return nil
}

func TestFolders(t *testing.T) {
	var welcome wire.Welcome
	b := newBench(t, fakeguest.Options{Welcome: func(w wire.Welcome) { welcome = w }})
	server := &folderServer{}
	b.Folders = func(context.Context, vm.Caps) ([]Folder, error) {
		return []Folder{{Share: vm.Share{Tag: "host0", Path: "/real", ReadOnly: true, Server: server}, Names: []string{"/real", "/link"}}}, nil
	}
	b.run(t)
	s, _ := b.follow(t)
	if s.State != api.Running {
		t.Fatalf("%+v", s)
	}
	want := []wire.Share{{Tag: "host0", Path: "/real", ReadOnly: true}, {Tag: "host0", Path: "/link", ReadOnly: true}}
	if len(welcome.Shares) != 2 || welcome.Shares[0] != want[0] || welcome.Shares[1] != want[1] {
		t.Errorf("the guest was told %+v", welcome.Shares)
	}
	if welcome.Machine.DockerSocket != b.Machine.DockerAddress() {
		t.Errorf("the guest was told of the socket %q", welcome.Machine.DockerSocket)
	}
	lent := false
	for _, l := range s.Lent {
		lent = lent || l == api.Lent{What: "folder", Detail: "/real to read"}
	}
	if !lent {
		t.Errorf("the status lists %+v", s.Lent)
	}
	if server.closed.Load() {
		t.Error("the folder was closed while the machine runs")
	}
	if _, err := b.client.Stop(t.Context(), patience); err != nil {
		t.Fatal(err)
	}
	b.end(t)
	if !server.closed.Load() {
		t.Error("the folder was not closed")
	}
}

// stream serves a folder over streams, and notes that it was closed.
type stream struct{ folderServer }

func (*stream) Serve(c net.Conn) error { return c.Close() }

// TestFolderStreams has a driver whose machines have no device for folders.
func TestFolderStreams(t *testing.T) {
	var welcome wire.Welcome
	b := newBench(t, fakeguest.Options{Welcome: func(w wire.Welcome) { welcome = w }})
	server := &stream{}
	b.Folders = func(_ context.Context, caps vm.Caps) ([]Folder, error) {
		if caps.Folders {
			t.Error("the fake machine has no device for folders")
		}
		return []Folder{{Share: vm.Share{Tag: "host0", Path: "/real"}, Names: []string{"/real"}, Stream: server}}, nil
	}
	found := make(chan FolderStream, 2)
	b.Streams = func(_ context.Context, l net.Listener, secret func() []byte, folder func(string) FolderStream) error {
		found <- folder("host0")
		found <- folder("host1")
		return nil
	}
	b.run(t)
	if s, _ := b.follow(t); s.State != api.Running {
		t.Fatalf("%+v", s)
	}
	want := wire.Share{Tag: "host0", Path: "/real", Protocol: wire.Share9P}
	if len(welcome.Shares) != 1 || welcome.Shares[0] != want {
		t.Errorf("the guest was told %+v", welcome.Shares)
	}
	if first, second := <-found, <-found; first != FolderStream(server) || second != nil {
		t.Errorf("the folders are %v and %v", first, second)
	}
	if _, err := b.client.Stop(t.Context(), patience); err != nil {
		t.Fatal(err)
	}
	b.end(t)
	if !server.closed.Load() {
		t.Error("the folder was not closed")
	}
}

// TestNativeFolders has a folder that the hypervisor serves.
func TestNativeFolders(t *testing.T) {
	d := &daemon{folders: []Folder{
		{Share: vm.Share{Tag: "host0", Path: "/real"}, Names: []string{"/real"}},
		{Share: vm.Share{Tag: "host1", Path: "/other"}, Names: []string{"/other"}, Stream: &stream{}},
	}}
	if got := d.shares(); len(got) != 1 || got[0].Tag != "host0" {
		t.Errorf("the driver is given %+v", got)
	}
	if got := d.welcomeShares(); len(got) != 2 || got[0].Protocol != wire.ShareVirtiofs || got[1].Protocol != wire.Share9P {
		t.Errorf("the guest is told %+v", got)
	}
	if got := d.lentFolders(); got[0].Detail != "/real to read and write, by the hypervisor" || got[1].Detail != "/other to read and write" {
		t.Errorf("the user is told %+v", got)
	}
}

func TestFoldersFail(t *testing.T) {
	b := newBench(t, fakeguest.Options{})
	server := &folderServer{}
	b.Folders = func(context.Context, vm.Caps) ([]Folder, error) {
		return []Folder{{Share: vm.Share{Tag: "host0", Server: server}}}, errors.New("cannot share /gone: see default.yaml")
	}
	b.run(t)
	if _, err := b.end(t); err == nil || !strings.Contains(err.Error(), "cannot share /gone") {
		t.Errorf("the daemon ended with %v", err)
	}
	if !server.closed.Load() {
		t.Error("the other folder was not closed")
	}
}
