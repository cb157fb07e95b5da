//go:build linux

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestPull: pull shows layers, the image runs, and goes again.
func TestPull(t *testing.T) {
	h := machine(t)
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			ref := suite.registry.image("hello:1")
			c.exec("rmi", "-f", ref)
			out := c.ok(t, "pull", ref)
			for _, want := range []string{"Pulling from", "Digest: sha256:", "Status: "} {
				if !strings.Contains(out, want) {
					t.Errorf("pull lacks %q:\n%s", want, out)
				}
			}
			if out := c.ok(t, "pull", ref); !strings.Contains(out, "Image is up to date") {
				t.Errorf("second pull:\n%s", out)
			}
			if got := c.ok(t, "images", "--format", "{{.Tag}}", ref); got != "1" {
				t.Errorf("images: %q", got)
			}
			if got := c.ok(t, "run", "--rm", ref, "echo", "pulled"); got != "pulled" {
				t.Errorf("run: %q", got)
			}
			_, sum, _ := strings.Cut(c.ok(t, "inspect", "--type", "image", "--format", "{{index .RepoDigests 0}}", ref), "@")
			digest := suite.registry.image("hello@" + sum)
			c.ok(t, "pull", digest)
			if out := c.ok(t, "rmi", ref); !strings.Contains(out, "Untagged") {
				t.Errorf("rmi:\n%s", out)
			}
			c.exec("rmi", digest)
			c.fails(t, "", "inspect", "--type", "image", ref)
		})
	}
}

// TestOrigin: an image tells where it was pulled from or by which build it was made.
func TestOrigin(t *testing.T) {
	c := machine(t).berth()
	ref := suite.registry.image("hello:1")
	t.Cleanup(func() { c.exec("rmi", "-f", ref, "built-here") })
	c.ok(t, "pull", ref)
	const format = "{{json .Identity}}"
	if got := c.ok(t, "image", "inspect", "-f", format, ref); !strings.Contains(got, `{"Repository":"localhost/`) {
		t.Errorf("pulled: %s", got)
	}
	c.ok(t, "build", "-t", "built-here", buildIn(t, "FROM hello\nRUN echo here >/here"))
	var origin struct {
		Build []struct {
			Ref       string
			CreatedAt time.Time
		}
	}
	if err := json.Unmarshal([]byte(c.ok(t, "image", "inspect", "-f", format, "built-here")), &origin); err != nil {
		t.Fatal(err)
	}
	if b := origin.Build; len(b) != 1 || b[0].Ref == "" || time.Since(b[0].CreatedAt).Abs() > time.Hour {
		t.Errorf("built: %+v", b)
	}
}

// TestPullErrors: a registry's refusals are told as docker tells them, within
// bounded time, and the engine goes on.
func TestPullErrors(t *testing.T) {
	h := machine(t)
	c := h.berth()
	c.fails(t, "not found", "pull", suite.registry.image("nothing:1"))
	c.fails(t, "not found", "pull", suite.registry.image("hello:2"))
	c.fails(t, "invalid reference format", "pull", "UPPER/Case:x")
	for _, f := range []struct {
		name string
		want string
		do   http.HandlerFunc
	}{
		{"401", "", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
		}},
		{"404", "not found", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) }},
		{"429", "", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(429) }},
		{"500", "", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }},
		{"reset", "", func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
		}},
		{"garbage", "", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>hello</html>") }},
	} {
		t.Run(f.name, func(t *testing.T) {
			s := httptest.NewServer(f.do)
			defer s.Close()
			addr, _ := url.Parse(s.URL)
			r := c.fails(t, f.want, "pull", "localhost:"+addr.Port()+"/x:1")
			if r.took > 2*time.Minute {
				t.Errorf("it took %v to say so", r.took)
			}
		})
	}
	c.ok(t, "run", "--rm", "hello", "true")
}

// TestPullFlaky: a registry that fails now and then is pulled from all the same.
func TestPullFlaky(t *testing.T) {
	h := machine(t)
	target, _ := url.Parse("http://" + suite.registry.addr)
	proxy := httputil.NewSingleHostReverseProxy(target)
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%3 == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader([]int{429, 503}[n.Load()%2])
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer s.Close()
	addr, _ := url.Parse(s.URL)
	ref := "localhost:" + addr.Port() + "/hello:1"
	h.berth().ok(t, "pull", ref)
	h.berth().ok(t, "rmi", ref)
}

// TestPullWithLogin: credentials given to login are used, wrong ones refused.
func TestPullWithLogin(t *testing.T) {
	h := machine(t)
	c := h.berth()
	target, _ := url.Parse("http://" + suite.registry.addr)
	proxy := httputil.NewSingleHostReverseProxy(target)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "jo" || pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(401)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer s.Close()
	addr, _ := url.Parse(s.URL)
	host := "localhost:" + addr.Port()
	c.fails(t, "", "pull", host+"/hello:1")
	if r := c.execIn("wrong", "login", "-u", "jo", "--password-stdin", host); r.code == 0 {
		t.Errorf("%s\na wrong password was taken", r)
	}
	if r := c.execIn("secret", "login", "-u", "jo", "--password-stdin", host); r.code != 0 {
		t.Fatalf("%s", r)
	}
	c.ok(t, "pull", host+"/hello:1")
	c.ok(t, "rmi", host+"/hello:1")
	c.ok(t, "logout", host)
}

// hostile describes an image whose layer tries to get out.
type hostile struct {
	name    string
	entries []tar.Header
	digest  string // of the layer, when it is to be wrong
	want    string // in pull's error; empty when the pull must succeed harmlessly
}

// TestHostileImages: a layer's tricks stay inside its own container.
func TestHostileImages(t *testing.T) {
	h := machine(t)
	c := h.berth()
	for _, img := range []hostile{
		{name: "dotdot", entries: []tar.Header{{Name: "../../../../run/berth/pwned", Typeflag: tar.TypeReg, Mode: 0o644}}},
		{name: "absolute", entries: []tar.Header{{Name: "/run/berth/pwned", Typeflag: tar.TypeReg, Mode: 0o644}}},
		{name: "link", entries: []tar.Header{
			{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "/run/berth"},
			{Name: "out/pwned", Typeflag: tar.TypeReg, Mode: 0o644}}},
		{name: "dotdotlink", entries: []tar.Header{
			{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../run/berth"},
			{Name: "out/pwned", Typeflag: tar.TypeReg, Mode: 0o644}}},
		{name: "hardlink", entries: []tar.Header{{Name: "hard", Typeflag: tar.TypeLink, Linkname: "../../../../run/berth/welcome.json"}}, want: " "},
		{name: "device", entries: []tar.Header{{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 254, Devminor: 0, Mode: 0o666}}},
		{name: "wrongdigest", digest: "sha256:" + strings.Repeat("0", 64), want: " "},
	} {
		t.Run(img.name, func(t *testing.T) {
			ref := pushHostile(t, img)
			if img.want != "" {
				c.fails(t, strings.TrimSpace(img.want), "pull", ref)
			} else if r := c.exec("pull", ref); r.code == 0 {
				t.Cleanup(func() { c.exec("rmi", "-f", ref) })
				if img.name == "device" {
					if r := c.exec("run", "--rm", ref, "/disk"); r.code == 0 {
						t.Errorf("%s", r)
					}
				}
			}
			if got := c.ok(t, "ssh", "--", "find / -xdev -name pwned 2>/dev/null; ls /run/berth"); strings.Contains(got, "pwned") {
				t.Errorf("the layer wrote outside of its place:\n%s", got)
			}
		})
	}
	c.ok(t, "run", "--rm", "hello", "true")
}

// pushHostile serves the image from a registry of its own and returns its name.
func pushHostile(t *testing.T, img hostile) string {
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	for _, e := range img.entries {
		if err := tw.WriteHeader(&e); err != nil {
			t.Fatal(err)
		}
	}
	tw.Close()
	diffID := digest(layer.Bytes())
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	zw.Write(layer.Bytes())
	zw.Close()
	layerDigest := digest(zipped.Bytes())
	if img.digest != "" {
		layerDigest = img.digest
	}
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","config":{"Cmd":["/x"]},"rootfs":{"type":"layers","diff_ids":[%q]}}`, diffID)
	manifest, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": len(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layerDigest, "size": zipped.Len()}},
	})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v2/":
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Header().Set("Docker-Content-Digest", digest(manifest))
			w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
			w.Write(manifest)
		case strings.HasSuffix(r.URL.Path, digest(config)):
			w.Write(config)
		case strings.HasSuffix(r.URL.Path, layerDigest):
			w.Write(zipped.Bytes())
		default:
			w.WriteHeader(404)
		}
	}))
	t.Cleanup(s.Close)
	addr, _ := url.Parse(s.URL)
	return "localhost:" + addr.Port() + "/" + img.name + ":1"
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// TestSaveLoad: what save writes, load reads, in both clients.
func TestSaveLoad(t *testing.T) {
	h := machine(t)
	for _, c := range h.clients() {
		file := t.TempDir() + "/image.tar"
		c.ok(t, "tag", "hello", "saved:1")
		c.ok(t, "save", "-o", file, "saved:1")
		c.ok(t, "rmi", "saved:1")
		if out := c.ok(t, "load", "-i", file); !strings.Contains(out, "saved:1") {
			t.Errorf("%s load: %q", c.name, out)
		}
		c.ok(t, "run", "--rm", "saved:1", "true")
		c.ok(t, "rmi", "saved:1")
		os.Remove(file)
	}
}

// TestCommitCopyPrune: files go in and out of a container, its changes become an
// image, and what nobody needs is cleared away.
func TestCommitCopyPrune(t *testing.T) {
	h := ownHome(t)
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	for _, c := range h.clients() {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(os.WriteFile(dir+"/in", []byte("copied"), 0o640))
			c.ok(t, "create", "--name", "box", "-w", "/work/here", "hello", "sh", "-c", "cat /etc/in in; echo made >/made")
			c.ok(t, "cp", dir+"/in", "box:/etc/in")
			c.ok(t, "cp", dir+"/in", "box:/work/here/")
			if got := c.ok(t, "start", "-a", "box"); got != "copiedcopied" {
				t.Errorf("the container read %q", got)
			}
			c.ok(t, "cp", "box:/made", dir+"/out")
			if got, err := os.ReadFile(dir + "/out"); string(got) != "made\n" {
				t.Errorf("copied out: %q, %v", got, err)
			}
			if got := c.ok(t, "diff", "box"); got != "C /etc\nA /etc/in\nA /made\nA /work\nA /work/here\nA /work/here/in" {
				t.Errorf("diff: %q", got)
			}
			c.ok(t, "commit", "-m", "with a file", "box", "boxed:1")
			if got := c.ok(t, "run", "--rm", "boxed:1", "cat", "/made"); got != "made" {
				t.Errorf("the new image: %q", got)
			}
			c.ok(t, "rmi", "boxed:1")
			c.ok(t, "network", "create", "idle")
			c.ok(t, "create", "--name", "waits", "--network", "idle", "hello", "true")
			if got := c.ok(t, "network", "prune", "-f"); !strings.Contains(got, "idle") {
				t.Errorf("a network that only a container wants which does not run: %q", got)
			}
			c.ok(t, "tag", "hello", "other:1")
			if got := c.ok(t, "image", "prune", "-af"); !strings.Contains(got, "untagged: other:1") || strings.Contains(got, "hello") {
				t.Errorf("pruned images: %q", got)
			}
			if got := c.ok(t, "system", "df"); !strings.Contains(got, "Containers") {
				t.Errorf("df: %q", got)
			}
			c.ok(t, "system", "prune", "-f", "--volumes")
			if got := c.ok(t, "ps", "-aq"); got != "" {
				t.Errorf("left after prune: %q", got)
			}
		})
	}
}

// TestImportCompressed: an archive may come as any of the compressions.
func TestImportCompressed(t *testing.T) {
	h := machine(t)
	c := h.docker()
	c.ok(t, "create", "--name", "packed", "hello")
	t.Cleanup(func() { c.exec("rm", "packed") })
	tar := filepath.Join(t.TempDir(), "rootfs.tar")
	c.ok(t, "export", "-o", tar, "packed")
	for _, program := range []string{"xz", "zstd", "gzip"} {
		cmd := exec.Command(program, "-c", tar)
		archive, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		ref := "e2e-" + program
		if r := c.execIn(string(archive), "import", "-", ref); r.code != 0 {
			t.Errorf("%s: %s", program, r)
			continue
		}
		if got := c.ok(t, "run", "--rm", ref, "echo", "unpacked"); got != "unpacked" {
			t.Errorf("%s: %q", program, got)
		}
		c.ok(t, "rmi", ref)
	}
	if r := c.execIn("\xfd7zXZ\x00 and no more", "import", "-", "e2e-broken"); r.code == 0 || !strings.Contains(r.err, "xz") {
		t.Errorf("a broken archive: %s", r)
	}
}

// TestSearch: a search asks a hub, and where there is none, or it answers badly, says
// so.
func TestSearch(t *testing.T) {
	c := machine(t).docker()
	c.fails(t, "index.docker.io", "search", "nothing")
	c.fails(t, "outside the range of [1, 100]", "search", "--limit", "1000", "nothing")
	c.fails(t, "unexpected status code 404", "search", suite.registry.image("x"))
}

// TestBuiltinReturns: a built-in image that was removed comes back when it is
// wanted, without a registry.
func TestBuiltinReturns(t *testing.T) {
	h := machine(t)
	for _, c := range h.clients() {
		c.ok(t, "rmi", "hello")
		c.fails(t, "No such image", "inspect", "--type", "image", "hello")
		if got := c.ok(t, "run", "--rm", "hello", "echo", "back"); got != "back" {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}
