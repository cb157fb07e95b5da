package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/util/disk"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/berthvm/berth/guest/image"
)

// TestGCPolicy checks that the cache's budget follows the disk's size, down to small
// ones.
func TestGCPolicy(t *testing.T) {
	for _, c := range []struct{ disk, reserved, free, most int64 }{
		{1e9, 1e8, 2e8, 8e8},
		{64e9, 6.4e9, 12.8e9, 51.2e9},
		{1e12, 1e10, 2e11, 1e11},
	} {
		rules := gcPolicyFor(disk.DiskStat{Total: c.disk})
		for _, r := range rules[1:] {
			if r.ReservedSpace != c.reserved || r.MinFreeSpace != c.free || r.MaxUsedSpace != c.most {
				t.Errorf("a disk of %d: %+v", c.disk, r)
			}
		}
		if last := rules[len(rules)-1]; !last.All {
			t.Errorf("the last rule spares something: %+v", last)
		}
	}
	for _, r := range gcPolicyFor(disk.DiskStat{})[1:] {
		if r.MaxUsedSpace == 0 {
			t.Errorf("a disk of no size has no limit: %+v", r)
		}
	}
}

// TestTellUnmade checks that a step whose layer was not made is nobody's image.
func TestTellUnmade(t *testing.T) {
	look := madeLayers{everywhere{}}
	if !look.Exists("record", []digest.Digest{"sha256:1"}) || look.Exists("record", []digest.Digest{"sha256:1", ""}) {
		t.Error("layers that were made and others are not told apart")
	}
	if err := tellUnmade(struct{ cache.Manager }{}); err == nil {
		t.Error("a cache without a look-up was taken")
	}
}

// everywhere finds every record in an image.
type everywhere struct{}

func (everywhere) Exists(string, []digest.Digest) bool { return true }

func TestRequest(t *testing.T) {
	alias := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		name  string
		in    Request
		attrs map[string]string // beyond image-resolve-mode=local
		bad   string
	}{
		{name: "nothing", attrs: map[string]string{}},
		{name: "all", in: Request{
			Target: "t", Dockerfile: "sub/D", Remote: "https://x/y.git", Platforms: "linux/arm64", CacheFrom: []string{"a", "b"},
			Ulimits: []string{"nofile=1:2"}, CgroupPath: "p", ShmSize: 7, Args: map[string]string{"A": "1"}, Labels: map[string]string{"l": "2"},
			Limits:  Limits{Memory: 1 << 20, MemorySwap: -1, CPUShares: 2, CPUPeriod: 3, CPUQuota: -1, CPUs: "0-1"},
			NoCache: true, Pull: true, Network: "none", ExtraHosts: []string{"h:192.0.2.9", "g=host-gateway", "six:[2001:db8::1]"},
		}, attrs: map[string]string{
			"target": "t", "filename": "sub/D", "context": "https://x/y.git", "platform": "linux/arm64", "cache-from": "a,b",
			"ulimit": "nofile=1:2", "cgroup-parent": "p", "shm-size": "7", "build-arg:A": "1", "label:l": "2", "no-cache": "",
			"memory": "1048576", "memswap": "-1", "cpushares": "2", "cpuperiod": "3", "cpusetcpus": "0-1",
			"image-resolve-mode": "pull", "force-network-mode": "none", "add-hosts": "h=192.0.2.9,g=192.0.2.1,six=[2001:db8::1]",
		}},
		{name: "the default's name", in: Request{Dockerfile: ".", Network: "default"}, attrs: map[string]string{}},
		{name: "classic", in: Request{Classic: true}, attrs: map[string]string{classicOpt: "1"}},
		{name: "context", in: Request{Context: strings.NewReader("")}, attrs: map[string]string{nameArg: "untagged"}},
		{name: "context of an image", in: Request{Context: strings.NewReader(""), Tags: []string{"docker.io/library/x:latest", "h/y:1"}, Target: "t"},
			attrs: map[string]string{nameArg: "x:latest (t)", "target": "t"}},
		{name: "context with a name", in: Request{Context: strings.NewReader(""), Args: map[string]string{"BUILDKIT_BUILD_NAME": "n"}},
			attrs: map[string]string{nameArg: "n"}},
		{name: "context elsewhere", in: Request{Context: strings.NewReader(""), Remote: "https://h/x"}, attrs: map[string]string{"context": "https://h/x"}},
		{name: "host's network", in: Request{Network: "host"}, attrs: map[string]string{"force-network-mode": "host"}},
		{name: "network", in: Request{Network: "mine"}, bad: `network mode "mine" not supported`},
		{name: "container's network", in: Request{Network: "container:c"}, bad: "only default, host and none"},
		{name: "host without address", in: Request{ExtraHosts: []string{"h"}}, bad: `invalid host "h"`},
		{name: "host without name", in: Request{ExtraHosts: []string{":1"}}, bad: "invalid host"},
		{name: "two hosts in one", in: Request{ExtraHosts: []string{"h:192.0.2.9,g:192.0.2.8"}}, bad: "invalid host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := c.in.solve(alias)
			if c.bad != "" {
				if !errors.Is(err, ErrRequest) || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.bad) {
					t.Fatalf("error %v, want %q", err, c.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"image-resolve-mode": "local"}
			maps.Copy(want, c.attrs)
			if !maps.Equal(req.FrontendAttrs, want) {
				t.Errorf("attributes %v, want %v", req.FrontendAttrs, want)
			}
			if got := len(req.Entitlements) == 1; got != (c.in.Network == "host") {
				t.Errorf("entitlements %v", req.Entitlements)
			}
		})
	}
	if _, err := (&Request{ExtraHosts: []string{"h:host-gateway"}}).solve(netip.Addr{}); !errors.Is(err, ErrRequest) {
		t.Errorf("no gateway is known, and the error is %v", err)
	}
}

// TestExcluded: of the files that the builder reads, a .dockerignore may exclude each.
func TestExcluded(t *testing.T) {
	for _, c := range []struct{ ignore, dockerfile, want string }{
		{"", "", ""},
		{"other\n", "", ""},
		{"Dockerfile\n.dockerignore\n", "", ".dockerignore Dockerfile"},
		{"*\n!src\n", "./sub/../D", ".dockerignore D"},
		{"*\n!Dockerfile\n", "", ".dockerignore"},
		{"sub\n", "/sub/D", "sub/D"},
		{"# .dockerignore\n.dockerfile.0a1b\n", ".dockerfile.0a1b", ".dockerfile.0a1b"},
	} {
		got, err := excluded([]byte(c.ignore), c.dockerfile)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%q excludes %q, %v, want %q", c.ignore, got, err, c.want)
		}
	}
	if _, err := excluded([]byte("[\n"), ""); err == nil {
		t.Error("a pattern that is none was taken")
	}
}

func TestExporters(t *testing.T) {
	for _, c := range []struct {
		in   Request
		want string
	}{
		{Request{}, "moby map[]"},
		{Request{Tags: []string{"a:1", "b:2"}}, "moby map[name:a:1,b:2]"},
		{Request{Tags: []string{"a:1"}, Outputs: []Output{{Type: "cacheonly"}}}, ""},
		{Request{Tags: []string{"a:1"}, Outputs: []Output{{Type: "local", Attrs: map[string]string{"dest": "x"}}, {Type: "image"}}},
			"local map[dest:x] image map[name:a:1]"},
	} {
		var got []string
		for _, e := range c.in.exporters() {
			got = append(got, e.Type+" "+fmt.Sprint(e.Attrs))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%+v: exporters %q, want %q", c.in, s, c.want)
		}
	}
}

// TestExtendedFirst: a tar whose first entry has headers before its own is told to
// be one by its first KiB; all else that is uploaded comes as it is.
func TestExtendedFirst(t *testing.T) {
	var python bytes.Buffer
	w := tar.NewWriter(&python)
	for _, name := range []string{"Dockerfile", "other"} {
		h := &tar.Header{Name: name, Mode: 0o644, Size: 5, PAXRecords: map[string]string{"BERTH.note": "words"}, Format: tar.FormatPAX}
		if err := errors.Join(w.WriteHeader(h), func() error { _, err := w.Write([]byte("words")); return err }()); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	got, err := io.ReadAll(&plainFirst{rest: bufio.NewReaderSize(&python, tarBlock)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tar.NewReader(bytes.NewReader(got[:1024])).Next(); err != nil {
		t.Errorf("the first KiB is no tar: %v", err)
	}
	names := ""
	for r := tar.NewReader(bytes.NewReader(got)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r)
		names += h.Name + string(body) + " "
	}
	if names != "./ Dockerfilewords otherwords " {
		t.Errorf("the tar holds %q", names)
	}
	for _, body := range []string{"", "FROM scratch\n", strings.Repeat("x", 2000), "\x1f\x8b\x08" + strings.Repeat("z", 1000)} {
		if got, err := io.ReadAll(&plainFirst{rest: bufio.NewReaderSize(strings.NewReader(body), tarBlock)}); string(got) != body || err != nil {
			t.Errorf("%.20q came as %.20q, %v", body, got, err)
		}
	}
}

func TestUploads(t *testing.T) {
	var next http.RoundTripper = roundTrip(func(*http.Request) (*http.Response, error) { return nil, errors.New("elsewhere") })
	u := newUploads()
	c := http.Client{Transport: u.transport(next)}
	url, done := u.add(strings.NewReader("tar"))
	if resp, err := c.Head(url); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("HEAD: %v %v", resp, err)
	}
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "tar" {
		t.Errorf("the upload is %q, %v", body, err)
	}
	if resp, err := c.Get(url); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("a second reading: %v %v", resp, err)
	}
	url, done2 := u.add(strings.NewReader("x"))
	done2()
	done()
	if resp, err := c.Get(url); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("after its end: %v %v", resp, err)
	}
	if _, err := c.Get("http://registry.invalid/x"); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("another host: %v", err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestDistrust: a cache that was open when the power went is not used, and holds
// nothing any more.
func TestDistrust(t *testing.T) {
	for _, c := range []struct {
		name  string
		state string // the link's target; empty: none
		keep  bool
	}{
		{"closed", "closed", true},
		{"the engine died in this boot", "open-this", true},
		{"the machine died", "open-that", false},
		{"first use", "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			store, err := image.Open(t.Context(), image.Options{Root: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			parts := store.Parts()
			ctx := namespaces.WithNamespace(t.Context(), parts.Namespace)
			for _, id := range []string{"used-sha256:0", "record"} {
				if _, err := parts.Leases.Create(ctx, leases.WithID(id)); err != nil {
					t.Fatal(err)
				}
			}
			b := &Builder{opts: Options{Root: root, BootID: "this", Log: slog.New(slog.DiscardHandler), Images: store}}
			for _, name := range distrusted {
				if err := os.WriteFile(filepath.Join(root, name), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.state != "" {
				if err := b.mark(c.state); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.distrust(t.Context()); err != nil {
				t.Fatal(err)
			}
			left, err := parts.Leases.List(ctx)
			if err != nil || len(left) == 2 != c.keep || !slices.ContainsFunc(left, func(l leases.Lease) bool { return l.ID == "used-sha256:0" }) {
				t.Errorf("the leases left are %v, %v", left, err)
			}
			found, err := filepath.Glob(root + "/*.db")
			if err != nil || len(found) == len(distrusted) != c.keep {
				t.Errorf("of the cache there is %q, %v; it should be kept: %v", found, err, c.keep)
			}
			if got, err := os.Readlink(filepath.Join(root, markName)); err != nil || got != "open-this" {
				t.Errorf("the state is %q, %v", got, err)
			}
			if err := b.markClean(); err != nil {
				t.Fatal(err)
			}
			if got, err := os.Readlink(filepath.Join(root, markName)); err != nil || got != "closed" {
				t.Errorf("the state is then %q, %v", got, err)
			}
		})
	}
}

// TestRecords: the cache's records are written without flushes, but for the last.
func TestRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), recordsName)
	records, err := openRecords(path)
	if err != nil {
		t.Fatal(err)
	}
	var db *bolt.DB
	err = records.DB().Update(func(tx *bolt.Tx) error { db = tx.DB(); return nil })
	if err != nil || !db.NoSync {
		t.Errorf("each change is flushed: %v", err)
	}
	if err := records.Close(); err != nil || db.NoSync {
		t.Errorf("the end is flushed: %v, %v", !db.NoSync, err)
	}
}

func TestPublished(t *testing.T) {
	for ref, want := range map[string]bool{
		"docker/dockerfile:1": true, "docker.io/docker/dockerfile": true, "docker/dockerfile:1.7-labs": true,
		"docker/dockerfile-upstream:master": false, "localhost:5000/docker/dockerfile:1": false, "": false, "::": false,
	} {
		if got := published(ref); got != want {
			t.Errorf("published(%q) = %v, want %v", ref, got, want)
		}
	}
}

func TestSBOMGenerator(t *testing.T) {
	for _, c := range []struct{ attest, want string }{
		{"none", ""},
		{"", "docker.io/docker/buildkit-syft-scanner:stable-1"},
		{"generator=localhost:5000/g", "localhost:5000/g:latest"},
		{"generator=A B", ""},
	} {
		opts := map[string]string{"attest:provenance": "mode=max"}
		if c.attest != "none" {
			opts["attest:sbom"] = c.attest
		}
		if got := sbomGenerator(opts); got != c.want {
			t.Errorf("sbom %q: the generator is %q, want %q", c.attest, got, c.want)
		}
	}
}

func TestNormalNames(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "*": "*", "a": "docker.io/library/a:latest", "a,localhost:5000/b/c:1": "docker.io/library/a:latest,localhost:5000/b/c:1",
		"A B": "error", "a,": "error",
	} {
		got, err := normalNames(in)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q is %q, %v, want %q", in, got, err, want)
		}
	}
}
