package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/guest/wire/devices"
	"github.com/berthvm/berth/images"
	"github.com/berthvm/berth/vm"
)

// TestArm64 boots the image for arm64 with its engine, runs containers in it, and
// boots it again from the disk that the first boot has made. The machine is to use
// Rosetta for programs for amd64, which the first host has not, so that they are
// emulated, and for which the second has a stand-in.
func TestArm64(t *testing.T) {
	if os.Getenv("BERTH_VM") == "" || os.Getenv("BERTH_FULL") != "1" {
		t.Skip("boots an emulated arm64 machine: run with BERTH_VM=1 BERTH_FULL=1, or make test-full-arm64")
	}
	image, err := images.Open("../bin/image-arm64")
	if err != nil {
		t.Fatalf("%v\nmake test-full-arm64 builds it", err)
	}
	if image.Manifest.Arch != "arm64" {
		t.Fatalf("the image is for %s", image.Manifest.Arch)
	}
	disk := filepath.Join(t.TempDir(), "data")
	grow(t, disk, 1<<30)
	foreign := goProgram(t, "./testdata/say", "amd64")
	rosetta := &oneFile{name: "rosetta", data: goProgram(t, "./testdata/say", "arm64")}
	offered := func(cfg *vm.Config) { cfg.Cmdline = append([]string{devices.Rosetta}, cfg.Cmdline...) }
	installed := func(cfg *vm.Config) { cfg.Shares = []vm.Share{{Tag: devices.RosettaTag, Server: rosetta}} }
	for i, boot := range []struct {
		changes []func(*vm.Config)
		want    string // of the program for amd64
	}{
		{[]func(*vm.Config){offered}, "amd64: /say it\n"},
		{[]func(*vm.Config){offered, installed}, "arm64: /run/berth/rosetta/rosetta /say it\n"},
	} {
		g := start(t, image, disk, boot.changes...)
		g.version = image.Manifest.Version
		g.welcome()
		g.awaitPhase("engine")
		t.Logf("phases of boot %d:\n%s", i+1, g.phases())
		docker := dockerAPI{t, &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return g.machine.Dial(ctx, wire.PortDocker) },
		}}}
		var version struct{ Arch, Os string }
		docker.call("GET", "/version", nil, &version)
		if version.Arch != "arm64" || version.Os != "linux" {
			t.Errorf("the engine is for %s/%s", version.Os, version.Arch)
		}
		if got := docker.run("hello", "uname", "-m"); got != "aarch64\n" {
			t.Errorf("uname -m in a container: %q", got)
		}
		if got := docker.run("hello", "sh", "-c", "exit 7"); got != "status 7: " {
			t.Errorf("exit 7 in a container: %q", got)
		}
		if got := docker.run("hello", "stat", "-c", "%F", "/tmp"); got != "directory\n" {
			t.Errorf("stat in a container: %q", got)
		}
		g.awaitPhase("rosetta")
		if i == 0 {
			docker.call("POST", "/images/create?fromSrc=-&repo=foreign&platform=linux/amd64", archive(t, "say", foreign), nil)
		}
		if got := docker.run("foreign", "/say", "it"); got != boot.want {
			t.Errorf("a program for amd64: %q, want %q", got, boot.want)
		}
		g.phases()
		g.order(wire.OpPowerOff)
		g.ended(nil)
		g.machine.Close()
	}
}

// goProgram builds a program in testdata for linux on arch.
func goProgram(t *testing.T, dir, arch string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", out, dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s for %s: %v\n%s", dir, arch, err, text)
	}
	program, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// archive is a tar archive of one program.
func archive(t *testing.T, name string, program []byte) []byte {
	t.Helper()
	var all bytes.Buffer
	w := tar.NewWriter(&all)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(program))})
	if _, errWrite := w.Write(program); errors.Join(err, errWrite, w.Close()) != nil {
		t.Fatal(err, errWrite)
	}
	return all.Bytes()
}

// oneFile is a folder with one program in it. It implements vm.ShareServer.
type oneFile struct {
	fs.Inode
	name string
	data []byte

	once   sync.Once
	server *fuse.ProtocolServer
}

// OnAdd implements fs.NodeOnAdder.
func (f *oneFile) OnAdd(ctx context.Context) {
	file := &fs.MemRegularFile{Data: f.data, Attr: fuse.Attr{Mode: 0o755}}
	f.AddChild(f.name, f.NewPersistentInode(ctx, file, fs.StableAttr{}), false)
}

// HandleRequest implements vm.ShareServer.
func (f *oneFile) HandleRequest(in, out [][]byte) int {
	f.once.Do(func() { f.server = fuse.NewProtocolServer(fs.NewNodeFS(f, nil), &fuse.MountOptions{}) })
	n, _ := f.server.HandleRequest(in, out)
	return n
}

// Reset implements vm.ShareServer.
func (f *oneFile) Reset() error { return nil }

// dockerAPI calls an engine.
type dockerAPI struct {
	t      *testing.T
	client *http.Client
}

// call makes a request with an archive, or with what becomes JSON, and decodes the
// answer, unless into is nil.
func (d dockerAPI) call(method, path string, body, into any) []byte {
	d.t.Helper()
	in, kind := []byte(nil), "application/json"
	switch body := body.(type) {
	case nil:
	case []byte:
		in, kind = body, "application/x-tar"
	default:
		var err error
		if in, err = json.Marshal(body); err != nil {
			d.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(d.t.Context(), method, "http://docker"+path, bytes.NewReader(in))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	res, err := d.client.Do(req)
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode >= 300 {
		d.t.Fatalf("%s %s: %s: %s (%v)", method, path, res.Status, text, err)
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			d.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	return text
}

// run runs a container to its end, and returns what it has written, behind its status
// if that is not zero.
func (d dockerAPI) run(image string, command ...string) string {
	d.t.Helper()
	var made struct{ ID string }
	d.call("POST", "/containers/create", map[string]any{"Image": image, "Cmd": command, "Tty": true}, &made)
	d.call("POST", "/containers/"+made.ID+"/start", nil, nil)
	var status struct{ StatusCode int }
	d.call("POST", "/containers/"+made.ID+"/wait", nil, &status)
	output := d.call("GET", "/containers/"+made.ID+"/logs?stdout=1&stderr=1", nil, nil)
	d.call("DELETE", "/containers/"+made.ID, nil, nil)
	said := strings.ReplaceAll(string(output), "\r\n", "\n")
	if status.StatusCode != 0 {
		return fmt.Sprintf("status %d: %s", status.StatusCode, said)
	}
	return said
}
