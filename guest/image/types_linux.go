package image

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/image/registry"
	"github.com/berthvm/berth/guest/image/rootfs"
)

// Options configure Open.
type Options struct {
	// Root is the store's directory, on a filesystem that can hold an overlay's
	// upper layer. It is made when it is missing.
	Root string
	// Log takes what happens outside a call (garbage collection). It may be nil.
	Log *slog.Logger
	// Dial connects to registries, by host name; nil means a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Platform is the platform of pulls that name none; the zero value means
	// this machine's.
	Platform ocispec.Platform
	// InsecureRegistries are hosts ("registry.lan:5000") and networks
	// ("10.0.0.0/8") that are tried by HTTPS without verification, then by plain
	// HTTP. localhost and 127.0.0.0/8 always are.
	InsecureRegistries []string
	// Roots verifies registries; nil means the system's roots.
	Roots *x509.CertPool
	// Proxy chooses the proxy of a request; nil means none.
	Proxy func(*http.Request) (*url.URL, error)
	// StallTimeout ends a transfer in which nothing moved for so long; zero
	// means 30 s.
	StallTimeout time.Duration
	// Retries is how often a request that failed for a passing reason is
	// repeated; zero means 4, negative never.
	Retries int
	// UserAgent is what registries are told asks: "berth/1.0".
	UserAgent string
}

// Auth is how a registry is told who asks: what docker's X-Registry-Auth holds.
type Auth = registry.Auth

// Progress is one line of progress, as docker prints it. ID is empty for lines
// that belong to the whole operation.
type Progress struct {
	ID      string // a layer's short digest, or the tag
	Status  string
	Current int64 // bytes
	Total   int64 // bytes; zero when unknown
}

// ProgressFunc takes progress. Calls do not overlap; it must not block for long.
type ProgressFunc func(Progress)

// Image is one image: one target, with all the names that point at it. It is a
// value: callers must not change what its slices, maps and pointers hold.
type Image struct {
	ID           digest.Digest // of the target: an index or a manifest
	RepoTags     []string      // "busybox:latest", as docker shows them
	RepoDigests  []string      // "busybox@sha256:..."
	Target       ocispec.Descriptor
	Manifest     ocispec.Descriptor        // of the chosen platform; what runs
	Config       ocispec.Descriptor        // the blob Spec was read from
	Spec         dockerspec.DockerOCIImage // zero when no platform's content is here
	Layers       []ocispec.Descriptor      // of Manifest, bottom first
	Manifests    []PlatformManifest        // of Target, when it is an index
	Created      time.Time                 // by the image's own word; zero when unknown
	TaggedAt     time.Time                 // when a name last moved here
	ContentSize  int64                     // bytes of blobs in the store
	UnpackedSize int64                     // bytes of unpacked layers
	Parent       digest.Digest             // set by Commit
}

// Size is all that the image takes on the disk, in bytes, shared layers included.
func (i Image) Size() int64 { return i.ContentSize + i.UnpackedSize }

// PlatformManifest is one entry of an index.
type PlatformManifest struct {
	Descriptor  ocispec.Descriptor
	Available   bool // all of its content is in the store
	Attestation bool // not an image, but statements about one
}

// PullOptions are the options of Store.Pull.
type PullOptions struct {
	Platform *ocispec.Platform // nil: the store's
	All      bool              // every tag of the repository
	Auth     Auth
	Progress ProgressFunc // may be nil
}

// PushOptions are the options of Store.Push.
type PushOptions struct {
	Platform *ocispec.Platform // push only this manifest of an index; nil: all that is here
	All      bool              // every tag of the repository
	Auth     Auth
	Progress ProgressFunc // may be nil
}

// Pushed is what a push made, one for each tag.
type Pushed struct {
	Tag    string
	Digest digest.Digest
	Size   int64 // of the manifest, in bytes
}

// ListOptions select images; the zero value selects all. The strings are as
// docker's filters take them.
type ListOptions struct {
	Dangling  *bool
	Reference []string // patterns, any may match
	Labels    []string // "key" or "key=value", all must match
	NotLabels []string
	Before    []string // images made before each of these
	Since     []string
	Until     []time.Time // images made before each of these times
}

// Deleted is one line of what a removal did: Untagged or Deleted is set.
type Deleted struct {
	Untagged string
	Deleted  digest.Digest
	ID       digest.Digest // of the image that lost its name
}

// User is a container that uses an image.
type User struct {
	ContainerID string
	Manifest    digest.Digest // of the platform it was made from; "" when unknown
	Running     bool
}

// RemoveOptions are the options of Store.Remove.
type RemoveOptions struct {
	Force bool
	// Users tells who uses an image; nil means nobody does.
	Users func(id digest.Digest) []User
}

// PruneOptions are the options of Store.Prune.
type PruneOptions struct {
	All  bool        // also images with names
	List ListOptions // Labels, NotLabels and Until
	// Users are the containers' names for the images that they use.
	Users map[digest.Digest][]string
}

// Pruned is what a prune did.
type Pruned struct {
	Deleted   []Deleted
	Reclaimed int64 // bytes
}

// DiskUsage is what the store takes on the disk, in bytes. Parts of its content and
// its layers are not of images but of a builder's cache.
type DiskUsage struct {
	Content    int64 // blobs
	Layers     int64 // unpacked layers, those that share their files once
	Images     int64 // what images have of both
	Containers int64 // writable layers
}

// History is one step of how an image was made, newest first.
type History struct {
	ID        string // the image's ID for the newest step, else "<missing>"
	Created   time.Time
	CreatedBy string
	Comment   string
	Size      int64 // bytes the step added, unpacked
	Tags      []string
}

// ImportOptions are the options of Store.Import.
type ImportOptions struct {
	Ref      string // name for the image; empty for none
	Platform *ocispec.Platform
	Config   dockerspec.DockerOCIImageConfig
	Message  string // the history's comment
}

// CommitOptions are the options of Store.Commit.
type CommitOptions struct {
	Ref     string // name for the image; empty for none
	Author  string
	Comment string
	Config  dockerspec.DockerOCIImageConfig // the whole new config
}

// PrepareOptions are the options of Store.Prepare.
type PrepareOptions struct {
	Platform *ocispec.Platform // nil: the store's
	// Volatile gives up what the layer holds when the machine crashes, for
	// containers that a crash removes anyway: their unmount flushes nothing.
	Volatile bool
}

// Usage is a container's use of the disk, in bytes.
type Usage struct {
	RW     int64 // the writable layer
	RootFS int64 // the writable layer and the image's layers
}

// Change is one path that differs from the image; the path is absolute.
type Change struct {
	Path string
	Kind ChangeKind
}

// ChangeKind says how a path of a container differs from its image. The values
// are the Docker API's.
type ChangeKind = rootfs.Kind

// Rootfs is a container's root filesystem; its Mount method mounts it.
type Rootfs = rootfs.Rootfs

// Loaded is one image of an archive that was loaded.
type Loaded struct {
	Ref string // as docker shows it; empty when the archive has no name for it
	ID  digest.Digest
	// Broken is why a layer cannot be unpacked: no container can be made from it.
	Broken error
}
