package images

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/filter"
	"github.com/berthvm/berth/guest/image"
	imageregistry "github.com/berthvm/berth/guest/image/registry"
)

// Service is the images of one engine. It is safe for concurrent use.
type Service struct {
	store   *image.Store
	engine  *engine.Engine
	builtin <-chan struct{}
}

// New returns the service of a store; the engine tells who uses what, and takes
// the events. builtin is closed when the built-in images are in the store: what
// lists or looks for images waits for it.
func New(store *image.Store, e *engine.Engine, builtin <-chan struct{}) *Service {
	return &Service{store, e, builtin}
}

func (s *Service) wait(ctx context.Context) error {
	select {
	case <-s.builtin:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Report takes progress.
type Report func(jsonstream.Message)

func (r Report) progress() image.ProgressFunc {
	return func(p image.Progress) {
		m := jsonstream.Message{ID: p.ID, Status: p.Status}
		if p.Current > 0 || p.Total > 0 {
			m.Progress = &jsonstream.Progress{Current: p.Current, Total: p.Total}
		}
		r(m)
	}
}

// event records what happened to an image; labels are the image's.
func (s *Service) event(action events.Action, id, name string, labels map[string]string) {
	attributes := map[string]string{}
	maps.Copy(attributes, labels)
	attributes["name"] = name
	s.engine.Journal.Publish(events.Message{Type: events.ImageEventType, Action: action, Scope: "local",
		Actor: events.Actor{ID: id, Attributes: attributes}})
}

// about is event with the labels of an image that is in the store.
func (s *Service) about(ctx context.Context, action events.Action, id, name string) {
	img, err := s.store.Get(context.WithoutCancel(ctx), id)
	if err != nil {
		img = image.Image{}
	}
	s.event(action, id, name, img.Spec.Config.Labels)
}

// Made publishes that an image has come to be in the store, and has been given names.
func (s *Service) Made(ctx context.Context, id string, names []string) {
	s.about(ctx, events.ActionCreate, id, id)
	for _, name := range names {
		s.about(ctx, events.ActionTag, id, name)
	}
}

// users lists the containers of every image. A Service has no other way to fail
// than that the engine ends.
func (s *Service) users(ctx context.Context) (func(digest.Digest) []image.User, error) {
	all, err := s.engine.ImageUsers(ctx)
	if err != nil {
		return nil, err
	}
	return func(id digest.Digest) []image.User {
		var users []image.User
		for _, u := range all {
			if u.ImageID == id.String() {
				users = append(users, image.User{ContainerID: u.ContainerID, Manifest: digest.Digest(u.Manifest), Running: u.Running})
			}
		}
		return users
	}, nil
}

// OnBehalf returns a context in which registries are told for which client, by its
// User-Agent, the engine asks.
func OnBehalf(ctx context.Context, client string) context.Context {
	return imageregistry.OnBehalf(ctx, client)
}

// Auth is how a registry is told who asks.
type Auth = image.Auth

// Pull pulls an image, or with all every tag of a repository.
func (s *Service) Pull(ctx context.Context, ref string, platform *ocispec.Platform, all bool, auth Auth, report Report) error {
	pulled, err := s.store.Pull(ctx, ref, image.PullOptions{Platform: platform, All: all, Auth: auth, Progress: report.progress()})
	named, perr := reference.ParseNormalizedNamed(ref)
	if perr != nil {
		return err
	}
	for _, img := range pulled {
		pulled := shown(ref)
		if all && len(img.RepoTags) > 0 {
			pulled = img.RepoTags[0]
		}
		s.event(events.ActionPull, pulled, reference.FamiliarName(named), img.Spec.Config.Labels)
	}
	return err
}

// Push pushes an image, or with all every tag of a repository.
func (s *Service) Push(ctx context.Context, ref string, platform *ocispec.Platform, all bool, auth Auth, report Report) error {
	pushed, err := s.store.Push(ctx, ref, image.PushOptions{Platform: platform, All: all, Auth: auth, Progress: report.progress()})
	for _, p := range pushed {
		aux, merr := json.Marshal(map[string]any{"Tag": p.Tag, "Digest": p.Digest.String(), "Size": p.Size})
		if merr == nil {
			raw := json.RawMessage(aux)
			report(jsonstream.Message{Aux: &raw})
		}
		if named, err := reference.ParseNormalizedNamed(ref); err == nil {
			name := reference.FamiliarName(named)
			s.about(ctx, events.ActionPush, name+":"+p.Tag, name)
		}
	}
	return err
}

var listNames = []string{"dangling", "label", "label!", "before", "since", "reference", "until"}

// listOptions reads the filters of lists and prunes.
func listOptions(f filter.Set) (image.ListOptions, error) {
	if err := f.Check(listNames...); err != nil {
		return image.ListOptions{}, err
	}
	o := image.ListOptions{Reference: f.Values("reference"), Labels: f.Values("label"), NotLabels: f.Values("label!")}
	if f.Has("dangling") {
		yes, err := f.Bool("dangling", false)
		if err != nil {
			return o, err
		}
		o.Dangling = &yes
	}
	o.Before, o.Since = f.Values("before"), f.Values("since")
	for _, v := range f.Values("until") {
		t, err := filter.Set{"until": {v: true}}.Until(time.Now())
		if err != nil {
			return o, err
		}
		o.Until = append(o.Until, t)
	}
	return o, nil
}

// ListOptions say what List tells of each image besides.
type ListOptions struct {
	Manifests  bool // what it holds for which platform
	SharedSize bool // how much of it other images have, too
	Identity   bool // where that came from; with Manifests
}

// List describes the images that match.
func (s *Service) List(ctx context.Context, f filter.Set, more ListOptions) ([]*apiimage.Summary, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	o, err := listOptions(f)
	if err != nil {
		return nil, err
	}
	found, err := s.store.List(ctx, o)
	if err != nil {
		return nil, err
	}
	all, err := s.engine.ImageUsers(ctx)
	if err != nil {
		return nil, err
	}
	var shared map[digest.Digest]int64
	if more.SharedSize {
		if shared, err = s.store.SharedSizes(ctx, found); err != nil {
			return nil, err
		}
	}
	out := []*apiimage.Summary{}
	for _, img := range found {
		sum := &apiimage.Summary{ID: img.ID.String(), ParentID: img.Parent.String(), Created: img.Created.Unix(),
			Labels: img.Spec.Config.Labels, RepoTags: orEmpty(img.RepoTags), RepoDigests: orEmpty(img.RepoDigests),
			Size: img.Size(), SharedSize: -1, Descriptor: &img.Target}
		if img.Created.IsZero() {
			sum.Created = 0
		}
		for _, u := range all {
			if u.ImageID == sum.ID {
				sum.Containers++
			}
		}
		if more.Manifests {
			sum.Manifests = summaries(img, all)
		}
		if more.Identity {
			for _, m := range sum.Manifests {
				if m.ImageData == nil || !m.Available {
					continue
				}
				if m.ImageData.Identity, err = s.identity(ctx, m.Descriptor.Digest); err != nil {
					return nil, err
				}
			}
		}
		if more.SharedSize {
			sum.SharedSize = shared[img.ID]
		}
		out = append(out, sum)
	}
	return out, nil
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func summaries(img image.Image, users []engine.ImageUser) []apiimage.ManifestSummary {
	list := img.Manifests
	if len(list) == 0 && img.Manifest.Digest != "" {
		list = []image.PlatformManifest{{Descriptor: img.Manifest, Available: true}}
	}
	out := []apiimage.ManifestSummary{}
	for _, m := range list {
		sum := apiimage.ManifestSummary{ID: m.Descriptor.Digest.String(), Descriptor: m.Descriptor, Available: m.Available,
			Kind: apiimage.ManifestKindImage}
		sum.Size.Content, sum.Size.Total = m.Descriptor.Size, m.Descriptor.Size
		if m.Attestation {
			sum.Kind = apiimage.ManifestKindAttestation
			sum.AttestationData = &apiimage.AttestationProperties{
				For: digest.Digest(m.Descriptor.Annotations[image.AttestedAnnotation])}
			out = append(out, sum)
			continue
		}
		sum.ImageData = &apiimage.ImageProperties{Containers: []string{}}
		if m.Descriptor.Platform != nil {
			sum.ImageData.Platform = *m.Descriptor.Platform
		} else if m.Descriptor.Digest == img.Manifest.Digest {
			sum.ImageData.Platform = img.Spec.Platform
		}
		if m.Descriptor.Digest == img.Manifest.Digest {
			sum.ImageData.Size.Unpacked = img.UnpackedSize
			sum.Size.Content, sum.Size.Total = img.ContentSize, img.Size()
		}
		for _, u := range users {
			if u.Manifest == sum.ID {
				sum.ImageData.Containers = append(sum.ImageData.Containers, u.ContainerID)
			}
		}
		out = append(out, sum)
	}
	return out
}

// identity is where what has a digest came from, nil when that is not known. Nobody
// here verifies signatures.
func (s *Service) identity(ctx context.Context, dgst digest.Digest) (*apiimage.Identity, error) {
	o, err := s.store.Origin(ctx, dgst)
	if errdefs.IsNotFound(err) || err == nil && len(o.Repositories)+len(o.Builds) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := &apiimage.Identity{}
	for _, name := range o.Repositories {
		out.Pull = append(out.Pull, apiimage.PullIdentity{Repository: name})
	}
	for _, b := range o.Builds {
		out.Build = append(out.Build, apiimage.BuildIdentity{Ref: b.Ref, CreatedAt: b.At})
	}
	return out, nil
}

// Inspect describes one image.
func (s *Service) Inspect(ctx context.Context, name string, platform *ocispec.Platform, manifests bool) (*apiimage.InspectResponse, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	img, err := s.store.GetPlatform(ctx, name, platform)
	if err != nil {
		return nil, err
	}
	if platform != nil {
		// What was asked for is one platform's manifest, not all that the name means.
		img.Target = img.Manifest
		img.Target.Platform = &img.Spec.Platform
	}
	r := &apiimage.InspectResponse{ID: img.ID.String(), RepoTags: orEmpty(img.RepoTags), RepoDigests: orEmpty(img.RepoDigests),
		Author: img.Spec.Author, Config: &img.Spec.Config, Architecture: img.Spec.Architecture, Variant: img.Spec.Variant,
		Os: img.Spec.OS, OsVersion: img.Spec.OSVersion, Size: img.Size(), Descriptor: &img.Target,
		RootFS: apiimage.RootFS{Type: "layers"}, Metadata: apiimage.Metadata{LastTagTime: img.TaggedAt}}
	if !img.Created.IsZero() {
		r.Created = img.Created.Format(time.RFC3339Nano)
	}
	for _, l := range img.Spec.RootFS.DiffIDs {
		r.RootFS.Layers = append(r.RootFS.Layers, l.String())
	}
	if n := len(img.Spec.History); n > 0 {
		r.Comment = img.Spec.History[n-1].Comment
	}
	if r.Identity, err = s.identity(ctx, img.Target.Digest); err != nil {
		return nil, err
	}
	if manifests {
		all, err := s.engine.ImageUsers(ctx)
		if err != nil {
			return nil, err
		}
		r.Manifests = summaries(img, all)
	}
	return r, nil
}

// History lists the steps by which an image was made, newest first.
func (s *Service) History(ctx context.Context, name string, platform *ocispec.Platform) ([]apiimage.HistoryResponseItem, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	steps, err := s.store.History(ctx, name, platform)
	if err != nil {
		return nil, err
	}
	out := []apiimage.HistoryResponseItem{}
	for _, h := range steps {
		item := apiimage.HistoryResponseItem{ID: h.ID, CreatedBy: h.CreatedBy, Comment: h.Comment, Size: h.Size, Tags: h.Tags}
		if !h.Created.IsZero() {
			item.Created = h.Created.Unix()
		}
		out = append(out, item)
	}
	return out, nil
}

// Tag gives an image another name.
func (s *Service) Tag(ctx context.Context, name, newName string) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	img, err := s.store.Tag(ctx, name, newName)
	if err == nil {
		s.event(events.ActionTag, img.ID.String(), shown(newName), img.Spec.Config.Labels)
	}
	return err
}

// shown is a reference as users see it, with its tag.
func shown(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(reference.TagNameOnly(named))
}

// Remove takes a name off an image, or removes it, or removes only some platforms of
// it.
func (s *Service) Remove(ctx context.Context, name string, force bool, platforms []ocispec.Platform) ([]apiimage.DeleteResponse, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	users, err := s.users(ctx)
	if err != nil {
		return nil, err
	}
	o := image.RemoveOptions{Force: force, Users: users}
	if len(platforms) > 0 {
		deleted, err := s.store.RemovePlatforms(ctx, name, platforms, o)
		return s.deleted(deleted), err
	}
	deleted, err := s.store.Remove(ctx, name, o)
	return s.deleted(deleted), err
}

func (s *Service) deleted(list []image.Deleted) []apiimage.DeleteResponse {
	out := []apiimage.DeleteResponse{}
	for _, d := range list {
		out = append(out, apiimage.DeleteResponse{Untagged: d.Untagged, Deleted: d.Deleted.String()})
		if d.Untagged != "" {
			s.event(events.ActionUnTag, d.ID.String(), d.Untagged, nil)
		} else {
			s.event(events.ActionDelete, d.Deleted.String(), d.Deleted.String(), nil)
		}
	}
	return out
}

// Prune removes images that nobody uses: those without a name, or with
// dangling=false in f all.
func (s *Service) Prune(ctx context.Context, f filter.Set) (*apiimage.PruneReport, error) {
	if err := f.Check("dangling", "label", "label!", "until"); err != nil {
		return nil, err
	}
	o, err := listOptions(f)
	if err != nil {
		return nil, err
	}
	used, err := s.engine.ImageUsers(ctx)
	if err != nil {
		return nil, err
	}
	users := map[digest.Digest][]string{}
	for _, u := range used {
		users[digest.Digest(u.ImageID)] = append(users[digest.Digest(u.ImageID)], u.Image)
	}
	all := o.Dangling != nil && !*o.Dangling
	o.Dangling = nil
	pruned, err := s.store.Prune(ctx, image.PruneOptions{All: all, List: o, Users: users})
	if err != nil {
		return nil, err
	}
	report := &apiimage.PruneReport{ImagesDeleted: s.deleted(pruned.Deleted), SpaceReclaimed: uint64(max(0, pruned.Reclaimed))}
	s.engine.Journal.Publish(events.Message{Type: events.ImageEventType, Action: events.ActionPrune, Scope: "local",
		Actor: events.Actor{Attributes: map[string]string{"reclaimed": strconv.FormatUint(report.SpaceReclaimed, 10)}}})
	return report, nil
}

// Load takes an archive of images, or of each only some platforms.
func (s *Service) Load(ctx context.Context, r io.Reader, platforms []ocispec.Platform, report Report) error {
	loaded, err := s.store.Load(ctx, r, platforms, report.progress())
	for _, l := range loaded {
		text, name := "Loaded image: ", l.Ref
		if name == "" {
			text, name = "Loaded image ID: ", l.ID.String()
		}
		report(jsonstream.Message{Stream: text + name + "\n"})
		if l.Broken != nil {
			report(jsonstream.Message{Stream: fmt.Sprintf("Error unpacking image %s: %v\n", name, l.Broken)})
		}
		s.about(ctx, events.ActionLoad, l.ID.String(), l.ID.String())
	}
	return err
}

// Save returns what writes an archive of images; what is refused is refused now.
func (s *Service) Save(ctx context.Context, names []string, platforms []ocispec.Platform) (func(context.Context, io.Writer) error, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	write, saved, err := s.store.Save(ctx, names, platforms)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, w io.Writer) error {
		for _, id := range saved {
			s.about(ctx, events.ActionSave, id.String(), id.String())
		}
		return write(ctx, w)
	}, nil
}

// Attestations returns the statements that came with an image.
func (s *Service) Attestations(ctx context.Context, name string, o image.AttestationOptions) ([]apiimage.AttestationStatement, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	list, err := s.store.Attestations(ctx, name, o)
	if err != nil {
		return nil, err
	}
	out := []apiimage.AttestationStatement{}
	for _, st := range list {
		item := apiimage.AttestationStatement{Descriptor: st.Descriptor, PredicateType: st.Predicate}
		if o.Bodies {
			item.Statement = &st.Body
		}
		out = append(out, item)
	}
	return out, nil
}

// AttestationOptions select statements.
type AttestationOptions = image.AttestationOptions

// Distribution says what a registry has under a name.
func (s *Service) Distribution(ctx context.Context, name string, auth Auth) (*registry.DistributionInspect, error) {
	ref, err := reference.ParseAnyReference(name)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	if _, ok := ref.(reference.Named); !ok {
		return nil, errdefs.ErrInvalidArgument.WithMessage("no manifest found for full image ID")
	}
	desc, platforms, err := s.store.Distribution(ctx, name, auth)
	if err != nil {
		return nil, err
	}
	return &registry.DistributionInspect{Descriptor: desc, Platforms: platforms}, nil
}

// ImportURL is Import of an archive that is fetched from a URL; without a scheme it
// is http's.
func (s *Service) ImportURL(ctx context.Context, url string, o ImportOptions, report Report) (string, error) {
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	body, size, err := s.store.Download(ctx, url)
	if err != nil {
		return "", err
	}
	defer body.Close()
	report(jsonstream.Message{Status: "Downloading from " + url})
	return s.Import(ctx, &progressReader{r: body, total: max(size, 0), report: report}, o)
}

// progressReader reports how far an import is.
type progressReader struct {
	r         io.Reader
	at, total int64
	last      time.Time
	report    Report
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.at += int64(n)
	if now := time.Now(); now.Sub(p.last) > 100*time.Millisecond || err != nil {
		p.last = now
		p.report(jsonstream.Message{Status: "Importing", Progress: &jsonstream.Progress{Current: p.at, Total: p.total}})
	}
	return n, err
}

// ImportOptions say what Import makes of an archive.
type ImportOptions struct {
	Ref      string // empty: no name
	Message  string
	Platform *ocispec.Platform
	Changes  []string // Dockerfile instructions
}

// Import makes an image of a root file system's archive.
func (s *Service) Import(ctx context.Context, r io.Reader, o ImportOptions) (string, error) {
	if o.Ref != "" {
		if _, err := reference.ParseNormalizedNamed(o.Ref); err != nil {
			return "", errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
	}
	var cfg apicontainer.Config
	if err := Change(&cfg, o.Changes); err != nil {
		return "", err
	}
	img, err := s.store.Import(ctx, r, image.ImportOptions{Ref: o.Ref, Platform: o.Platform, Message: o.Message,
		Config: imageConfig(&cfg)})
	if err != nil {
		return "", err
	}
	s.event(events.ActionImport, img.ID.String(), img.ID.String(), img.Spec.Config.Labels)
	return img.ID.String(), nil
}

// CommitOptions say what Commit makes of a container.
type CommitOptions struct {
	Container       string
	Ref             string // empty: no name
	Author, Comment string
	Pause           bool
	Config          *apicontainer.Config // replaces the container's where it says something
	Changes         []string             // Dockerfile instructions
}

// Commit makes an image of a container.
func (s *Service) Commit(ctx context.Context, o CommitOptions) (string, error) {
	info, err := s.engine.Inspect(ctx, o.Container, false)
	if err != nil {
		return "", err
	}
	cfg, err := committed(info.Config, o.Config, o.Changes)
	if err != nil {
		return "", err
	}
	if o.Pause && info.State.Running && !info.State.Paused {
		if err := s.engine.Pause(ctx, info.ID); err == nil {
			defer func() { _ = s.engine.Unpause(context.WithoutCancel(ctx), info.ID) }()
		}
	}
	img, err := s.store.Commit(ctx, info.ID, image.CommitOptions{Ref: o.Ref, Author: o.Author, Comment: o.Comment, Config: imageConfig(&cfg)})
	if err != nil {
		return "", err
	}
	ref, names := "", []string(nil)
	if o.Ref != "" {
		ref = shown(o.Ref)
		names = []string{ref}
	}
	s.Made(ctx, img.ID.String(), names)
	s.engine.Committed(ctx, info.ID, img.ID.String(), ref, o.Comment)
	return img.ID.String(), nil
}

// committed is what an image keeps of a container's configuration: what the client
// says stands over it, if it says anything, and changes over both. Neither of the two
// is touched.
func committed(own, over *apicontainer.Config, changes []string) (apicontainer.Config, error) {
	cfg := *own
	cfg.Labels, cfg.Volumes, cfg.ExposedPorts = maps.Clone(own.Labels), maps.Clone(own.Volumes), maps.Clone(own.ExposedPorts)
	cfg.Env, cfg.OnBuild = slices.Clone(own.Env), slices.Clone(own.OnBuild)
	if over != nil {
		override(&cfg, over)
	}
	return cfg, Change(&cfg, changes)
}

// override puts what the client says over a configuration of the caller's own.
func override(to, from *apicontainer.Config) {
	set := func(dst *string, src string) {
		if src != "" {
			*dst = src
		}
	}
	set(&to.User, from.User)
	set(&to.WorkingDir, from.WorkingDir)
	set(&to.StopSignal, from.StopSignal)
	if len(from.Cmd) > 0 {
		to.Cmd = from.Cmd
	}
	if len(from.Entrypoint) > 0 {
		to.Entrypoint = from.Entrypoint
	}
	if from.Healthcheck != nil {
		to.Healthcheck = from.Healthcheck
	}
	for _, kv := range from.Env {
		name, _, _ := strings.Cut(kv, "=")
		to.Env = setEnv(to.Env, name, kv)
	}
	to.Labels = union(to.Labels, from.Labels)
	to.Volumes = union(to.Volumes, from.Volumes)
	to.ExposedPorts = union(to.ExposedPorts, from.ExposedPorts)
}

// union adds from to a map of the caller's own, which may be nil.
func union[M ~map[K]V, K comparable, V any](to, from M) M {
	if to == nil {
		return maps.Clone(from)
	}
	maps.Copy(to, from)
	return to
}

// imageConfig is what an image keeps of a container's configuration.
func imageConfig(c *apicontainer.Config) dockerspec.DockerOCIImageConfig {
	var out dockerspec.DockerOCIImageConfig
	out.User, out.WorkingDir, out.StopSignal = c.User, c.WorkingDir, c.StopSignal
	out.Env, out.Cmd, out.Entrypoint, out.Labels, out.Volumes = c.Env, c.Cmd, c.Entrypoint, c.Labels, c.Volumes
	out.Healthcheck, out.OnBuild, out.Shell = c.Healthcheck, c.OnBuild, c.Shell
	for p := range c.ExposedPorts {
		if out.ExposedPorts == nil {
			out.ExposedPorts = map[string]struct{}{}
		}
		out.ExposedPorts[p.String()] = struct{}{}
	}
	return out
}

// ParsePlatform reads a platform as clients write it: "linux/arm64", or JSON.
func ParsePlatform(v string) (*ocispec.Platform, error) {
	if v == "" {
		return nil, nil
	}
	var p ocispec.Platform
	if strings.HasPrefix(v, "{") {
		if err := json.Unmarshal([]byte(v), &p); err != nil {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("failed to parse platform: %v", err))
		}
		switch some := p.Variant != "" || p.OSVersion != "" || len(p.OSFeatures) > 0; {
		case p.OS == "" && p.Architecture == "" && some:
			return nil, errdefs.ErrInvalidArgument.WithMessage("optional platform fields provided, but OS and Architecture are missing")
		case p.OS == "" || p.Architecture == "":
			return nil, errdefs.ErrInvalidArgument.WithMessage("both OS and Architecture must be provided")
		}
		return &p, nil
	}
	p, err := platforms.Parse(v)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	return &p, nil
}

// DiskUsage says what images take on the disk.
func (s *Service) DiskUsage(ctx context.Context) (*apiimage.DiskUsage, error) {
	list, err := s.List(ctx, nil, ListOptions{SharedSize: true})
	if err != nil {
		return nil, err
	}
	total, err := s.store.DiskUsage(ctx)
	if err != nil {
		return nil, err
	}
	u := &apiimage.DiskUsage{TotalCount: int64(len(list)), TotalSize: total.Images}
	for _, img := range list {
		if img.Containers > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += img.Size - img.SharedSize
		}
		u.Items = append(u.Items, *img)
	}
	u.Reclaimable = min(u.Reclaimable, u.TotalSize)
	return u, nil
}

// Count is how many images there are.
func (s *Service) Count(ctx context.Context) int {
	list, err := s.store.List(ctx, image.ListOptions{})
	if err != nil {
		return 0
	}
	return len(list)
}

// Login asks a registry whether it takes credentials.
func (s *Service) Login(ctx context.Context, server string, auth Auth) error {
	return s.store.Login(ctx, server, auth)
}
