package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	apinet "github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/settings"
	"github.com/berthvm/berth/guest/ident"
)

// defaultStop is how long a stop waits before it kills, in seconds.
const defaultStop = 10

// CreateOptions are what Create makes a container of. Create takes over the
// structures.
type CreateOptions struct {
	Name       string
	Platform   *ocispec.Platform
	Config     *apicontainer.Config
	HostConfig *apicontainer.HostConfig
	Networking *apinet.NetworkingConfig
	// FlatReadOnly makes read-only binds so without the mounts below, as the API
	// before 1.44 had it.
	FlatReadOnly bool
}

// validName reports whether a container can be called so.
func validName(name string) bool { return ident.Name(name, 2, len(name)) }

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func conflict(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

// Create makes a container and returns its ID and warnings.
func (e *Engine) Create(ctx context.Context, o CreateOptions) (id string, warnings []string, err error) {
	if err := e.waitReady(ctx); err != nil {
		return "", nil, err
	}
	if o.Config == nil {
		return "", nil, invalid("config cannot be empty in order to create a container")
	}
	if o.HostConfig == nil {
		o.HostConfig = &apicontainer.HostConfig{}
	}
	id = record.NewID()
	defer e.Spans.Begin("create", id)()
	if o.Config.Image == "" {
		return "", nil, invalid("no image specified: name one")
	}
	host := settings.Host{CPUs: ncpu(), Init: e.opts.InitPath != ""}
	if warnings, err = settings.Check(o.Config, o.HostConfig, host); err != nil {
		return "", nil, err
	}
	img, err := e.opts.Images.GetPlatform(ctx, o.Config.Image, o.Platform)
	if err != nil {
		return "", nil, err
	}
	if w := foreign(img.Spec.Platform, o.Platform); w != "" {
		warnings = append(warnings, w)
	}
	settings.Merge(o.Config, &img.Spec.Config)
	if err := settings.Defaults(o.HostConfig); err != nil {
		return "", nil, err
	}
	if err := settings.CheckCommand(o.Config); err != nil {
		return "", nil, err
	}
	rec := &record.Record{ID: id, Created: time.Now().UTC(), ImageID: img.ID.String(), Platform: o.Platform,
		Config: o.Config, HostConfig: o.HostConfig}
	if img.Manifest.Digest != "" {
		rec.Manifest = &img.Manifest
		if rec.Manifest.Platform == nil {
			rec.Manifest.Platform = &img.Spec.Platform
		}
	}
	if rec.Config.Hostname == "" {
		rec.Config.Hostname = id[:12]
		if rec.HostConfig.NetworkMode.IsHost() {
			rec.Config.Hostname = e.opts.Hostname
		}
	}
	if err := e.resolveShared(ctx, rec.HostConfig); err != nil {
		return "", nil, err
	}
	if rec.Endpoints, err = e.wantedNetworks(o); err != nil {
		return "", nil, err
	}
	if len(rec.HostConfig.Links) > 0 && rec.HostConfig.NetworkMode.IsBridge() {
		warnings = append(warnings, "Links on the default bridge network are deprecated and will be removed in a future release. "+
			"Use a custom network instead.")
	}
	if err := e.resolveLinks(ctx, rec); err != nil {
		return "", nil, err
	}
	return id, warnings, e.create(ctx, rec, o)
}

// create makes what lies on the disk of a container, and puts it in the tables.
func (e *Engine) create(ctx context.Context, rec *record.Record, o CreateOptions) (err error) {
	c, err := e.reserve(rec, o.Name)
	if err != nil {
		return err
	}
	var undo []func()
	defer func() {
		if err != nil {
			for _, f := range slices.Backward(undo) {
				f()
			}
		}
	}()
	undo = append(undo, func() { e.unreserve(c) })
	// The directory goes first: after a crash in between, Restore finds it and
	// removes what there is of the container.
	if err := e.store.Create(rec.ID); err != nil {
		return err
	}
	undo = append(undo, func() { _ = e.store.Remove(rec.ID) })
	if rec.Mounts, err = e.resolveMounts(ctx, rec, o.FlatReadOnly); err != nil {
		return err
	}
	undo = append(undo, func() {
		e.releaseVolumes(context.WithoutCancel(ctx), rec, true)
		_ = e.removeRoots(context.WithoutCancel(ctx), rec)
	})
	volatile := rec.HostConfig.AutoRemove
	if err := e.opts.Images.Prepare(ctx, rec.ID, rec.Config.Image, rec.Platform, volatile); err != nil {
		return err
	}
	if err := e.populate(ctx, c); err != nil {
		return err
	}
	if err := e.store.Save(rec, !rec.HostConfig.AutoRemove); err != nil {
		return err
	}
	e.mu.Lock()
	e.byID[rec.ID] = c
	e.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.event(events.ActionCreate)
	return nil
}

// reserve takes a name for a container that is being made.
func (e *Engine) reserve(rec *record.Record, name string) (*Container, error) {
	name = strings.TrimPrefix(name, "/")
	if name != "" && !validName(name) {
		return nil, invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return nil, errdefs.ErrUnavailable.WithMessage("the engine is shutting down")
	}
	if name == "" {
		name = randomName(func(n string) bool { return e.byName[n] != nil }, rec.ID)
	}
	if other := e.byName[name]; other != nil {
		return nil, nameTaken(name, other.id)
	}
	rec.Name = name
	c := newContainer(e, rec)
	e.byName[name] = c
	return c, nil
}

func nameTaken(name, id string) error {
	return conflict("Conflict. The container name %q is already in use by container %q. "+
		"You have to remove (or rename) that container to be able to reuse that name.", "/"+name, id)
}

func (e *Engine) unreserve(c *Container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.byID, c.id)
	if e.byName[c.rec.Name] == c {
		delete(e.byName, c.rec.Name)
	}
}

// foreign warns of an image for another kind of machine that nobody asked for.
func foreign(image ocispec.Platform, asked *ocispec.Platform) string {
	host := platforms.DefaultSpec()
	if asked != nil || image.Architecture == "" || platforms.OnlyStrict(host).Match(image) || platforms.Only(host).Match(image) {
		return ""
	}
	return fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested",
		platforms.FormatAll(image), platforms.FormatAll(host))
}

// resolveShared names the containers whose namespaces are to be shared by their
// IDs. Whose network it is may be known only at the start.
func (e *Engine) resolveShared(ctx context.Context, h *apicontainer.HostConfig) error {
	byID := func(name string) (string, error) {
		c, err := e.find(ctx, name)
		if err != nil {
			return "", invalid("%v", err)
		}
		return "container:" + c.id, nil
	}
	if h.PidMode.IsContainer() {
		id, err := byID(h.PidMode.Container())
		if err != nil {
			return err
		}
		h.PidMode = apicontainer.PidMode(id)
	}
	if h.IpcMode.IsContainer() {
		id, err := byID(h.IpcMode.Container())
		if err != nil {
			return err
		}
		h.IpcMode = apicontainer.IpcMode(id)
	}
	if h.NetworkMode.IsContainer() {
		if id, err := byID(h.NetworkMode.ConnectedContainer()); err == nil {
			h.NetworkMode = apicontainer.NetworkMode(id)
		}
	}
	return nil
}
