// Package images opens the guest's boot artifacts: the kernel, the initramfs and
// the root file system that images/build makes, with the manifest that binds
// them together. Container images are another matter, see guest/image.
//
// Open verifies every file's size and SHA-256 before anything boots, so a
// download that broke off or a disk that lost data shows as one clear error and
// not as a guest that hangs.
package images

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ManifestName is the manifest's file name in an image's directory.
const ManifestName = "manifest.json"

// Format is the version of the manifest that this package reads and writes.
const Format = 1

// Errors a caller may match with errors.Is. The text that wraps one says what
// to do.
var (
	// ErrMissing says that there is no image, or that a file of it is not there.
	ErrMissing = errors.New("guest image is missing")
	// ErrCorrupt says that a file is not what the manifest says.
	ErrCorrupt = errors.New("guest image is corrupt")
	// ErrVersion says that the image was made for another version of Berth.
	ErrVersion = errors.New("guest image has another version")
)

const remedy = `run "make build" to make it anew, or reinstall Berth`

// Manifest describes an image. It is a value; the builder writes it as JSON.
type Manifest struct {
	Format   int       `json:"format"`
	Version  string    `json:"version"`  // of the guest's programs
	Protocol int       `json:"protocol"` // guest/wire's
	Arch     string    `json:"arch"`     // as GOARCH spells it
	Kernel   string    `json:"kernel"`   // release: "6.12.117+deb12-amd64"
	Cmdline  []string  `json:"cmdline"`  // kernel parameters every driver passes
	Files    []File    `json:"files"`
	Packages []Package `json:"packages"` // what it was made from
}

// Role says what a File is for.
type Role string

// The roles. An image has one file of each, but for RoleBzImage, which amd64's has.
const (
	RoleKernel  Role = "kernel"  // amd64: a plain ELF vmlinux, booted by PVH; arm64: a raw Image
	RoleBzImage Role = "bzimage" // the same kernel as distributions ship it, for Virtualization.framework
	RoleInitrd  Role = "initrd"  // an uncompressed cpio archive
	RoleRoot    Role = "root"    // an erofs image, for the disk with RootSerial
)

// The guest finds its disks by these serials.
const (
	RootSerial = "berth-root"
	DataSerial = "berth-data"
)

// File is one file of an image.
type File struct {
	Name   string `json:"name"` // in the image's directory
	Role   Role   `json:"role"`
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// Package is a distribution's package whose files an image holds.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"` // of the .deb
}

// Image is an image whose files have been verified. It is immutable.
type Image struct {
	Manifest Manifest
	Dir      string   // absolute
	Kernel   string   // absolute paths
	BzImage  string   // empty where there is none
	Initrd   string   //
	Root     string   //
	Cmdline  []string // of the manifest
}

// Open reads the manifest in dir and verifies all files: it hashes, at once, those
// that have changed since it last did. The error wraps ErrMissing, ErrCorrupt or
// ErrVersion.
func Open(dir string) (*Image, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: nothing in %s: %s", ErrMissing, dir, remedy)
	} else if err != nil {
		return nil, fmt.Errorf("cannot read the guest image: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%w: %s in %s: %v: %s", ErrCorrupt, ManifestName, dir, err, remedy)
	}
	if m.Format != Format {
		return nil, fmt.Errorf("%w: %s has format %d, this program reads %d: %s", ErrVersion, dir, m.Format, Format, remedy)
	}
	image := &Image{Manifest: m, Dir: dir, Cmdline: m.Cmdline}
	for _, want := range []struct {
		role Role
		path *string
	}{{RoleKernel, &image.Kernel}, {RoleBzImage, &image.BzImage}, {RoleInitrd, &image.Initrd}, {RoleRoot, &image.Root}} {
		name, err := m.file(want.role)
		if want.role == RoleBzImage && errors.Is(err, errNoFile) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s in %s: %v: %s", ErrCorrupt, ManifestName, dir, err, remedy)
		}
		*want.path = filepath.Join(dir, name)
	}
	if err := verify(dir, m.Files, readVerified(dir, data)); err != nil {
		return nil, err
	}
	return image, nil
}

// errNoFile says that the manifest has no file with a role.
var errNoFile = errors.New("no file")

// file returns the name of the one file with the role.
func (m Manifest) file(role Role) (string, error) {
	name := ""
	for _, f := range m.Files {
		switch {
		case f.Role != role:
		case name != "":
			return "", fmt.Errorf("two files for %s", role)
		case f.Name == "" || f.Name != filepath.Base(f.Name) || f.Name == "..":
			return "", fmt.Errorf("invalid file name %q", f.Name)
		default:
			name = f.Name
		}
	}
	if name == "" {
		return "", fmt.Errorf("%w for %s", errNoFile, role)
	}
	return name, nil
}

// verify hashes the files that known does not vouch for, each in its own
// goroutine, and remembers them.
func verify(dir string, files []File, known verified) error {
	errs := make([]error, len(files))
	now := verified{Manifest: known.Manifest, Files: map[string]identity{}}
	var mu sync.Mutex // guards now.Files
	var group sync.WaitGroup
	for i, f := range files {
		group.Go(func() {
			info, err := f.verify(dir, known)
			errs[i] = err
			if err != nil || time.Since(info.ModTime()) < settled {
				return
			}
			if id, ok := identify(info); ok && time.Since(time.Unix(0, id.Changed)) >= settled {
				mu.Lock()
				now.Files[f.Name] = id
				mu.Unlock()
			}
		})
	}
	group.Wait()
	for _, err := range errs { // the first, so that the message is one line
		if err != nil {
			return err
		}
	}
	if len(now.Files) > 0 {
		now.write(dir)
	}
	return nil
}

// verify checks one file and returns what it was, before it was read.
func (f File) verify(dir string, known verified) (os.FileInfo, error) {
	if f.Name != filepath.Base(f.Name) {
		return nil, fmt.Errorf("%w: invalid file name %q: %s", ErrCorrupt, f.Name, remedy)
	}
	path := filepath.Join(dir, f.Name)
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: no file %s: %s", ErrMissing, path, remedy)
	} else if err != nil {
		return nil, fmt.Errorf("cannot read the guest image: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read the guest image: %w", err)
	}
	if info.Size() != f.Size {
		return nil, fmt.Errorf("%w: %s has %d bytes, want %d: %s", ErrCorrupt, path, info.Size(), f.Size, remedy)
	}
	if known.unchanged(f.Name, info) {
		return info, nil
	}
	hash := sha256.New()
	if _, err := io.CopyBuffer(onlyWriter{hash}, onlyReader{file}, make([]byte, 256<<10)); err != nil {
		return nil, fmt.Errorf("cannot read the guest image: %w", err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != f.SHA256 {
		return nil, fmt.Errorf("%w: %s has the SHA-256 %s, want %s: %s", ErrCorrupt, path, got, f.SHA256, remedy)
	}
	return info, nil
}

// onlyReader and onlyWriter hide ReadFrom and WriteTo, so that io.CopyBuffer
// uses its large buffer.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }
