package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// keyAnnotation holds, in the index, the key of an image's recipe.
const keyAnnotation = "berth.testimages.key"

// layout is an OCI image layout in a folder.
type layout struct{ dir string }

// image is one of the layout's.
type image struct {
	layout   layout
	name     string
	desc     ocispec.Descriptor
	manifest ocispec.Manifest
}

func (l layout) blob(d digest.Digest) string {
	return filepath.Join(l.dir, "blobs", "sha256", d.Encoded())
}

func (l layout) index() (index ocispec.Index, err error) {
	index = ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	text, err := os.ReadFile(filepath.Join(l.dir, ocispec.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &index)
	}
	return index, err
}

// find returns the image that was made by the recipe with the key.
func (l layout) find(name, key string) (image, error) {
	index, err := l.index()
	if err != nil {
		return image{}, err
	}
	for _, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] != name || d.Annotations[keyAnnotation] != key {
			continue
		}
		found := image{layout: l, name: name, desc: d}
		text, err := os.ReadFile(l.blob(d.Digest))
		if err != nil {
			return image{}, err
		}
		return found, json.Unmarshal(text, &found.manifest)
	}
	return image{}, fs.ErrNotExist
}

// add makes an image of the layers of the one below, which may be none, and of a
// file that becomes its top layer.
func (l layout) add(r recipe, key string, below image, layer string) (image, error) {
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs", "sha256"), 0o755); err != nil {
		return image{}, err
	}
	top, err := l.take(layer)
	if err != nil {
		return image{}, err
	}
	layers := append(slices.Clone(below.manifest.Layers), top)
	now := time.Now().UTC().Truncate(time.Second)
	config := ocispec.Image{
		Created:  &now,
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   r.config,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	for _, d := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest) // nothing is compressed
		config.History = append(config.History, ocispec.History{Created: &now, CreatedBy: "testimages"})
	}
	made := image{layout: l, name: r.name, manifest: ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Layers:    layers,
	}}
	if made.manifest.Config, err = l.put(ocispec.MediaTypeImageConfig, config); err != nil {
		return image{}, err
	}
	if made.desc, err = l.put(ocispec.MediaTypeImageManifest, made.manifest); err != nil {
		return image{}, err
	}
	made.desc.Platform = &config.Platform
	made.desc.Annotations = map[string]string{ocispec.AnnotationRefName: r.name, keyAnnotation: key}
	return made, l.register(made.desc)
}

// take moves a layer's file among the blobs.
func (l layout) take(file string) (ocispec.Descriptor, error) {
	f, err := os.Open(file)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(h.Sum(nil)))
	err = errors.Join(f.Chmod(0o644), os.Rename(file, l.blob(d)))
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: n}, err
}

func (l layout) put(mediaType string, v any) (ocispec.Descriptor, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := digest.FromBytes(text)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(text))}, os.WriteFile(l.blob(d), text, 0o644)
}

// register puts an image into the index in the place of the one with its name, and
// drops the blobs that no image needs any more.
func (l layout) register(desc ocispec.Descriptor) error {
	index, err := l.index()
	if err != nil {
		return err
	}
	name := desc.Annotations[ocispec.AnnotationRefName]
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return d.Annotations[ocispec.AnnotationRefName] == name
	})
	index.Manifests = append(index.Manifests, desc)
	text, err := json.Marshal(index)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		text []byte
	}{
		{ocispec.ImageIndexFile, text},
		{ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)},
	} {
		fresh := filepath.Join(l.dir, f.name+".new")
		if err := os.WriteFile(fresh, f.text, 0o644); err != nil {
			return err
		}
		if err := os.Rename(fresh, filepath.Join(l.dir, f.name)); err != nil {
			return err
		}
	}
	return l.prune(index)
}

func (l layout) prune(index ocispec.Index) error {
	needed := map[string]bool{}
	for _, d := range index.Manifests {
		text, err := os.ReadFile(l.blob(d.Digest))
		if err != nil {
			return err
		}
		var m ocispec.Manifest
		if err := json.Unmarshal(text, &m); err != nil {
			return err
		}
		for _, d := range append(m.Layers, d, m.Config) {
			needed[l.blob(d.Digest)] = true
		}
	}
	blobs, err := filepath.Glob(filepath.Join(l.dir, "blobs", "sha256", "*"))
	for _, name := range blobs {
		if !needed[name] {
			err = errors.Join(err, os.Remove(name))
		}
	}
	return err
}

// archive writes the image as an OCI archive, which "docker load" takes.
func (i image) archive(file string) (err error) {
	desc := i.desc
	desc.Annotations = map[string]string{"io.containerd.image.name": "docker.io/library/" + i.name + ":latest", ocispec.AnnotationRefName: "latest"}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc},
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	tw := tar.NewWriter(f)
	for name, text := range map[string][]byte{
		ocispec.ImageLayoutFile: []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`),
		ocispec.ImageIndexFile:  index,
	} {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			return err
		}
		if _, err := tw.Write(text); err != nil {
			return err
		}
	}
	for _, d := range i.blobs() {
		if err := tw.WriteHeader(&tar.Header{Name: "blobs/sha256/" + d.Digest.Encoded(), Mode: 0o644, Size: d.Size}); err != nil {
			return err
		}
		if err := copyFile(tw, i.layout.blob(d.Digest)); err != nil {
			return err
		}
	}
	return tw.Close()
}

// blobs are the image's, the manifest last.
func (i image) blobs() []ocispec.Descriptor {
	return append(slices.Clone(i.manifest.Layers), i.manifest.Config, i.desc)
}

func copyFile(w io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// push uploads the image to a registry, each blob in one request, by the OCI
// distribution specification.
func (i image) push(ctx context.Context, registry string) error {
	base := "http://" + registry + "/v2/" + i.name
	for _, d := range i.blobs() {
		if d.Digest == i.desc.Digest {
			return i.upload(ctx, http.MethodPut, base+"/manifests/latest", d)
		}
		if status, err := ask(ctx, http.MethodHead, base+"/blobs/"+d.Digest.String(), nil); err == nil && status.StatusCode == http.StatusOK {
			continue
		}
		session, err := ask(ctx, http.MethodPost, base+"/blobs/uploads/", nil)
		if err != nil {
			return err
		}
		to, err := session.Location()
		if err != nil {
			return fmt.Errorf("POST: %s: %w", session.Status, err)
		}
		query := to.Query()
		query.Set("digest", d.Digest.String())
		to.RawQuery = query.Encode()
		if err := i.upload(ctx, http.MethodPut, to.String(), d); err != nil {
			return err
		}
	}
	return nil
}

func (i image) upload(ctx context.Context, method, url string, d ocispec.Descriptor) error {
	f, err := os.Open(i.layout.blob(d.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	req, err := http.NewRequestWithContext(ctx, method, url, f)
	if err != nil {
		return err
	}
	req.ContentLength = d.Size
	req.Header.Set("Content-Type", "application/octet-stream")
	if d.Digest == i.desc.Digest {
		req.Header.Set("Content-Type", d.MediaType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("%s %s: %s: %s", method, req.URL.Path, resp.Status, text)
	}
	return nil
}

func ask(ctx context.Context, method, url string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	return resp, resp.Body.Close()
}
