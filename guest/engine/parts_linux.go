package engine

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container"
	"github.com/berthvm/berth/guest/container/cgroup"
	"github.com/berthvm/berth/guest/image"
	"github.com/berthvm/berth/guest/keeper"
	"github.com/berthvm/berth/guest/network"
)

// Runtime makes containers' processes; Native is guest/container.
type Runtime interface {
	Create(ctx context.Context, cfg container.Config) (Task, error)
	Load(stateDir, id string) (Task, error)
}

// Task is a container's processes, as *container.Container has them.
type Task interface {
	PID() int
	Start(ctx context.Context) error
	Signal(sig syscall.Signal) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Update(r *specs.LinuxResources) error
	Stats() (cgroup.Stats, error)
	OOMKills() (uint64, error)
	WatchOOM(ctx context.Context, f func(kills uint64)) error
	PIDs() ([]int, error)
	Exec(ctx context.Context, cfg container.ExecConfig) (Process, error)
	Delete(ctx context.Context) error
	Close() error
}

// Process is one process started by an exec.
type Process interface {
	PID() int
	Signal(sig syscall.Signal) error
	Close() error
}

// Images is what the engine needs of the image store; Store adapts
// *image.Store.
type Images interface {
	GetPlatform(ctx context.Context, refOrID string, platform *ocispec.Platform) (image.Image, error)
	// Prepare makes the container's root file system, Mount mounts it.
	Prepare(ctx context.Context, id, ref string, platform *ocispec.Platform, volatile bool) error
	Mount(ctx context.Context, id, target string) error
	Unmount(target string) error
	RootfsKeys() []string
	RemoveRootfs(ctx context.Context, id string) error
	Usage(ctx context.Context, id string) (image.Usage, error)
	Changes(ctx context.Context, id string) ([]image.Change, error)
}

// Networks is what the engine needs of *network.Manager.
type Networks interface {
	Get(nameOrID string) (network.Network, error)
	NewNS(ctx context.Context, id string) (path string, err error)
	Attach(ctx context.Context, req network.AttachRequest) (network.Endpoint, error)
	Detach(ctx context.Context, containerID, network string) error
	Release(ctx context.Context, containerID string) error
	Rename(ctx context.Context, containerID, name string) error
	Endpoints(containerID string) []network.Endpoint
	Address(containerID string) (addr netip.Addr, ok bool)
	Ways(containerID string) network.Ways
	Publish(ctx context.Context, containerID string, ports []network.Port) error
	Ports(containerID string) []network.Port
	Stats(containerID string) ([]network.Stats, error)
	Restore(ctx context.Context, keep func(containerID string) bool) error
}

// Keeper outlives the engine; *keeper.Client is PID 1's.
type Keeper interface {
	Put(key string, record []byte, files ...*os.File) error
	Get(key string) (keeper.Entry, error)
	List() ([]keeper.Entry, error)
	Delete(key string) error
	Adopt(key string, pid int, pidfd *os.File) error
	Exits() <-chan keeper.Exit
}

// Native is the Runtime of guest/container. Pool may be nil.
type Native struct{ Pool *container.Pool }

// Create implements Runtime.
func (n Native) Create(ctx context.Context, cfg container.Config) (Task, error) {
	cfg.Pool = n.Pool
	c, err := container.Create(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return nativeTask{c}, nil
}

// Load implements Runtime.
func (Native) Load(stateDir, id string) (Task, error) {
	c, err := container.Load(stateDir, id)
	if err != nil {
		return nil, err
	}
	return nativeTask{c}, nil
}

type nativeTask struct{ *container.Container }

func (t nativeTask) Exec(ctx context.Context, cfg container.ExecConfig) (Process, error) {
	p, err := t.Container.Exec(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Store is the Images of guest/image.
type Store struct {
	*image.Store
	// Builtin is closed when the built-in images are there. An image that is not
	// found before is looked for again then.
	Builtin <-chan struct{}
}

// GetPlatform implements Images.
func (s Store) GetPlatform(ctx context.Context, ref string, platform *ocispec.Platform) (image.Image, error) {
	img, err := s.Store.GetPlatform(ctx, ref, platform)
	if s.Builtin == nil || !errdefs.IsNotFound(err) {
		return img, err
	}
	select {
	case <-s.Builtin:
		return s.Store.GetPlatform(ctx, ref, platform)
	case <-ctx.Done():
		return img, ctx.Err()
	}
}

// Prepare implements Images.
func (s Store) Prepare(ctx context.Context, id, ref string, platform *ocispec.Platform, volatile bool) error {
	_, err := s.Store.Prepare(ctx, id, ref, image.PrepareOptions{Platform: platform, Volatile: volatile})
	return err
}

// Mount implements Images.
func (s Store) Mount(ctx context.Context, id, target string) error {
	r, err := s.Rootfs(ctx, id)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	return r.Mount(target)
}

// Unmount implements Images. What is not mounted is no error.
func (Store) Unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == unix.EINVAL || err == unix.ENOENT {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}
