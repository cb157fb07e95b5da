// Package image is the engine's image store: it pulls and pushes images, loads,
// saves, imports and commits them, and gives containers their root filesystems.
//
// It drives containerd's libraries in this process: the content store (blobs),
// the metadata database (names, references, garbage collection) and the overlay
// snapshotter (unpacked layers), all in one namespace. Nothing else may open the
// same root directory while a Store is open.
//
// A container's writable layer is not one of containerd's snapshots: it is a
// directory of this package (see Store.Prepare), so that creating and removing a
// container writes to no database. What the layer stands on is kept from the
// garbage collector by one lease per image in use.
//
// A builder's snapshot and the layer of the image made of it share one directory, see
// guest/image/trees and Parts.
//
// An image's identity is the digest of what its name points at: an index, or a
// manifest. Errors are marked with github.com/containerd/errdefs: ErrNotFound,
// ErrConflict, ErrInvalidArgument, ErrUnauthenticated, ErrPermissionDenied,
// ErrUnavailable; their text is what docker prints.
//
// Layers, manifests, archives and registries are hostile: their sizes, names,
// digests and media types are checked, and unpacking never leaves the snapshot.
//
// The methods of Store, all safe for concurrent use:
//
//	Open(ctx, Options) (*Store, error); Close() error
//	Pull(ctx, ref string, PullOptions) ([]Image, error)
//	Push(ctx, ref string, PushOptions) ([]Pushed, error)
//	List(ctx, ListOptions) ([]Image, error)
//	Get(ctx, refOrID string) (Image, error); GetPlatform(ctx, refOrID, *ocispec.Platform) (Image, error)
//	Attestations(ctx, refOrID string, AttestationOptions) ([]Statement, error)
//	History(ctx, refOrID string, *ocispec.Platform) ([]History, error); Distribution(ctx, ref string, Auth) (ocispec.Descriptor, []ocispec.Platform, error)
//	Tag(ctx, refOrID, newRef string) (Image, error)
//	Remove(ctx, refOrID string, RemoveOptions) ([]Deleted, error); RemovePlatforms(ctx, refOrID string, []ocispec.Platform, RemoveOptions) ([]Deleted, error)
//	Prune(ctx, PruneOptions) (Pruned, error)
//	DiskUsage(ctx) (DiskUsage, error)
//	Load(ctx, io.Reader, []ocispec.Platform, ProgressFunc) ([]Loaded, error); Save(ctx, refs []string, []ocispec.Platform) (func(ctx, io.Writer) error, []digest.Digest, error)
//	Import(ctx, io.Reader, ImportOptions) (Image, error)
//	LoadBuiltin(ctx, dir string) error
//	Prepare(ctx, key, refOrID string, PrepareOptions) (Rootfs, error)
//	Rootfs(ctx, key string) (Rootfs, error); RemoveRootfs(ctx, key string) error; RootfsKeys() []string
//	Usage(ctx, key string) (Usage, error); Changes(ctx, key string) ([]Change, error)
//	Commit(ctx, key string, CommitOptions) (Image, error)
//
// and Rootfs.Mount(target string) error mounts a container's root.
package image
