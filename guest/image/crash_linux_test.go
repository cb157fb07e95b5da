package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/images/hello"
)

// TestFullDisk unpacks a bomb on a disk that is too small for it. The store must
// stay usable, and the space come back.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=24m"); err != nil {
		t.Skip("needs mounts:", err)
	}
	t.Cleanup(func() { unmount(t, disk) })
	s := reopen(t, filepath.Join(disk, "store"))
	load(t, s, simple(t, "before"), "docker.io/library/before:1")
	img := newImage(t)
	bomb, diffID := zeroLayer(t, 256<<20)
	img.manifest.Layers = append(img.manifest.Layers, img.add("application/vnd.oci.image.layer.v1.tar+gzip", bomb))
	img.config.RootFS.DiffIDs = append(img.config.RootFS.DiffIDs, diffID)
	img.seal(t)
	_, err := s.Pull(t.Context(), serveImage(t, img)+"/bomb:1", PullOptions{})
	if err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("pull: %v", err)
	}
	// The blob itself does not fit.
	big := newImage(t, layer(t, entry{name: "big", body: noise(32 << 20)})).seal(t)
	_, err = s.Pull(t.Context(), serveImage(t, big)+"/big:1", PullOptions{})
	if err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("pull: %v", err)
	}
	if _, err := s.Load(t.Context(), bytes.NewReader(big.archive(t, "big:1")), nil, nil); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("load: %v", err)
	}
	settle(t, s)
	var free unix.Statfs_t
	if err := unix.Statfs(disk, &free); err != nil {
		t.Fatal(err)
	}
	if left := int64(free.Bavail) * free.Bsize; left < 20<<20 {
		t.Errorf("only %d bytes are free again", left)
	}
	r, err := s.Prepare(t.Context(), "c", "before:1", PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, mounted(t, r)+"/text"); got != "before" {
		t.Errorf("text = %q", got)
	}
	load(t, s, simple(t, "after"), "docker.io/library/after:1")
}

// zeroLayer is a layer of one file of zeros, compressed.
func zeroLayer(t *testing.T, size int64) ([]byte, digest.Digest) {
	t.Helper()
	var buf bytes.Buffer
	zip := gzip.NewWriter(&buf)
	plain := digest.Canonical.Digester()
	tw := tar.NewWriter(io.MultiWriter(zip, plain.Hash()))
	if err := tw.WriteHeader(&tar.Header{Name: "zeros", Size: size, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range size >> 20 {
		if _, err := tw.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), plain.Digest()
}

// TestKilled kills a process that pulls, loads and removes, at any time, and looks
// at what it left: the store opens, holds what it says, and the work goes on.
func TestKilled(t *testing.T) {
	const dirEnv, refEnv = "BERTH_TEST_STORE", "BERTH_TEST_REF"
	if dir := os.Getenv(dirEnv); dir != "" {
		churn(t, dir, os.Getenv(refEnv))
		return
	}
	needRoot(t)
	reg := startRegistry(t, "")
	ref := reg.addr + "/big:1"
	img := newImage(t, layer(t, entry{name: "a", body: noise(2 << 20)}), layer(t, entry{name: "b", body: "b"}), layer(t, entry{name: "c", body: noise(1 << 20)})).seal(t)
	pushed(t, open(t), img, ref, Auth{})
	root := t.TempDir()
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), dirEnv+"="+root, refEnv+"="+ref)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(100+rand.IntN(250)) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		if strings.Contains(out.String(), "FAIL") {
			t.Fatalf("round %d: %s", round, out.String())
		}
		whole(t, root, ref)
	}
}

func churn(t *testing.T, dir, ref string) {
	s, err := Open(t.Context(), Options{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprint("c", i)
		if _, err := s.Prepare(t.Context(), key, ref, PrepareOptions{}); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			s.RemoveRootfs(t.Context(), key)
		}
		if _, err := s.Remove(t.Context(), ref, RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := s.collect(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// whole checks every blob against its digest, uses every container's root, and
// empties the store.
func whole(t *testing.T, root, ref string) {
	t.Helper()
	s, err := Open(t.Context(), Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := s.ctx(t.Context())
	err = s.content.Walk(ctx, func(info content.Info) error {
		body, err := os.ReadFile(s.path("content", "blobs", "sha256", info.Digest.Encoded()))
		if err == nil && digest.FromBytes(body) != info.Digest {
			t.Errorf("blob %s is damaged", info.Digest)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, key := range s.RootfsKeys() {
		r, err := s.Rootfs(t.Context(), key)
		if err != nil {
			t.Error(err)
			continue
		}
		dir := t.TempDir()
		if err := r.Mount(dir); err != nil {
			t.Error(err)
			continue
		}
		if got := mustRead(t, dir+"/c"); got != noise(1<<20) {
			t.Errorf("container %s: wrong content", key)
		}
		unmount(t, dir)
		if err := s.RemoveRootfs(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Errorf("the pull cannot be repeated: %v", err)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
		t.Error(err)
	}
	empty(t, s)
	noMounts(t, root)
}

// TestHello runs the image that is built into the guest.
func TestHello(t *testing.T) {
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs busybox-static")
	}
	s := open(t)
	dir := t.TempDir()
	f, err := os.Create(dir + "/hello.tar")
	if err != nil {
		t.Fatal(err)
	}
	if err := hello.Write(f, "/bin/busybox", s.platform.Architecture); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.LoadBuiltin(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	r, err := s.Prepare(t.Context(), "c", "hello", PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Get(t.Context(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/"+img.Spec.Config.Cmd[0], img.Spec.Config.Cmd[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: mounted(t, r)}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Hello from Berth!") {
		t.Errorf("it says %q, %v", out, err)
	}
}

func BenchmarkOpen(b *testing.B) {
	s := open(b)
	load(b, s, simple2(b), "docker.io/library/simple:1")
	root := s.root
	s.Close()
	for b.Loop() {
		s, err := Open(b.Context(), Options{Root: root})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

func BenchmarkPrepare(b *testing.B) {
	s := open(b)
	load(b, s, simple2(b), "docker.io/library/simple:1")
	for b.Loop() {
		if _, err := s.Prepare(b.Context(), "c", "simple:1", PrepareOptions{}); err != nil {
			b.Fatal(err)
		}
		if err := s.RemoveRootfs(b.Context(), "c"); err != nil {
			b.Fatal(err)
		}
	}
}

func simple2(b *testing.B) *testImage {
	return newImage(b, layer(b, entry{name: "a", body: "a"}), layer(b, entry{name: "b", body: "b"})).seal(b)
}
