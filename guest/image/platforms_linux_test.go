package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = ocispec.Platform{OS: "linux", Architecture: "arm64"}
	s390x = ocispec.Platform{OS: "linux", Architecture: "s390x"}
)

// forAmd64 lets a store be one of an amd64 machine, whatever this one is.
func forAmd64(o *Options) { o.Platform = amd64 }

// both is an image for amd64 and arm64 that share a layer.
func both(t testing.TB) *testImage {
	t.Helper()
	shared := layer(t, entry{name: "base", body: "base"})
	img := newImage(t, shared, layer(t, entry{name: "arch", body: "amd64"}))
	other := newImage(t, shared, layer(t, entry{name: "arch", body: "arm64"}))
	other.config.Platform = arm64
	img.seal(t)
	other.seal(t)
	for d, b := range other.blobs {
		img.blobs[d] = b
	}
	img.desc.Platform, other.desc.Platform = &amd64, &arm64
	img.desc = img.addJSON(t, ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{img.desc, other.desc}})
	return img
}

// TestOtherPlatforms: what an image is for decides what is shown, saved and loaded of it.
func TestOtherPlatforms(t *testing.T) {
	s := open(t, forAmd64)
	img := load(t, s, both(t), "docker.io/library/both:1")
	if img.Spec.Architecture != "amd64" {
		t.Errorf("shown for %s", img.Spec.Architecture)
	}
	foreign, err := s.GetPlatform(t.Context(), "both:1", &arm64)
	if err != nil || foreign.Spec.Architecture != "arm64" {
		t.Fatalf("arm64: %+v, %v", foreign, err)
	}
	if _, err := s.GetPlatform(t.Context(), "both:1", &s390x); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/s390x") {
		t.Errorf("s390x: %v", err)
	}
	// A container of a platform that was only loaded.
	if r, err := s.Prepare(t.Context(), "foreign", "both:1", PrepareOptions{Platform: &arm64}); err != nil || len(r.Lower) != 2 {
		t.Errorf("prepare: %+v, %v", r, err)
	}
	if err := s.RemoveRootfs(t.Context(), "foreign"); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		wanted []ocispec.Platform
		want   []string
	}{{[]ocispec.Platform{arm64}, []string{"arm64"}}, {[]ocispec.Platform{amd64, arm64}, []string{"amd64", "arm64"}}, {nil, []string{"amd64", "arm64"}}} {
		var saved bytes.Buffer
		if err := save(t, s, &saved, []string{"both:1"}, tc.wanted...); err != nil {
			t.Fatal(err)
		}
		other := open(t, forAmd64)
		if _, err := other.Load(t.Context(), &saved, nil, nil); err != nil {
			t.Fatal(err)
		}
		if got := architectures(t, other, "both:1"); !slices.Equal(got, tc.want) {
			t.Errorf("saved %v: loaded %q", tc.wanted, got)
		}
	}
	if err := save(t, s, &bytes.Buffer{}, []string{"both:1"}, amd64, s390x); !errdefs.IsNotFound(err) {
		t.Errorf("saving what is not there: %v", err)
	}
}

// architectures are what of an image is here.
func architectures(t *testing.T, s *Store, ref string) []string {
	t.Helper()
	var out []string
	for _, p := range []ocispec.Platform{amd64, arm64} {
		if _, err := s.GetPlatform(t.Context(), ref, &p); err == nil {
			out = append(out, p.Architecture)
		}
	}
	return out
}

// TestLoadPlatforms: of an archive only what is wanted stays.
func TestLoadPlatforms(t *testing.T) {
	archive := both(t).archive(t, "docker.io/library/both:1")
	s := open(t, forAmd64)
	if _, err := s.Load(t.Context(), bytes.NewReader(archive), []ocispec.Platform{arm64}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := architectures(t, s, "both:1"); !slices.Equal(got, []string{"arm64"}) {
		t.Errorf("loaded %q", got)
	}
	// It is shown, too, for it is all there is.
	if img, err := s.Get(t.Context(), "both:1"); err != nil || img.Spec.Architecture != "arm64" {
		t.Errorf("%+v, %v", img.Spec.Platform, err)
	}
	if _, err := open(t, forAmd64).Load(t.Context(), bytes.NewReader(archive), []ocispec.Platform{s390x}, nil); !errdefs.IsNotFound(err) {
		t.Errorf("loading what is not there: %v", err)
	}
}

// TestRemovePlatforms: one platform goes, the name and the other stay, with the
// layer they have in common.
func TestRemovePlatforms(t *testing.T) {
	s := open(t, forAmd64)
	load(t, s, both(t), "docker.io/library/both:1")
	remove := func(force bool, list ...ocispec.Platform) ([]Deleted, error) {
		return s.RemovePlatforms(t.Context(), "both:1", list, RemoveOptions{Force: force})
	}
	if _, err := remove(false, arm64); !errdefs.IsInvalidArgument(err) {
		t.Errorf("without force: %v", err)
	}
	if _, err := remove(true, s390x); !errdefs.IsNotFound(err) {
		t.Errorf("a platform that is not there: %v", err)
	}
	running := RemoveOptions{Force: true, Users: func(digest.Digest) []User { return []User{{ContainerID: "c", Running: true}} }}
	if _, err := s.RemovePlatforms(t.Context(), "both:1", []ocispec.Platform{amd64}, running); !errdefs.IsConflict(err) {
		t.Errorf("a platform in use: %v", err)
	}
	gone, err := remove(true, arm64)
	if err != nil || len(gone) != 1 || gone[0].Untagged != "" {
		t.Errorf("removed %+v, %v", gone, err)
	}
	if err := s.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := architectures(t, s, "both:1"); !slices.Equal(got, []string{"amd64"}) {
		t.Errorf("left: %q", got)
	}
}

// TestForeign: an image for another platform only is shown all the same.
func TestForeign(t *testing.T) {
	s := open(t, forAmd64)
	img, err := s.Import(t.Context(), bytes.NewReader(layer(t, entry{name: "f", kind: tar.TypeReg})), ImportOptions{Ref: "f", Platform: &ocispec.Platform{Architecture: "sparc64"}})
	if err != nil || img.Spec.OS != "linux" || img.Spec.Architecture != "sparc64" {
		t.Errorf("imported %+v, %v", img.Spec.Platform, err)
	}
	list, err := s.List(t.Context(), ListOptions{})
	if err != nil || len(list) != 1 || list[0].Spec.Architecture != "sparc64" {
		t.Errorf("list: %+v, %v", list, err)
	}
}

// TestSaveByDigest: what is named by digest has no name in the archive.
func TestSaveByDigest(t *testing.T) {
	s := open(t)
	img := load(t, s, simple(t, "a"), "docker.io/library/a:1")
	for _, ref := range []string{img.ID.String(), img.RepoDigests[0]} {
		var saved bytes.Buffer
		if err := save(t, s, &saved, []string{ref}); err != nil {
			t.Fatal(err)
		}
		body, err := archiveIndex(&saved)
		if err != nil {
			t.Fatal(err)
		}
		var index ocispec.Index
		if err := json.Unmarshal(body, &index); err != nil || len(index.Manifests) != 1 || archiveName(index.Manifests[0]) != nil {
			t.Errorf("%s: %s, %v", ref, body, err)
		}
	}
}

// TestSharedSizes: layers that several images have are told.
func TestSharedSizes(t *testing.T) {
	s := open(t)
	a, b := load(t, s, simple(t, "a"), "docker.io/library/a:1"), load(t, s, simple(t, "b"), "docker.io/library/b:1")
	c := load(t, s, newImage(t, layer(t, entry{name: "own", body: "x"})).seal(t), "docker.io/library/c:1")
	shared, err := s.SharedSizes(t.Context(), []Image{a, b, c})
	if err != nil || shared[a.ID] == 0 || shared[a.ID] != shared[b.ID] || shared[a.ID] >= a.UnpackedSize || shared[c.ID] != 0 {
		t.Errorf("shared: %v, %v; a takes %d", shared, err, a.UnpackedSize)
	}
}

// TestPullBuiltin: a built-in image that was removed comes back by a pull, for
// which no registry is asked.
func TestPullBuiltin(t *testing.T) {
	s := open(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/hello.tar", simple(t, "one").archive(t, "docker.io/library/hello:latest"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.LoadBuiltin(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), "hello", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	var rec recorder
	pulled, err := s.Pull(t.Context(), "hello", PullOptions{Progress: rec.add})
	if err != nil || len(pulled) != 1 || !slices.Equal(pulled[0].RepoTags, []string{"hello:latest"}) {
		t.Fatalf("pulled %+v, %v", pulled, err)
	}
	if !rec.has("Status: Downloaded newer image for hello:latest") || !rec.has("Built into this machine: no registry is asked") {
		t.Errorf("progress: %+v", &rec)
	}
	if _, err := s.Pull(t.Context(), "hello", PullOptions{Progress: rec.add}); err != nil || !rec.has("Status: Image is up to date for hello:latest") {
		t.Errorf("a second pull: %v, %+v", err, &rec)
	}
}

// TestStatements: the statements about one platform's manifest are told.
func TestStatements(t *testing.T) {
	s := open(t, forAmd64)
	img := simple(t, "a")
	about, manifest := img.desc.Digest.String(), img.desc
	manifest.Platform = &amd64
	statement := img.add("application/vnd.in-toto+json", []byte(`{"predicateType":"https://x/provenance"}`))
	statement.Annotations = map[string]string{predicateAnnotation: "https://x/provenance"}
	config := img.addJSON(t, ocispec.MediaTypeImageConfig, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{statement.Digest}}})
	attestation := img.addJSON(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{statement}})
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	attestation.Annotations = map[string]string{attestationAnnotation: "attestation-manifest", AttestedAnnotation: about}
	img.desc = img.addJSON(t, ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest, attestation}})
	load(t, s, img, "docker.io/library/attested:1")
	for _, tc := range []struct {
		o    AttestationOptions
		want int
	}{{AttestationOptions{}, 1}, {AttestationOptions{Bodies: true, Predicates: []string{"https://x/provenance"}}, 1}, {AttestationOptions{Predicates: []string{"other"}}, 0}} {
		list, err := s.Attestations(t.Context(), "attested:1", tc.o)
		if err != nil || len(list) != tc.want || len(list) > 0 && (list[0].Body != nil) != tc.o.Bodies {
			t.Errorf("%+v: %+v, %v", tc.o, list, err)
		}
	}
	if _, err := s.Attestations(t.Context(), "attested:1", AttestationOptions{Platform: &s390x}); !errdefs.IsNotFound(err) {
		t.Errorf("another platform: %v", err)
	}
	load(t, s, simple(t, "plain"), "docker.io/library/plain:1")
	if list, err := s.Attestations(t.Context(), "plain:1", AttestationOptions{}); err != nil || len(list) != 0 {
		t.Errorf("an image without: %v, %v", list, err)
	}
}

// TestDistribution: what a registry has is told without a pull.
func TestDistribution(t *testing.T) {
	reg := startRegistry(t, "")
	s := open(t, forAmd64)
	img := load(t, s, both(t), reg.addr+"/both:1")
	if _, err := s.Push(t.Context(), reg.addr+"/both:1", PushOptions{}); err != nil {
		t.Fatal(err)
	}
	single := load(t, s, simple(t, "a"), reg.addr+"/a:1")
	if _, err := s.Push(t.Context(), reg.addr+"/a:1", PushOptions{}); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]struct {
		id        digest.Digest
		platforms int
	}{"/both:1": {img.ID, 2}, "/a:1": {single.ID, 1}, "/a@" + single.ID.String(): {single.ID, 1}} {
		desc, list, err := open(t).Distribution(t.Context(), reg.addr+ref, Auth{})
		if err != nil || desc.Digest != want.id || len(list) != want.platforms {
			t.Errorf("%s: %+v, %v, %v", ref, desc, list, err)
		}
	}
	if _, _, err := s.Distribution(t.Context(), reg.addr+"/none:1", Auth{}); !errdefs.IsNotFound(err) {
		t.Errorf("what is not there: %v", err)
	}
}

// FuzzManifest: no manifest and no config panics or is read without bounds.
func FuzzManifest(f *testing.F) {
	img := simple(f, "a")
	f.Add(img.blobs[img.desc.Digest], img.blobs[img.manifest.Config.Digest], true)
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:x","size":-1}]}`), []byte(`{}`), false)
	f.Add([]byte(`{"config":{"digest":""},"layers":[null]}`), []byte(`{"rootfs":{"diff_ids":["x"]},"history":[{}]}`), true)
	s := open(f)
	f.Fuzz(func(t *testing.T, manifest, config []byte, one bool) {
		top := &testImage{blobs: map[digest.Digest][]byte{}}
		top.add(ocispec.MediaTypeImageConfig, config)
		mediaType := ocispec.MediaTypeImageIndex
		if one {
			mediaType = ocispec.MediaTypeImageManifest
		}
		top.desc = top.add(mediaType, manifest)
		loaded, err := s.Load(t.Context(), bytes.NewReader(top.archive(t, "docker.io/library/fuzz:1")), nil, nil)
		if err != nil {
			return
		}
		for _, l := range loaded {
			_, _ = s.History(t.Context(), l.ID.String(), nil)
			_, _ = s.Prepare(t.Context(), "fuzz", l.ID.String(), PrepareOptions{})
			_ = s.RemoveRootfs(t.Context(), "fuzz")
		}
	})
}

// FuzzLoad: no archive panics or leaves something half there.
func FuzzLoad(f *testing.F) {
	f.Add(simple(f, "a").archive(f, "docker.io/library/a:1"))
	f.Add(layer(f, entry{name: "manifest.json", body: `[{"Config":"../x","RepoTags":["a"],"Layers":["/etc/passwd"]}]`}))
	f.Add([]byte{0x1f, 0x8b})
	s := open(f)
	f.Fuzz(func(t *testing.T, archive []byte) {
		if _, err := s.Load(t.Context(), bytes.NewReader(archive), nil, nil); err != nil {
			return
		}
		if _, err := s.List(t.Context(), ListOptions{}); err != nil {
			t.Error(err)
		}
	})
}
