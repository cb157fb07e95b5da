package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: overlay mounts")
	}
}

// open opens a store in a directory of its own and closes it with the test.
func open(t testing.TB, change ...func(*Options)) *Store {
	t.Helper()
	needRoot(t)
	return reopen(t, t.TempDir(), change...)
}

func reopen(t testing.TB, root string, change ...func(*Options)) *Store {
	t.Helper()
	opts := Options{Root: root, StallTimeout: 2 * time.Second, Retries: 2}
	for _, c := range change {
		c(&opts)
	}
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		noMounts(t, root)
	})
	return s
}

// noMounts fails the test when something is mounted below dir.
func noMounts(t testing.TB, dir string) {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if strings.Contains(line, " "+dir) {
			t.Errorf("left mounted: %s", line)
		}
	}
}

// entry is one file of a layer; without a type it is a regular file.
type entry struct {
	name, body, link string
	kind             byte
	mode             int64
	xattrs           map[string]string
}

func layer(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Linkname: e.link, Size: int64(len(e.body)), ModTime: time.Unix(1000, 0), Format: tar.FormatPAX}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeChar {
			h.Devmajor, h.Devminor = 1, 3
		}
		for k, v := range e.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// testImage is an image made by a test. Its parts may be changed before use.
type testImage struct {
	blobs    map[digest.Digest][]byte
	config   ocispec.Image
	manifest ocispec.Manifest
	desc     ocispec.Descriptor // of the manifest, set by seal
}

func newImage(t testing.TB, layers ...[]byte) *testImage {
	t.Helper()
	created := time.Unix(2000, 0).UTC()
	img := &testImage{blobs: map[digest.Digest][]byte{}}
	img.config = ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispec.RootFS{Type: "layers"},
		Config:   ocispec.ImageConfig{Cmd: []string{"/bin/true"}, Labels: map[string]string{"made": "by-test"}},
	}
	img.manifest = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i, l := range layers {
		packed := gz(t, l)
		img.manifest.Layers = append(img.manifest.Layers, img.add(ocispec.MediaTypeImageLayerGzip, packed))
		img.config.RootFS.DiffIDs = append(img.config.RootFS.DiffIDs, digest.FromBytes(l))
		img.config.History = append(img.config.History, ocispec.History{Created: &created, CreatedBy: fmt.Sprintf("step %d", i)})
	}
	return img
}

func (i *testImage) add(mediaType string, body []byte) ocispec.Descriptor {
	d := digest.FromBytes(body)
	i.blobs[d] = body
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

func (i *testImage) addJSON(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return i.add(mediaType, body)
}

// seal makes config and manifest out of what they hold now.
func (i *testImage) seal(t testing.TB) *testImage {
	t.Helper()
	if i.manifest.Config.Digest == "" {
		i.manifest.Config = i.addJSON(t, ocispec.MediaTypeImageConfig, i.config)
	}
	i.desc = i.addJSON(t, i.manifest.MediaType, i.manifest)
	return i
}

// archive is the image as an OCI archive under name.
func (i *testImage) archive(t testing.TB, name string) []byte {
	t.Helper()
	desc := i.desc
	if name != "" {
		desc.Annotations = map[string]string{"io.containerd.image.name": name}
	}
	return i.archiveOf(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{desc}})
}

func (i *testImage) archiveOf(t testing.TB, index any) []byte {
	t.Helper()
	body, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	entries := []entry{{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, {name: "index.json", body: string(body)}}
	for d, b := range i.blobs {
		entries = append(entries, entry{name: "blobs/sha256/" + d.Encoded(), body: string(b)})
	}
	return layer(t, entries...)
}

// load puts the image into a store under name.
func load(t testing.TB, s *Store, img *testImage, name string) Image {
	t.Helper()
	loaded, err := s.Load(t.Context(), bytes.NewReader(img.archive(t, name)), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded) != 1 {
		t.Fatalf("loaded %v", loaded)
	}
	got, err := s.Get(t.Context(), loaded[0].ID.String())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func simple(t testing.TB, text string) *testImage {
	t.Helper()
	return newImage(t,
		layer(t, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "etc/base", body: "base"}, entry{name: "gone", body: "x"}),
		layer(t, entry{name: "text", body: text}, entry{name: ".wh.gone"}),
	).seal(t)
}

// mounted mounts a container's root for the rest of the test.
func mounted(t testing.TB, r Rootfs) string {
	t.Helper()
	dir := t.TempDir()
	if err := r.Mount(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

func unmount(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		t.Error(err)
	}
}

func mustRead(t testing.TB, path string) string {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// recorder keeps progress.
type recorder struct {
	mu    sync.Mutex
	lines []Progress
}

func (r *recorder) add(p Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, p)
}

func (r *recorder) has(status string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		if strings.HasPrefix(l.Status, status) {
			return true
		}
	}
	return false
}

// registryProcess is the distribution project's registry, running.
type registryProcess struct {
	addr string // host:port
	root string
}

// startRegistry runs the real registry on a port of its own until the test ends.
func startRegistry(t testing.TB, extra string) registryProcess {
	t.Helper()
	program := findUp(t, "bin/tools/registry")
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %s%s\n", dir, addr, "}")
	if extra != "" {
		config = strings.Replace(extra, "ADDR", addr, 1)
		config = fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\n%s", dir, config)
	}
	path := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", path)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	cmd.Stderr, cmd.Stdout = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("registry: %.4000s", log.String())
		}
	})
	for range 200 {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return registryProcess{addr: addr, root: dir}
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("the registry does not answer: %s", log.String())
	return registryProcess{}
}

func findUp(t testing.TB, path string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, path)); err == nil {
			return filepath.Join(dir, path)
		}
		if dir == "/" {
			t.Skipf("needs %s: make registry", path)
		}
		dir = filepath.Dir(dir)
	}
}

// settle runs the collection that is due now.
func settle(t testing.TB, s *Store) {
	t.Helper()
	if err := s.collect(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// save writes an archive of images to w.
func save(t *testing.T, s *Store, w io.Writer, refs []string, wanted ...ocispec.Platform) error {
	t.Helper()
	write, _, err := s.Save(t.Context(), refs, wanted)
	if err != nil {
		return err
	}
	return write(t.Context(), w)
}
