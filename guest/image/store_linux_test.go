package image

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// stored counts what the store holds.
func stored(t testing.TB, s *Store) (blobs, ingests, layers, leases int) {
	t.Helper()
	ctx := s.ctx(t.Context())
	if err := s.content.Walk(ctx, func(content.Info) error { blobs++; return nil }); err != nil {
		t.Fatal(err)
	}
	statuses, err := s.content.ListStatuses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob(s.path("snapshots", "snapshots", "*"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.leases.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return blobs, len(statuses), len(dirs), len(all)
}

// empty fails the test when the store holds anything.
func empty(t testing.TB, s *Store) {
	t.Helper()
	settle(t, s)
	blobs, ingests, layers, leases := stored(t, s)
	if blobs+ingests+layers+leases != 0 {
		t.Errorf("left: %d blobs, %d ingests, %d layers, %d leases", blobs, ingests, layers, leases)
	}
}

func TestContainerRootfs(t *testing.T) {
	s := open(t)
	img := load(t, s, simple(t, "hello"), "docker.io/library/simple:1")
	r, err := s.Prepare(t.Context(), "c1", "simple:1", PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir := mounted(t, r)
	if got := mustRead(t, dir+"/text"); got != "hello" {
		t.Errorf("text = %q", got)
	}
	if _, err := os.Stat(dir + "/gone"); err == nil {
		t.Error("a whited-out file is there")
	}
	for path, body := range map[string]string{"new": "n", "text": "changed"} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(dir + "/etc/base"); err != nil {
		t.Fatal(err)
	}
	changes, err := s.Changes(t.Context(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes {
		got = append(got, c.Kind.String()+" "+c.Path)
	}
	want := []string{"C /etc", "D /etc/base", "A /new", "C /text"}
	if !slices.Equal(got, want) {
		t.Errorf("changes = %q, want %q", got, want)
	}
	usage, err := s.Usage(t.Context(), "c1")
	if err != nil || usage.RW < 4096 || usage.RootFS <= usage.RW {
		t.Errorf("usage = %+v, %v", usage, err)
	}
	if _, err := s.Prepare(t.Context(), "c1", "simple:1", PrepareOptions{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Prepare again: %v", err)
	}

	committed, err := s.Commit(t.Context(), "c1", CommitOptions{Ref: "made:2", Config: img.Spec.Config, Author: "me", Comment: "why"})
	if err != nil {
		t.Fatal(err)
	}
	if committed.Parent != img.ID || len(committed.Layers) != 3 || committed.RepoTags[0] != "made:2" {
		t.Errorf("committed = %+v", committed)
	}
	r2, err := s.Prepare(t.Context(), "c2", "made:2", PrepareOptions{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	dir2 := mounted(t, r2)
	if got := mustRead(t, dir2+"/new") + mustRead(t, dir2+"/text"); got != "nchanged" {
		t.Errorf("committed files = %q", got)
	}
	if _, err := os.Stat(dir2 + "/etc/base"); err == nil {
		t.Error("a removed file is in the commit")
	}
}

func TestRunWritesNoDatabase(t *testing.T) {
	s := open(t)
	load(t, s, simple(t, "hello"), "docker.io/library/simple:1")
	cycle := func() {
		t.Helper()
		if _, err := s.Prepare(t.Context(), "c", "simple:1", PrepareOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveRootfs(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, s)
	cycle()
	info, err := os.Stat(s.path("meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	cycle()
	after, err := os.Stat(s.path("meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	if !info.ModTime().Equal(after.ModTime()) {
		t.Error("creating and removing a container wrote to the database")
	}
}

func TestReopenKeepsContainers(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := reopen(t, root)
	load(t, s, simple(t, "hello"), "docker.io/library/simple:1")
	r, err := s.Prepare(t.Context(), "c1", "simple:1", PrepareOptions{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, leftover := range []string{"halfmade", gonePrefix + "2"} {
		if err := os.MkdirAll(filepath.Join(root, "rootfs", leftover, "fs"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, root)
	again, err := s.Rootfs(t.Context(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(again.Lower, r.Lower) || again.Upper != r.Upper || !again.Volatile || again.Image != r.Image {
		t.Errorf("reopened %+v, was %+v", again, r)
	}
	entries, err := os.ReadDir(filepath.Join(root, "rootfs"))
	if err != nil || len(entries) != 1 {
		t.Errorf("leftovers stay: %v, %v", entries, err)
	}
	// A volatile layer that a crash cut off mounts again.
	if err := os.MkdirAll(again.Work+"/work/incompat/volatile", 0o755); err != nil {
		t.Fatal(err)
	}
	mounted(t, again)
}

func TestImageInUseOutlivesItsName(t *testing.T) {
	s := open(t)
	img := load(t, s, simple(t, "hello"), "docker.io/library/simple:1")
	if _, err := s.Prepare(t.Context(), "c1", "simple:1", PrepareOptions{}); err != nil {
		t.Fatal(err)
	}
	users := func(digest.Digest) []User { return []User{{ContainerID: "c1"}} }
	if _, err := s.Remove(t.Context(), "simple:1", RemoveOptions{Users: users}); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "must force") {
		t.Errorf("Remove of an image in use: %v", err)
	}
	running := func(digest.Digest) []User { return []User{{ContainerID: "c1", Running: true}} }
	if _, err := s.Remove(t.Context(), img.ID.String(), RemoveOptions{Users: running, Force: true}); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "cannot be forced") {
		t.Errorf("forced Remove of a running image: %v", err)
	}
	deleted, err := s.Remove(t.Context(), "simple:1", RemoveOptions{Users: users, Force: true})
	if err != nil || len(deleted) != 2 || deleted[0].Untagged != "simple:1" || deleted[1].Deleted != img.ID {
		t.Fatalf("Remove = %v, %v", deleted, err)
	}
	settle(t, s)
	r, err := s.Rootfs(t.Context(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, mounted(t, r)+"/text"); got != "hello" {
		t.Errorf("text = %q", got)
	}
	if _, err := s.Commit(t.Context(), "c1", CommitOptions{Ref: "rescued"}); err != nil {
		t.Errorf("Commit: %v", err)
	}
	if _, err := s.Remove(t.Context(), "rescued", RemoveOptions{}); err != nil {
		t.Error(err)
	}
	if err := s.RemoveRootfs(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	empty(t, s)
}

func TestNames(t *testing.T) {
	s := open(t)
	a := load(t, s, simple(t, "a"), "docker.io/library/a:1")
	b := load(t, s, simple(t, "b"), "docker.io/library/b:1")
	if _, err := s.Tag(t.Context(), "a:1", "example.com:5000/x/y:z"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"a:1", "docker.io/library/a:1", "example.com:5000/x/y:z", a.ID.String(), a.ID.Encoded(), a.ID.Encoded()[:12], a.ID.String()[:19],
		"a@" + a.ID.String(), "a:1@" + a.ID.String(), "a:2@" + a.ID.String()} {
		got, err := s.Get(t.Context(), ref)
		if err != nil || got.ID != a.ID {
			t.Errorf("Get(%q) = %s, %v", ref, got.ID, err)
		}
	}
	for _, ref := range []string{"a", "c:1", "a@" + b.ID.String(), strings.Repeat("0", 64), "0000", "sha256:" + strings.Repeat("0", 64)} {
		if _, err := s.Get(t.Context(), ref); !errdefs.IsNotFound(err) {
			t.Errorf("Get(%q): %v", ref, err)
		}
	}
	for _, ref := range []string{"", "A:1", "a:", "a b", "../x", "-"} {
		if _, err := s.Get(t.Context(), ref); !errdefs.IsInvalidArgument(err) || strings.Count(err.Error(), "invalid reference format") != 1 {
			t.Errorf("Get(%q): %v", ref, err)
		}
	}
	if _, err := s.Remove(t.Context(), a.ID.String(), RemoveOptions{}); !errdefs.IsConflict(err) {
		t.Errorf("Remove by ID with two names: %v", err)
	}
	running := func(digest.Digest) []User { return []User{{ContainerID: "c1", Running: true}} }
	if _, err := s.Remove(t.Context(), a.ID.String(), RemoveOptions{Users: running}); err == nil || !strings.Contains(err.Error(), "cannot be forced") {
		t.Errorf("Remove by ID with two names, in use: %v", err)
	}
	// A name that moves leaves the old image without one.
	moved, err := s.Tag(t.Context(), "b:1", "a:1")
	if err != nil || !slices.Equal(moved.RepoTags, []string{"a:1", "b:1"}) {
		t.Fatalf("Tag = %v, %v", moved.RepoTags, err)
	}
	if _, err := s.Tag(t.Context(), "b:1", "example.com:5000/x/y:z"); err != nil {
		t.Fatal(err)
	}
	dangling := true
	list, err := s.List(t.Context(), ListOptions{Dangling: &dangling})
	if err != nil || len(list) != 1 || list[0].ID != a.ID || len(list[0].RepoTags) != 0 {
		t.Fatalf("dangling = %+v, %v", list, err)
	}
	if list, err = s.List(t.Context(), ListOptions{Reference: []string{"example.com:5000/x/*"}}); err != nil || len(list) != 1 || len(list[0].RepoTags) != 1 {
		t.Errorf("by reference = %+v, %v", list, err)
	}
	if list, err = s.List(t.Context(), ListOptions{Labels: []string{"made=by-test"}, NotLabels: []string{"other"}}); err != nil || len(list) != 2 {
		t.Errorf("by label = %+v, %v", list, err)
	}
	if list, err = s.List(t.Context(), ListOptions{Labels: []string{"made=otherwise"}}); err != nil || len(list) != 0 {
		t.Errorf("by label = %+v, %v", list, err)
	}
	pruned, err := s.Prune(t.Context(), PruneOptions{})
	if err != nil || len(pruned.Deleted) != 1 || pruned.Reclaimed <= 0 {
		t.Errorf("Prune = %+v, %v", pruned, err)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
		t.Error(err)
	}
	empty(t, s)
}

// TestRemoveNames: which names a removal takes off an image, and when it is refused.
func TestRemoveNames(t *testing.T) {
	for _, tc := range []struct {
		names, remove string // ID is the image's
		untagged      string // what is reported; "" for a refusal
		left          string // in the database
	}{
		{"a:1 a@ID", "ID", "a:1 a@ID", ""},
		{"a@ID", "ID", "a@ID", ""},
		{"a:1 a:2", "ID", "", "a:1 a:2"},
		{"a:1 a:2 a@ID", "ID", "", "a:1 a:2 a@ID"},
		{"a:1 b@ID", "ID", "", "a:1 b@ID"},
		{"a@ID b@ID", "ID", "", "a@ID b@ID"},
		{"a:1 a@ID", "a:1", "a:1 a@ID", ""},
		{"a:1 a:2 a@ID", "a:1", "a:1", "a:2 a@ID"},
		{"a:1 a@ID b:1 b@ID", "a:1", "a:1 a@ID", "b:1 b@ID"},
		{"a:1 a:2 a@ID b:1", "a@ID", "a:1 a:2 a@ID", "b:1"},
		{"a:1 b:1", "a@ID", "a:1", "b:1"},
		{"a:1 a:2", "a:2@ID", "a:2", "a:1"},
		{"a:1", "a:2@ID", "", "a:1"},
	} {
		s := open(t)
		id := load(t, s, simple(t, "x"), "docker.io/library/x:x").ID.String()
		put := func(v string) string { return strings.ReplaceAll(v, "ID", id) }
		for _, name := range strings.Fields(tc.names) {
			r, _, err := s.find(s.ctx(t.Context()), id)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.setName(s.ctx(t.Context()), "docker.io/library/"+put(name), r.target, nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Remove(t.Context(), "x:x", RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		deleted, err := s.Remove(t.Context(), put(tc.remove), RemoveOptions{})
		var untagged []string
		for _, d := range deleted {
			if d.Untagged != "" {
				untagged = append(untagged, d.Untagged)
			}
		}
		if got := strings.Join(untagged, " "); got != put(tc.untagged) || (err == nil) != (tc.untagged != "") {
			t.Errorf("%s without %s: untagged %s, %v", tc.names, tc.remove, got, err)
		}
		all, err := s.images.List(s.ctx(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, img := range all {
			left = append(left, strings.TrimPrefix(img.Name, "docker.io/library/"))
		}
		if slices.Sort(left); strings.Join(left, " ") != put(tc.left) {
			t.Errorf("%s without %s: left %q", tc.names, tc.remove, left)
		}
	}
}

// TestSaveOfRemoved: an image that is removed while it is saved is saved whole.
func TestSaveOfRemoved(t *testing.T) {
	s := open(t)
	img := load(t, s, simple(t, "a"), "docker.io/library/a:1")
	r, w := io.Pipe()
	saved := make(chan error, 1)
	go func() {
		err := save(t, s, w, []string{"a:1"})
		w.CloseWithError(err)
		saved <- err
	}()
	var archive bytes.Buffer
	if _, err := io.CopyN(&archive, r, 512); err != nil { // it has begun
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), "a:1", RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	settle(t, s)
	if _, err := io.Copy(&archive, r); err != nil {
		t.Error(err)
	}
	if err := <-saved; err != nil {
		t.Error(err)
	}
	empty(t, s)
	loaded, err := s.Load(t.Context(), bytes.NewReader(archive.Bytes()), nil, nil)
	if err != nil || len(loaded) != 1 || loaded[0].ID != img.ID {
		t.Errorf("loaded again: %+v, %v", loaded, err)
	}
}

func TestHistory(t *testing.T) {
	s := open(t)
	img := load(t, s, simple(t, "a"), "docker.io/library/a:1")
	steps, err := s.History(t.Context(), "a:1", nil)
	if err != nil || len(steps) != 2 || steps[0].CreatedBy != "step 1" || steps[0].ID != img.ID.String() || steps[1].ID != "<missing>" || steps[1].Size == 0 {
		t.Errorf("history = %+v, %v", steps, err)
	}
}

func TestSaveLoad(t *testing.T) {
	s := open(t)
	a := load(t, s, simple(t, "a"), "docker.io/library/a:1")
	load(t, s, simple(t, "b"), "docker.io/library/b:1")
	if _, err := s.Tag(t.Context(), "a:1", "a:2"); err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	if err := save(t, s, &saved, []string{"a", "b:1"}); err != nil {
		t.Fatal(err)
	}
	other := open(t)
	for _, archive := range [][]byte{saved.Bytes(), gz(t, saved.Bytes()), dockerOnly(t, saved.Bytes())} {
		loaded, err := other.Load(t.Context(), bytes.NewReader(archive), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		var refs []string
		for _, l := range loaded {
			refs = append(refs, l.Ref)
		}
		slices.Sort(refs)
		if !slices.Equal(refs, []string{"a:1", "a:2", "b:1"}) {
			t.Errorf("loaded %q", refs)
		}
		got, err := other.Get(t.Context(), "a:1")
		if err != nil || len(got.Layers) != len(a.Layers) {
			t.Errorf("a:1 = %+v, %v", got, err)
		}
		if _, err := other.Prune(t.Context(), PruneOptions{All: true}); err != nil {
			t.Fatal(err)
		}
		empty(t, other)
	}
	if err := save(t, s, &saved, []string{"nothing"}); !errdefs.IsNotFound(err) {
		t.Errorf("Save of nothing: %v", err)
	}
}

// dockerOnly takes the OCI parts out of an archive.
func dockerOnly(t *testing.T, archive []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	tr, tw := tar.NewReader(bytes.NewReader(archive)), tar.NewWriter(&out)
	for {
		h, err := tr.Next()
		if err != nil {
			break
		}
		if h.Name == "oci-layout" || h.Name == "index.json" {
			continue
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(tw, tr); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestImport(t *testing.T) {
	s := open(t)
	rootfs := layer(t, entry{name: "bin/", kind: tar.TypeDir}, entry{name: "bin/x", body: "x"})
	img, err := s.Import(t.Context(), bytes.NewReader(gz(t, rootfs)), ImportOptions{Ref: "imported", Message: "from a tar"})
	if err != nil {
		t.Fatal(err)
	}
	if img.RepoTags[0] != "imported:latest" || img.Spec.History[0].Comment != "from a tar" {
		t.Errorf("imported = %+v", img)
	}
	r, err := s.Prepare(t.Context(), "c", "imported", PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, mounted(t, r)+"/bin/x"); got != "x" {
		t.Errorf("bin/x = %q", got)
	}
}

func FuzzRecord(f *testing.F) {
	d := digest.FromString("x")
	f.Add(formatRecord(Rootfs{Image: d, Manifest: d, Chain: d}))
	f.Add(formatRecord(Rootfs{Image: d, Manifest: d, Volatile: true}))
	f.Add("1 - - - true")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRecord("/dir", "key", text)
		if err != nil {
			return
		}
		again, err := parseRecord("/dir", "key", formatRecord(r))
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%q: %+v, again %+v, %v", text, r, again, err)
		}
	})
}

func FuzzArchiveIndex(f *testing.F) {
	f.Add(layer(f, entry{name: "oci-layout", body: "{}"}, entry{name: "index.json", body: "{}"}))
	f.Fuzz(func(t *testing.T, body []byte) {
		if index, err := archiveIndex(bytes.NewReader(body)); err == nil && len(index) > len(body) {
			t.Errorf("%d bytes of %d", len(index), len(body))
		}
	})
}

func TestNewerFormatIsRefused(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := reopen(t, root)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, found := range []string{"2", "odd"} {
		if err := os.Remove(root + "/format"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(found, root+"/format"); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Options{Root: root}); err == nil || !strings.Contains(err.Error(), "update Berth") {
			t.Errorf("format %s: %v", found, err)
		}
	}
}

// TestAttestations loads, pushes and pulls what buildx makes: an index with an
// image and with statements about it, whose manifest is an image's or an
// artifact's, without a configuration.
func TestAttestations(t *testing.T) {
	t.Run("image", func(t *testing.T) {
		testAttestations(t, func(img *testImage, statement digest.Digest) ocispec.Descriptor {
			return img.addJSON(t, ocispec.MediaTypeImageConfig, ocispec.Image{
				Platform: ocispec.Platform{OS: "unknown", Architecture: "unknown"},
				RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{statement}},
			})
		})
	})
	t.Run("artifact", func(t *testing.T) {
		testAttestations(t, func(img *testImage, _ digest.Digest) ocispec.Descriptor {
			return img.addJSON(t, ocispec.MediaTypeEmptyJSON, struct{}{})
		})
	})
}

func testAttestations(t *testing.T, addConfig func(*testImage, digest.Digest) ocispec.Descriptor) {
	s := open(t)
	img := simple(t, "x")
	statement := img.add("application/vnd.in-toto+json", []byte(`{"predicateType":"x"}`))
	config := addConfig(img, statement.Digest)
	attestation := img.addJSON(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{statement},
	})
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	attestation.Annotations = map[string]string{attestationAnnotation: "attestation-manifest"}
	img.desc = img.addJSON(t, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{attestation, img.desc},
	})
	reg := startRegistry(t, "")
	ref := reg.addr + "/attested:1"
	got := load(t, s, img, ref)
	if len(got.Layers) != 2 || !got.Manifests[0].Attestation || !got.Manifests[0].Available {
		t.Errorf("loaded %+v", got)
	}
	if _, err := s.Push(t.Context(), ref, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	other := open(t)
	pulled, err := other.Pull(t.Context(), ref, PullOptions{})
	if err != nil || pulled[0].ID != got.ID || pulled[0].Manifests[0].Available {
		t.Fatalf("pulled %+v, %v", pulled, err)
	}
	// What is here of it can be saved and loaded elsewhere.
	var saved bytes.Buffer
	if err := save(t, other, &saved, []string{ref}); err != nil {
		t.Fatal(err)
	}
	third := open(t)
	if _, err := third.Load(t.Context(), &saved, nil, nil); err != nil {
		t.Fatal(err)
	}
	if again, err := third.Get(t.Context(), ref); err != nil || len(again.Layers) != 2 {
		t.Errorf("loaded again: %+v, %v", again, err)
	}
	if err := save(t, other, &saved, []string{ref}, ocispec.Platform{OS: "linux", Architecture: "s390x"}); !errdefs.IsNotFound(err) {
		t.Errorf("save of a platform that is not here: %v", err)
	}
}

// TestPruneNames: of the names of an image those stay that containers know it by, and
// at least one of an image that is used at all.
func TestPruneNames(t *testing.T) {
	for _, tc := range []struct {
		users string // what a container calls its image; "ID" is its ID, "" is no container
		want  []string
	}{
		{"", nil},
		{"b", []string{"b:latest"}},
		{"docker.io/library/a:latest", []string{"a:latest"}},
		{"ID", []string{"c:1"}},
		{"gone:1", []string{"c:1"}},
		{"c:1@ID", []string{"c:1"}},
	} {
		s := open(t)
		img := load(t, s, simple(t, "a"), "docker.io/library/a:latest")
		for _, name := range []string{"b", "c:1"} {
			if _, err := s.Tag(t.Context(), "a", name); err != nil {
				t.Fatal(err)
			}
		}
		var opts PruneOptions
		opts.All = true
		if tc.users != "" {
			opts.Users = map[digest.Digest][]string{img.ID: {strings.Replace(tc.users, "ID", img.ID.String(), 1)}}
		}
		pruned, err := s.Prune(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		left, err := s.List(t.Context(), ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, l := range left {
			names = append(names, l.RepoTags...)
		}
		whole := 0
		if tc.want == nil {
			whole = 1
		}
		if !slices.Equal(names, tc.want) || len(pruned.Deleted) != 3-len(tc.want)+whole {
			t.Errorf("used by %q: left %q, want %q; %+v", tc.users, names, tc.want, pruned)
		}
	}
}

// FuzzImport: no archive panics, and what becomes an image can be used.
func FuzzImport(f *testing.F) {
	plain := layer(f, entry{name: "d", kind: tar.TypeDir}, entry{name: "d/f", body: "x"})
	f.Add(plain)
	f.Add(gz(f, plain))
	f.Add([]byte("BZh9"))
	s := open(f)
	f.Fuzz(func(t *testing.T, archive []byte) {
		img, err := s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
		if err != nil {
			return
		}
		if _, err := s.Prepare(t.Context(), "fuzz", img.ID.String(), PrepareOptions{}); err != nil {
			t.Error(err)
		}
		if err := s.RemoveRootfs(t.Context(), "fuzz"); err != nil {
			t.Error(err)
		}
		if _, err := s.Remove(t.Context(), img.ID.String(), RemoveOptions{}); err != nil {
			t.Error(err)
		}
	})
}
