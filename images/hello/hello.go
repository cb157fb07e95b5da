// Package hello makes the image that is built into the guest: busybox under all
// its names, with a greeting as the default command. It runs without a network.
package hello

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Name is the image's name in the store.
const Name = "docker.io/library/hello:latest"

const greeting = `
Hello from Berth!

This was printed by a process in a container: it has its own root filesystem,
process table, network and limits, and it ran in a small Linux virtual machine
on your computer.

Have a look around inside:      berth run --rm -it hello sh
See what it may use:            berth run --rm --memory 64m hello cat /sys/fs/cgroup/memory.max
Every busybox command is there: berth run --rm hello busybox

`

// Write writes the image as an OCI archive for arch, a GOARCH, from the busybox
// program at busyboxPath, which must be static. The same program gives the same
// bytes. index.json is near the archive's start, so that its identity can be read
// without reading all.
func Write(w io.Writer, busyboxPath, arch string) error {
	program, err := os.ReadFile(busyboxPath)
	if err != nil {
		return fmt.Errorf("cannot make the hello image: %w", err)
	}
	if err := write(w, program, arch); err != nil {
		return fmt.Errorf("cannot make the hello image: %w", err)
	}
	return nil
}

func write(w io.Writer, program []byte, arch string) error {
	names, err := applets(program)
	if err != nil {
		return err
	}
	layer, err := rootfs(program, names)
	if err != nil {
		return err
	}
	blobs := map[digest.Digest][]byte{}
	add := func(mediaType string, body []byte) ocispec.Descriptor {
		d := digest.FromBytes(body)
		blobs[d] = body
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
	}
	// Not compressed: the guest's root image is what gets compressed.
	layerDesc := add(ocispec.MediaTypeImageLayer, layer)
	config, err := json.Marshal(imageConfig(arch, layerDesc.Digest))
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    add(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{layerDesc},
	})
	if err != nil {
		return err
	}
	manifestDesc := add(ocispec.MediaTypeImageManifest, manifest)
	manifestDesc.Annotations = map[string]string{
		"io.containerd.image.name": Name,
		ocispec.AnnotationRefName:  "latest",
	}
	manifestDesc.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifestDesc},
	})
	if err != nil {
		return err
	}
	return writeArchive(w, index, blobs)
}

func imageConfig(arch string, layer digest.Digest) ocispec.Image {
	epoch := time.Unix(0, 0).UTC()
	return ocispec.Image{
		Created:  &epoch,
		Author:   "Berth",
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{"cat", "/etc/hello"},
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer}},
		History: []ocispec.History{{Created: &epoch, CreatedBy: "busybox under all its names, and a greeting"}},
	}
}

func writeArchive(w io.Writer, index []byte, blobs map[digest.Digest][]byte) error {
	tw := tar.NewWriter(w)
	layout := []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)
	files := []file{{name: ocispec.ImageLayoutFile, body: layout}, {name: ocispec.ImageIndexFile, body: index}}
	digests := make([]digest.Digest, 0, len(blobs))
	for d := range blobs {
		digests = append(digests, d)
	}
	slices.Sort(digests)
	for _, d := range digests {
		files = append(files, file{name: "blobs/sha256/" + d.Encoded(), body: blobs[d]})
	}
	for _, f := range files {
		if err := f.write(tw); err != nil {
			return err
		}
	}
	return tw.Close()
}

// file is one entry of a tar; the mode of a regular file is 0644 when it is zero.
type file struct {
	name string
	kind byte
	mode int64
	link string
	body []byte
}

func (f file) write(tw *tar.Writer) error {
	h := &tar.Header{
		Typeflag: f.kind,
		Name:     f.name,
		Mode:     f.mode,
		Linkname: f.link,
		Size:     int64(len(f.body)),
		ModTime:  time.Unix(0, 0),
		Format:   tar.FormatUSTAR,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(f.body)
	return err
}

func rootfs(program []byte, names []string) ([]byte, error) {
	var files []file
	for _, d := range []string{"bin", "dev", "etc", "home", "mnt", "proc", "run", "sys", "usr", "usr/bin", "var", "var/tmp"} {
		files = append(files, file{name: d + "/", kind: tar.TypeDir, mode: 0o755})
	}
	files = append(files,
		file{name: "root/", kind: tar.TypeDir, mode: 0o700},
		file{name: "tmp/", kind: tar.TypeDir, mode: 0o1777},
		file{name: "etc/hello", body: []byte(greeting)},
		file{name: "etc/passwd", body: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")},
		file{name: "etc/group", body: []byte("root:x:0:\nnogroup:x:65534:\n")},
		file{name: "bin/busybox", mode: 0o755, body: program},
		file{name: "usr/bin/env", kind: tar.TypeLink, mode: 0o755, link: "bin/busybox"},
	)
	for _, name := range names {
		// Hard links cost the store a directory entry each and no inode.
		files = append(files, file{name: "bin/" + name, kind: tar.TypeLink, mode: 0o755, link: "bin/busybox"})
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		if err := f.write(tw); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// applets reads the names busybox goes by from the program itself, which may be
// for another architecture: a table of strings, sorted, that begins with the two
// names of test.
func applets(program []byte) ([]string, error) {
	for rest := program; ; {
		start := bytes.Index(rest, []byte("[\x00[[\x00"))
		if start < 0 {
			return nil, fmt.Errorf("no table of applets in this busybox (sha256 %x)", sha256.Sum256(program))
		}
		rest = rest[start:]
		if names := table(rest); len(names) > 20 && slices.Contains(names, "sh") {
			return names, nil
		}
		rest = rest[1:]
	}
}

// table reads sorted, zero-terminated names until something else comes.
func table(data []byte) []string {
	var names []string
	for {
		name, err := cstring(data)
		if err != nil || len(names) > 0 && name <= names[len(names)-1] {
			return slices.DeleteFunc(names, func(n string) bool { return n == "busybox" })
		}
		names = append(names, name)
		data = data[len(name)+1:]
	}
}

func cstring(data []byte) (string, error) {
	for i, c := range data {
		switch {
		case c == 0 && i > 0:
			return string(data[:i]), nil
		case i < 32 && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '[' || c == '_' || c == '-' || c == '.'):
		default:
			return "", errors.New("not a name")
		}
	}
	return "", io.ErrUnexpectedEOF
}
