package image

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/bcrypt"
)

// pushed makes an image, pushes it as ref and removes it again.
func pushed(t testing.TB, s *Store, img *testImage, ref string, auth Auth) Image {
	t.Helper()
	got := load(t, s, img, ref)
	if _, err := s.Push(t.Context(), ref, PushOptions{Auth: auth}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), got.ID.String(), RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	empty(t, s)
	return got
}

func TestPushPull(t *testing.T) {
	s := open(t)
	reg := startRegistry(t, "")
	ref := reg.addr + "/some/thing:v1"
	load(t, s, simple(t, "hello"), ref)
	var progress recorder
	out, err := s.Push(t.Context(), ref, PushOptions{Progress: progress.add})
	if err != nil || len(out) != 1 || out[0].Tag != "v1" || out[0].Size == 0 {
		t.Fatalf("Push = %v, %v", out, err)
	}
	if !progress.has("The push refers to") || !progress.has("Pushed") || !progress.has("v1: digest: sha256:") {
		t.Errorf("push progress %v", progress.lines)
	}
	progress = recorder{}
	if _, err := s.Push(t.Context(), ref, PushOptions{Progress: progress.add}); err != nil || !progress.has("Layer already exists") {
		t.Errorf("second push: %v, %v", err, progress.lines)
	}

	// What was pushed is mounted from there.
	if _, err := s.Tag(t.Context(), ref, reg.addr+"/second:v1"); err != nil {
		t.Fatal(err)
	}
	progress = recorder{}
	if _, err := s.Push(t.Context(), reg.addr+"/second:v1", PushOptions{Progress: progress.add}); err != nil || !progress.has("Mounted from some/thing") {
		t.Errorf("push of what was pushed elsewhere: %v, %v", err, progress.lines)
	}

	other := open(t)
	progress = recorder{}
	images, err := other.Pull(t.Context(), ref, PullOptions{Progress: progress.add})
	if err != nil {
		t.Fatal(err)
	}
	if len(images) != 1 || images[0].ID != out[0].Digest || images[0].RepoDigests[0] != reg.addr+"/some/thing@"+out[0].Digest.String() {
		t.Errorf("pulled %+v", images)
	}
	for _, want := range []string{"Pulling from " + reg.addr + "/some/thing", "Pulling fs layer", "Downloading", "Download complete", "Extracting", "Pull complete", "Digest: sha256:", "Status: Downloaded newer image for " + ref} {
		if !progress.has(want) {
			t.Errorf("no line %q in %v", want, progress.lines)
		}
	}
	progress = recorder{}
	if _, err := other.Pull(t.Context(), ref, PullOptions{Progress: progress.add}); err != nil || !progress.has("Status: Image is up to date") {
		t.Errorf("second pull: %v, %v", err, progress.lines)
	}
	if _, err := other.Pull(t.Context(), reg.addr+"/some/thing@"+out[0].Digest.String(), PullOptions{}); err != nil {
		t.Errorf("pull by digest: %v", err)
	}
	r, err := other.Prepare(t.Context(), "c", ref, PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, mounted(t, r)+"/text"); got != "hello" {
		t.Errorf("text = %q", got)
	}

	// Another repository of the same registry: the blobs are mounted.
	if _, err := other.Tag(t.Context(), ref, reg.addr+"/other:v1"); err != nil {
		t.Fatal(err)
	}
	progress = recorder{}
	if _, err := other.Push(t.Context(), reg.addr+"/other:v1", PushOptions{Progress: progress.add}); err != nil || !progress.has("Mounted from ") {
		t.Errorf("push elsewhere: %v, %v", err, progress.lines)
	}
}

func TestPullAllTags(t *testing.T) {
	s := open(t)
	reg := startRegistry(t, "")
	for _, tag := range []string{"a", "b"} {
		load(t, s, simple(t, tag), reg.addr+"/x:"+tag)
	}
	if out, err := s.Push(t.Context(), reg.addr+"/x", PushOptions{All: true}); err != nil || len(out) != 2 {
		t.Fatalf("Push = %v, %v", out, err)
	}
	other := open(t)
	images, err := other.Pull(t.Context(), reg.addr+"/x", PullOptions{All: true})
	if err != nil || len(images) != 2 {
		t.Fatalf("Pull = %v, %v", images, err)
	}
	if _, err := other.Pull(t.Context(), reg.addr+"/none", PullOptions{All: true}); !errdefs.IsNotFound(err) {
		t.Errorf("all tags of nothing: %v", err)
	}
}

func TestPullMissing(t *testing.T) {
	s := open(t)
	reg := startRegistry(t, "")
	_, err := s.Pull(t.Context(), reg.addr+"/none:1", PullOptions{})
	want := "manifest for " + reg.addr + "/none:1 not found: manifest unknown: manifest unknown"
	if !errdefs.IsNotFound(err) || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if _, err := s.Push(t.Context(), reg.addr+"/none:1", PushOptions{}); !errdefs.IsNotFound(err) {
		t.Errorf("push of nothing: %v", err)
	}
	empty(t, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = s.Pull(t.Context(), l.Addr().String()+"/x", PullOptions{})
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("no registry there: %v", err)
	}
	empty(t, s)
}

func htpasswd(t *testing.T, user, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(path, []byte(user+":"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBasicAuth(t *testing.T) {
	s := open(t)
	reg := startRegistry(t, fmt.Sprintf("http: {addr: ADDR}\nauth: {htpasswd: {realm: test, path: %s}}\n", htpasswd(t, "me", "secret")))
	ref := reg.addr + "/private:1"
	good := Auth{Username: "me", Password: "secret"}
	pushed(t, s, simple(t, "x"), ref, good)
	for name, auth := range map[string]Auth{"none": {}, "wrong": {Username: "me", Password: "wrong"}, "token": {RegistryToken: "abc"}} {
		_, err := s.Pull(t.Context(), ref, PullOptions{Auth: auth})
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "docker login") {
			t.Errorf("%s: %v", name, err)
		}
		load(t, s, simple(t, "y"), ref)
		if _, err = s.Push(t.Context(), ref, PushOptions{Auth: auth}); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: push: %v", name, err)
		}
		if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
			t.Fatal(err)
		}
	}
	empty(t, s)
	if _, err := s.Pull(t.Context(), ref, PullOptions{Auth: good}); err != nil {
		t.Error(err)
	}
	if _, err := s.Pull(t.Context(), reg.addr+"/private", PullOptions{Auth: good, All: true}); err != nil {
		t.Error(err)
	}
}

// certificate makes a certificate for 127.0.0.1 and the pool that trusts it.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"registry.test"}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = dir+"/cert.pem", dir+"/key.pem"
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(cert, certPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, key, pool
}

func TestTLS(t *testing.T) {
	cert, key, pool := certificate(t)
	reg := startRegistry(t, fmt.Sprintf("http: {addr: ADDR, tls: {certificate: %s, key: %s}}\n", cert, key))
	dial := func(o *Options) { // registry.test is where the registry is
		o.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, reg.addr)
		}
	}
	s := open(t, dial, func(o *Options) { o.Roots = pool })
	ref := "registry.test/x:1"
	pushed(t, s, simple(t, "x"), ref, Auth{})
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := open(t, dial, func(o *Options) { o.InsecureRegistries = []string{"registry.test"} }).Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Errorf("insecure: %v", err)
	}
	if _, err := open(t).Pull(t.Context(), reg.addr+"/x:1", PullOptions{}); err != nil {
		t.Errorf("TLS on loopback: %v", err)
	}
	strict := open(t, dial)
	if _, err := strict.Pull(t.Context(), ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown authority: %v", err)
	}
}

func TestConcurrentPulls(t *testing.T) {
	s := open(t)
	reg := startRegistry(t, "")
	ref := reg.addr + "/big:1"
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	pushed(t, s, newImage(t, layer(t, entry{name: "big", body: string(big)}), layer(t, entry{name: "two", body: "2"})).seal(t), ref, Auth{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	settle(t, s)
	if blobs, ingests, layers, leases := stored(t, s); blobs != 4 || ingests != 0 || layers != 2 || leases != 0 {
		t.Errorf("%d blobs, %d ingests, %d layers, %d leases", blobs, ingests, layers, leases)
	}
}

func TestPlatforms(t *testing.T) {
	s := open(t, func(o *Options) { o.Platform = ocispec.Platform{OS: "linux", Architecture: "amd64"} })
	reg := startRegistry(t, "")
	ref := reg.addr + "/multi:1"
	arm := newImage(t, layer(t, entry{name: "arch", body: "arm64"}))
	arm.config.Architecture = "arm64"
	arm.seal(t)
	both := newImage(t, layer(t, entry{name: "arch", body: "amd64"})).seal(t)
	for d, b := range arm.blobs {
		both.blobs[d] = b
	}
	arm.desc.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	both.desc.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{arm.desc, both.desc}}
	index.SchemaVersion = 2
	both.desc = both.addJSON(t, ocispec.MediaTypeImageIndex, index)
	loaded := load(t, s, both, ref)
	if len(loaded.Manifests) != 2 || loaded.Spec.Architecture != "amd64" {
		t.Fatalf("loaded %+v", loaded)
	}
	if _, err := s.Push(t.Context(), ref, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	images, err := s.Pull(t.Context(), ref, PullOptions{})
	if err != nil || images[0].Spec.Architecture != "amd64" || images[0].Manifests[0].Available {
		t.Fatalf("Pull = %+v, %v", images, err)
	}
	if _, err := s.GetPlatform(t.Context(), ref, &ocispec.Platform{OS: "linux", Architecture: "arm64"}); !errdefs.IsNotFound(err) {
		t.Errorf("platform not pulled: %v", err)
	}
	// What is here of an index can be pushed.
	if _, err := s.Tag(t.Context(), ref, reg.addr+"/single:1"); err != nil {
		t.Fatal(err)
	}
	var progress recorder
	if _, err := s.Push(t.Context(), reg.addr+"/single:1", PushOptions{Progress: progress.add}); err != nil || !progress.has("Not all platforms") {
		t.Errorf("push of one platform: %v", err)
	}
	arm64 := ocispec.Platform{OS: "linux", Architecture: "arm64"}
	if images, err = s.Pull(t.Context(), ref, PullOptions{Platform: &arm64}); err != nil || images[0].Spec.Architecture != "arm64" {
		t.Fatalf("Pull = %+v, %v", images, err)
	}
	r, err := s.Prepare(t.Context(), "c", ref, PrepareOptions{Platform: &arm64})
	if err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, mounted(t, r)+"/arch"); got != "arm64" {
		t.Errorf("arch = %q", got)
	}
	_, err = s.Pull(t.Context(), ref, PullOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no matching manifest for linux/s390x") {
		t.Errorf("no such platform: %v", err)
	}
	tags := func(img Image) []string { return img.RepoTags }
	if got, err := s.Get(t.Context(), ref); err != nil || !slices.Contains(tags(got), ref) {
		t.Errorf("after a failed pull: %+v, %v", got, err)
	}
}
