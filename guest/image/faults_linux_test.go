package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// faulty is a proxy before a real registry that does as it likes: fault returns
// true when it has answered itself.
func faulty(t *testing.T, reg registryProcess, fault func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: reg.addr})
	proxy.ErrorLog = nil
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !fault(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/sha256:") }

func noise(size int) string {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// bigImage pushes an image whose layer takes a while to send.
func bigImage(t *testing.T, s *Store, reg registryProcess) Image {
	t.Helper()
	return pushed(t, s, newImage(t, layer(t, entry{name: "big", body: noise(3 << 20)})).seal(t), reg.addr+"/big:1", Auth{})
}

// partial sends some bytes of a blob and then does what then says.
func partial(reg registryProcess, w http.ResponseWriter, r *http.Request, size int64, then func()) bool {
	resp, err := http.Get("http://" + reg.addr + r.URL.Path)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	w.WriteHeader(http.StatusOK)
	io.CopyN(w, resp.Body, size)
	w.(http.Flusher).Flush()
	then()
	return true
}

// TestPushOfRemoved: an image that is removed while it is pushed arrives whole.
func TestPushOfRemoved(t *testing.T) {
	s := open(t)
	reg := startRegistry(t, "")
	var once sync.Once
	var ref string
	addr := faulty(t, reg, func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() {
			if _, err := s.Remove(context.Background(), ref, RemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
			settle(t, s)
		})
		return false
	})
	ref = addr + "/gone:1"
	img := load(t, s, simple(t, "gone"), ref)
	if _, err := s.Push(t.Context(), ref, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	empty(t, s)
	got, err := s.Pull(t.Context(), reg.addr+"/gone:1", PullOptions{})
	if err != nil || len(got) != 1 || got[0].ID != img.ID {
		t.Errorf("pulled: %+v, %v", got, err)
	}
}

func TestPullResumesAfterReset(t *testing.T) {
	s := open(t)
	reg := startRegistry(t, "")
	img := bigImage(t, s, reg)
	var resets, ranges atomic.Int32
	addr := faulty(t, reg, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, img.Layers[0].Digest.String()) {
			return false
		}
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
			return false
		}
		if resets.Add(1) > 1 {
			return false
		}
		return partial(reg, w, r, 1<<20, func() { panic(http.ErrAbortHandler) })
	})
	if _, err := s.Pull(t.Context(), addr+"/big:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if ranges.Load() == 0 {
		t.Error("the pull began again instead of going on")
	}
}

func TestPullStall(t *testing.T) {
	for _, where := range []string{"header", "body"} {
		t.Run(where, func(t *testing.T) {
			s := open(t, func(o *Options) { o.StallTimeout = 300 * time.Millisecond })
			reg := startRegistry(t, "")
			bigImage(t, s, reg)
			end := make(chan struct{})
			addr := faulty(t, reg, func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case !isBlob(r):
					return false
				case where == "header":
					<-end
					return true
				}
				return partial(reg, w, r, 100, func() { <-end })
			})
			began := time.Now()
			_, err := s.Pull(t.Context(), addr+"/big:1", PullOptions{})
			close(end)
			if err == nil || !strings.Contains(err.Error(), "stopped answering") || !errdefs.IsUnavailable(err) {
				t.Errorf("error = %v", err)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestPullCancelledAndContinued(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := reopen(t, root)
	reg := startRegistry(t, "")
	img := bigImage(t, s, reg)
	reached := make(chan struct{}, 16)
	end := make(chan struct{})
	var broken atomic.Bool
	broken.Store(true)
	var from atomic.Value
	addr := faulty(t, reg, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, img.Layers[0].Digest.String()) {
			return false
		}
		if !broken.Load() {
			from.Store(r.Header.Get("Range"))
			return false
		}
		return partial(reg, w, r, 1<<20, func() { reached <- struct{}{}; <-end })
	})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, addr+"/big:1", PullOptions{})
		failed <- err
	}()
	<-reached
	time.Sleep(100 * time.Millisecond)
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled pull: %v", err)
	}
	close(end)
	broken.Store(false)
	settle(t, s)
	// The engine may restart in between.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, root)
	settle(t, s)
	if _, err := s.Pull(t.Context(), addr+"/big:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, _ := from.Load().(string); !strings.HasPrefix(got, "bytes=") || got == "bytes=0-" {
		t.Errorf("continued from %q", got)
	}
	settle(t, s)
	if _, ingests, _, leases := stored(t, s); ingests+leases != 0 {
		t.Errorf("left: %d ingests, %d leases", ingests, leases)
	}
}

func TestPullStatus(t *testing.T) {
	s := open(t, func(o *Options) { o.Retries = 1 })
	reg := startRegistry(t, "")
	bigImage(t, s, reg)
	for _, tt := range []struct {
		name  string
		code  int
		body  string
		times int32 // how often; 0 means always
		blobs bool  // only blobs
		kind  func(error) bool
		want  string
	}{
		{name: "429 once", code: 429, times: 1},
		{name: "503 once", code: 503, times: 1},
		{name: "500 once, blob", code: 500, times: 1, blobs: true},
		{name: "429", code: 429, body: `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`, kind: errdefs.IsUnavailable, want: "toomanyrequests: "},
		{name: "500", code: 500, body: "<html>", kind: errdefs.IsUnavailable, want: "500 Internal Server Error"},
		{name: "500, blob", code: 500, blobs: true, body: `{"errors":[{"message":"disk\nfull"}]}`, kind: errdefs.IsUnavailable, want: "disk full"},
		{name: "401", code: 401, kind: errdefs.IsNotFound, want: "may require 'docker login'"},
		{name: "403", code: 403, kind: errdefs.IsNotFound, want: "may require 'docker login'"},
		{name: "404, blob", code: 404, blobs: true, kind: errdefs.IsNotFound, want: "does not have sha256:"},
		{name: "418", code: 418, want: "418"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var count atomic.Int32
			addr := faulty(t, reg, func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/v2/" || tt.blobs && !isBlob(r) || tt.times > 0 && count.Add(1) > tt.times {
					return false
				}
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(tt.code)
				io.WriteString(w, tt.body)
				return true
			})
			_, err := s.Pull(t.Context(), addr+"/big:1", PullOptions{})
			switch {
			case tt.times > 0 && err != nil:
				t.Errorf("error = %v", err)
			case tt.times == 0 && (err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n")):
				t.Errorf("error = %v, want %q", err, tt.want)
			case tt.kind != nil && !tt.kind(err):
				t.Errorf("kind of %v", err)
			}
			if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestPullWrongContent(t *testing.T) {
	s := open(t)
	reg := startRegistry(t, "")
	img := bigImage(t, s, reg)
	for name, body := range map[string][]byte{
		"same size": bytes.Repeat([]byte{1}, int(img.Layers[0].Size)),
		"longer":    bytes.Repeat([]byte{1}, int(img.Layers[0].Size)+1000),
		"shorter":   []byte("short"),
	} {
		t.Run(name, func(t *testing.T) {
			addr := faulty(t, reg, func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, img.Layers[0].Digest.String()) {
					return false
				}
				w.Write(body)
				return true
			})
			_, err := s.Pull(t.Context(), addr+"/big:1", PullOptions{})
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			// The next pull is not misled by what came.
			if _, err := s.Pull(t.Context(), reg.addr+"/big:1", PullOptions{}); err != nil {
				t.Errorf("pull after it: %v", err)
			}
			if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// serveImage is a registry that holds one image and checks nothing.
func serveImage(t *testing.T, img *testImage) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, what, _ := strings.Cut(r.URL.Path, "sha256:")
		body, ok := img.blobs[digest.NewDigestFromEncoded("sha256", what)]
		if strings.HasSuffix(r.URL.Path, "/manifests/1") {
			body, ok = img.blobs[img.desc.Digest], true
		}
		if !ok {
			http.NotFound(w, r)
			return
		}
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", img.desc.MediaType)
			w.Header().Set("Docker-Content-Digest", digest.FromBytes(body).String())
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// TestHostileLayers unpacks what no good layer holds. Whatever comes of it, it
// stays within the snapshot.
func TestHostileLayers(t *testing.T) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	for name, entries := range map[string][]entry{
		"dot dot":             {{name: up + victim[1:], body: "evil"}},
		"dot dot in between":  {{name: "a/" + up + victim[1:], body: "evil"}},
		"absolute":            {{name: victim, body: "evil"}},
		"absolute symlink":    {{name: "link", kind: tar.TypeSymlink, link: outside}, {name: "link/victim", body: "evil"}},
		"relative symlink":    {{name: "link", kind: tar.TypeSymlink, link: up + outside[1:]}, {name: "link/victim", body: "evil"}},
		"symlink to file":     {{name: "link", kind: tar.TypeSymlink, link: victim}, {name: "link", body: "evil"}},
		"hard link outside":   {{name: "link", kind: tar.TypeLink, link: up + victim[1:]}, {name: "link", body: "evil"}},
		"hard link absolute":  {{name: "link", kind: tar.TypeLink, link: victim}},
		"hard link by link":   {{name: "d", kind: tar.TypeSymlink, link: outside}, {name: "link", kind: tar.TypeLink, link: "d/victim"}, {name: "link", body: "evil"}},
		"whiteout outside":    {{name: up + outside[1:] + "/.wh.victim"}},
		"whiteout by link":    {{name: "link", kind: tar.TypeSymlink, link: outside}, {name: "link/.wh.victim"}},
		"opaque by link":      {{name: "link", kind: tar.TypeSymlink, link: outside}, {name: "link/.wh..wh..opq"}},
		"whiteout of dot dot": {{name: "a/", kind: tar.TypeDir}, {name: "a/.wh..."}, {name: "a/.wh.."}, {name: "a/.wh."}},
		"root as file":        {{name: ".", body: "evil"}, {name: "a/..", body: "evil"}},
		"mode by link":        {{name: "link", kind: tar.TypeSymlink, link: victim}, {name: "link", kind: tar.TypeDir, mode: 0o777}},
		"redirect":            {{name: "d/", kind: tar.TypeDir, xattrs: map[string]string{"trusted.overlay.redirect": "/../../.."}}},
		"metacopy":            {{name: "f", body: "x", xattrs: map[string]string{"trusted.overlay.metacopy": "", "trusted.overlay.redirect": "/etc/shadow"}}},
		"device":              {{name: "null", kind: tar.TypeChar}},
		"long name":           {{name: strings.Repeat("n", 300), body: "x"}},
		"unknown type":        {{name: "odd", kind: 'Z'}},
		"whiteout device":     {{name: "w", kind: tar.TypeChar}},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			img := newImage(t, layer(t, entry{name: "fine", body: "fine"}), layer(t, entries...)).seal(t)
			_, err := s.Pull(t.Context(), serveImage(t, img)+"/evil:1", PullOptions{})
			t.Log(err)
			if err == nil {
				r, err := s.Prepare(t.Context(), "c", img.desc.Digest.String(), PrepareOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if got := mustRead(t, mounted(t, r)+"/fine"); got != "fine" {
					t.Errorf("fine = %q", got)
				}
				if _, err := s.Changes(t.Context(), "c"); err != nil {
					t.Error(err)
				}
			} else {
				empty(t, s)
			}
			info, statErr := os.Stat(victim)
			if statErr != nil || mustRead(t, victim) != "untouched" || info.Mode().Perm() != 0o644 {
				t.Fatalf("outside was touched: %v", statErr)
			}
			if entries, _ := os.ReadDir(outside); len(entries) != 1 {
				t.Fatalf("outside holds %v", entries)
			}
		})
	}
}

// TestHostileImages pulls and loads images that are wrong in their documents.
func TestHostileImages(t *testing.T) {
	plain := layer(t, entry{name: "f", body: "f"})
	made := func(change func(*testImage)) *testImage {
		img := newImage(t, plain)
		change(img)
		return img.seal(t)
	}
	deep := func(levels int) *testImage {
		img := newImage(t, plain).seal(t)
		for range levels {
			index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{img.desc}}
			index.SchemaVersion = 2
			img.desc = img.addJSON(t, ocispec.MediaTypeImageIndex, index)
		}
		return img
	}
	raw := func(mediaType, body string) *testImage {
		img := newImage(t, plain).seal(t)
		img.desc = img.add(mediaType, []byte(body))
		return img
	}
	for name, img := range map[string]*testImage{
		"negative layer size": made(func(i *testImage) { i.manifest.Layers[0].Size = -1 }),
		"layer size too big":  made(func(i *testImage) { i.manifest.Layers[0].Size += 1000 }),
		"layer size small":    made(func(i *testImage) { i.manifest.Layers[0].Size = 3 }),
		"bad layer digest":    made(func(i *testImage) { i.manifest.Layers[0].Digest = "sha256:../../x" }),
		"empty layer digest":  made(func(i *testImage) { i.manifest.Layers[0].Digest = "" }),
		"unknown algorithm":   made(func(i *testImage) { i.manifest.Layers[0].Digest = "md5:d41d8cd98f00b204e9800998ecf8427e" }),
		"missing layer":       made(func(i *testImage) { delete(i.blobs, i.manifest.Layers[0].Digest) }),
		"layer is a manifest": made(func(i *testImage) { i.manifest.Layers[0].MediaType = ocispec.MediaTypeImageManifest }),
		"layer of odd type":   made(func(i *testImage) { i.manifest.Layers[0].MediaType = "text/html" }),
		"config of odd type":  made(func(i *testImage) { i.manifest.Config = i.add("application/x-chart", []byte("{}")) }),
		"config is text":      made(func(i *testImage) { i.manifest.Config = i.add(ocispec.MediaTypeImageConfig, []byte("text")) }),
		"config is null":      made(func(i *testImage) { i.manifest.Config = i.add(ocispec.MediaTypeImageConfig, []byte("null")) }),
		"config is a list":    made(func(i *testImage) { i.manifest.Config = i.add(ocispec.MediaTypeImageConfig, []byte("[]")) }),
		"config huge": made(func(i *testImage) {
			i.manifest.Config.Size = 1 << 40
			i.manifest.Config.Digest = digest.FromString("x")
			i.manifest.Config.MediaType = ocispec.MediaTypeImageConfig
		}),
		"wrong diff ID":      made(func(i *testImage) { i.config.RootFS.DiffIDs[0] = digest.FromString("other") }),
		"diff ID no digest":  made(func(i *testImage) { i.config.RootFS.DiffIDs[0] = "../../../etc" }),
		"no diff IDs":        made(func(i *testImage) { i.config.RootFS.DiffIDs = nil }),
		"rootfs type":        made(func(i *testImage) { i.config.RootFS.Type = "layers+base" }),
		"not gzip":           made(func(i *testImage) { i.manifest.Layers[0] = i.add(ocispec.MediaTypeImageLayerGzip, []byte("no gzip")) }),
		"too deep":           deep(6),
		"manifest is text":   raw(ocispec.MediaTypeImageManifest, "text"),
		"manifest is a list": raw(ocispec.MediaTypeImageManifest, "[]"),
		"manifest is index":  raw(ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"manifests":[{}]}`),
		"index is manifest":  raw(ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"layers":[{}]}`),
		"index is empty":     raw(ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[]}`),
		"index of a layer":   raw(ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":1,"digest":"sha256:`+strings.Repeat("0", 64)+`"}]}`),
		"schema 1":           raw("application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1,"fsLayers":[]}`),
		"text":               raw("text/plain", "hello"),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			_, err := s.Pull(t.Context(), serveImage(t, img)+"/evil:1", PullOptions{})
			if err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("pull: %v", err)
			}
			t.Log(err)
			empty(t, s)
			loaded, err := s.Load(t.Context(), bytes.NewReader(img.archive(t, "evil:1")), nil, nil)
			for _, l := range loaded {
				err = errors.Join(err, l.Broken)
			}
			if err == nil && name != "too deep" && name != "index is empty" {
				t.Error("load: no error")
			}
			t.Log(err)
			if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
				t.Error(err)
			}
			empty(t, s)
		})
	}
}

// TestLoadBroken: an image with a layer that cannot be unpacked is loaded all the same,
// and said to be broken; no container is made from it.
func TestLoadBroken(t *testing.T) {
	s := open(t)
	img := simple(t, "a")
	img.manifest.Layers[0] = img.add(ocispec.MediaTypeImageLayerGzip, []byte("no gzip"))
	img.seal(t)
	loaded, err := s.Load(t.Context(), bytes.NewReader(img.archive(t, "docker.io/library/broken:1")), nil, nil)
	if err != nil || len(loaded) != 1 || loaded[0].Broken == nil || loaded[0].Ref != "broken:1" {
		t.Fatalf("loaded %+v, %v", loaded, err)
	}
	if err := s.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(t.Context(), "broken:1"); err != nil || got.ID != loaded[0].ID {
		t.Errorf("%+v, %v", got, err)
	}
	if list, err := s.List(t.Context(), ListOptions{}); err != nil || len(list) != 1 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if _, err := s.Prepare(t.Context(), "c", "broken:1", PrepareOptions{}); err == nil {
		t.Error("a container was made")
	}
	if _, err := s.Remove(t.Context(), "broken:1", RemoveOptions{}); err != nil {
		t.Error(err)
	}
	empty(t, s)
}

// TestConfigFields gives every field of an image's config a wrong type in turn.
func TestConfigFields(t *testing.T) {
	base := newImage(t, layer(t, entry{name: "f", body: "f"})).seal(t)
	var fields map[string]any
	if err := json.Unmarshal(base.blobs[base.manifest.Config.Digest], &fields); err != nil {
		t.Fatal(err)
	}
	fields["config"] = map[string]any{"User": "u", "Env": []string{"A=b"}, "Entrypoint": []string{"x"}, "Cmd": []string{"y"}, "WorkingDir": "/", "Labels": map[string]string{"a": "b"},
		"ExposedPorts": map[string]any{"80/tcp": map[string]any{}}, "Volumes": map[string]any{"/v": map[string]any{}}, "StopSignal": "SIGTERM", "Healthcheck": map[string]any{"Test": []string{"NONE"}}, "OnBuild": []string{"z"}, "Shell": []string{"sh"}}
	check := func(name string, config map[string]any) {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			img := newImage(t, layer(t, entry{name: "f", body: "f"}))
			img.manifest.Config = img.addJSON(t, ocispec.MediaTypeImageConfig, config)
			img.seal(t)
			_, err := s.Load(t.Context(), bytes.NewReader(img.archive(t, "x:1")), nil, nil)
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("error = %v", err)
			}
			t.Log(err)
			empty(t, s)
		})
	}
	for name := range fields {
		bad := cloneMap(fields)
		bad[name] = 5
		check(name, bad)
	}
	config := fields["config"].(map[string]any)
	for name := range config {
		bad, inner := cloneMap(fields), cloneMap(config)
		inner[name] = 5
		bad["config"] = inner
		check("config."+name, bad)
	}
}

func cloneMap(m map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		out[k] = v
	}
	return out
}

func TestHostileArchives(t *testing.T) {
	good := simple(t, "x").archive(t, "x:1")
	for name, body := range map[string][]byte{
		"empty":           {},
		"text":            []byte("hello, this is no tar at all"),
		"zeros":           make([]byte, 4096),
		"cut":             good[:len(good)/2],
		"cut gzip":        gz(t, good)[:1000],
		"no image":        layer(t, entry{name: "file", body: "x"}),
		"bad layout":      layer(t, entry{name: "oci-layout", body: "x"}),
		"no index":        layer(t, entry{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}),
		"bad index":       layer(t, entry{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, entry{name: "index.json", body: `[1`}),
		"docker, nothing": layer(t, entry{name: "manifest.json", body: `[{"Config":"../../etc/passwd","Layers":["/etc/shadow"]}]`}),
		"docker, symlink": layer(t, entry{name: "manifest.json", body: `[{"Config":"c","Layers":[]}]`}, entry{name: "c", kind: tar.TypeSymlink, link: "/etc/passwd"}),
		"docker, bad tag": layer(t, entry{name: "manifest.json", body: `[{"Config":"c","Layers":[],"RepoTags":["../../A B"]}]`}, entry{name: "c", body: "{}"}),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			_, err := s.Load(t.Context(), bytes.NewReader(body), nil, nil)
			if err == nil {
				t.Error("no error")
			}
			t.Log(err)
			empty(t, s)
		})
	}
}

func TestLoadCancelled(t *testing.T) {
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		body := simple(t, noise(1<<20)).archive(t, "x:1")
		w.Write(body[:len(body)/2])
		cancel()
		w.Write(body[len(body)/2:])
	}()
	_, err := s.Load(ctx, r, nil, nil)
	r.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	empty(t, s)
}

func TestBuiltin(t *testing.T) {
	s := open(t)
	dir := t.TempDir()
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(dir+"/hello.tar", simple(t, text).archive(t, "docker.io/library/hello:latest"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	builtin := func() {
		t.Helper()
		if err := s.LoadBuiltin(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.LoadBuiltin(t.Context(), dir+"/missing"); err != nil {
		t.Error(err)
	}
	put("one")
	builtin()
	if _, err := s.Remove(t.Context(), "hello", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	builtin()
	if _, err := s.Get(t.Context(), "hello"); !errdefs.IsNotFound(err) {
		t.Errorf("a removed image came back: %v", err)
	}
	put("two")
	builtin()
	if _, err := s.Get(t.Context(), "hello"); err != nil {
		t.Errorf("a new version is missing: %v", err)
	}
	if err := os.WriteFile(dir+"/bad.tar", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.LoadBuiltin(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "bad.tar") {
		t.Errorf("a damaged archive: %v", err)
	}
	if err := os.WriteFile(s.path("builtin.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	os.Remove(dir + "/bad.tar")
	builtin()
}

func ExampleChangeKind() {
	fmt.Println(ChangeKind(1))
	// Output: A
}
