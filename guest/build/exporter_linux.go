package build

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/exporter"
	imageexporter "github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/progress"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/image"
)

// exporterMoby is the exporter that docker's clients ask for.
const exporterMoby = "moby"

// imageExporter makes images of the engine's store. It is BuildKit's, except that
// names are normalized, and given when everything else is done: an image that can
// be seen is whole and unpacked.
type imageExporter struct {
	w  *buildWorker
	sm *session.Manager
}

// Resolve implements exporter.Exporter.
func (e imageExporter) Resolve(ctx context.Context, id int, opt map[string]string) (exporter.ExporterInstance, error) {
	attrs := maps.Clone(opt)
	if attrs == nil {
		attrs = map[string]string{}
	}
	name := string(exptypes.OptKeyName)
	names, err := normalNames(attrs[name])
	if err != nil {
		return nil, err
	}
	if names != "" {
		attrs[name] = names
	}
	// BuildKit's own way to unpack decompresses what was just compressed.
	unpack := attrs[string(exptypes.OptKeyUnpack)] != "false"
	attrs[string(exptypes.OptKeyUnpack)] = "false"
	setDefault(attrs, exptypes.OptKeyDanglingPrefix, danglingPrefix)
	setDefault(attrs, exptypes.OptKeyDanglingEmptyOnly, "true")
	if attrs[string(exptypes.OptKeyLayerCompression)] == "" {
		// The time of a build is the user's; the bytes go to a registry at most.
		setDefault(attrs, exptypes.OptKeyCompressionLevel, "1")
	}
	wanted := &wantedNames{readOnlyImages: e.w.ImageStore.(readOnlyImages)}
	inner, err := imageexporter.New(imageexporter.Opt{
		Images: wanted, SessionManager: e.sm, ImageWriter: e.w.writer,
		RegistryHosts: e.w.RegistryHosts, LeaseManager: e.w.LeaseManager(),
	})
	if err != nil {
		return nil, err
	}
	inst, err := inner.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	return &imageExport{ExporterInstance: inst, w: e.w, names: wanted, unpacked: unpack}, nil
}

// normalNames gives names of images, separated by commas, their domain and tag. "*"
// stands for what the build says itself.
func normalNames(list string) (string, error) {
	if list == "" || list == "*" {
		return list, nil
	}
	names := strings.Split(list, ",")
	for i, n := range names {
		named, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return "", fmt.Errorf("invalid image name %q: %w", n, err)
		}
		names[i] = reference.TagNameOnly(named).String()
	}
	return strings.Join(names, ","), nil
}

// danglingPrefix begins the store's names of images without names.
const danglingPrefix = "dangling"

func setDefault(attrs map[string]string, key exptypes.ImageExporterOptKey, value string) {
	if _, ok := attrs[string(key)]; !ok {
		attrs[string(key)] = value
	}
}

// imageExport is one export.
type imageExport struct {
	exporter.ExporterInstance
	w        *buildWorker
	names    *wantedNames
	unpacked bool // wanted
}

// Export implements exporter.ExporterInstance.
func (e *imageExport) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (
	map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error,
) {
	resp, finalize, ref, err := e.ExporterInstance.Export(ctx, src, info)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := e.finish(ctx, src, info, ref); err != nil {
		_ = ref.Release()
		return nil, nil, nil, err
	}
	return resp, finalize, ref, nil
}

// finish unpacks the image, notes where it came from and gives it its names.
func (e *imageExport) finish(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo, ref exporter.DescriptorReference) error {
	names := e.names.take()
	if len(names) > 0 && e.unpacked {
		done := progress.OneOff(ctx, "unpacking")
		if err := done(e.unpack(ctx, src, ref.Descriptor(), info.SessionID)); err != nil {
			return err
		}
	}
	if info.Ref != "" {
		if err := e.w.store.MarkBuilt(ctx, ref.Descriptor().Digest, image.Build{Ref: info.Ref, At: time.Now().UTC()}); err != nil {
			return err
		}
	}
	var given []string
	for _, img := range names {
		name := img.Name
		if name == danglingPrefix+"@"+img.Target.Digest.String() {
			name = ""
		}
		shown, err := e.w.store.Name(ctx, name, img.Target)
		if err != nil {
			return err
		}
		if shown != "" {
			given = append(given, shown)
		}
	}
	if len(names) > 0 && e.w.made != nil {
		e.w.made(ctx, names[0].Target.Digest.String(), given)
	}
	return nil
}

// wantedNames takes the names an export gives.
type wantedNames struct {
	readOnlyImages
	mu   sync.Mutex
	list []images.Image
}

// Update implements images.Store.
func (n *wantedNames) Update(_ context.Context, img images.Image, _ ...string) (images.Image, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	target := img.Target
	img.Target = ocispec.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size, Platform: target.Platform}
	n.list = append(n.list, img)
	return img, nil
}

// Create implements images.Store.
func (n *wantedNames) Create(context.Context, images.Image) (images.Image, error) {
	return images.Image{}, errdefs.ErrAlreadyExists
}

func (n *wantedNames) take() []images.Image {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := n.list
	n.list = nil
	return list
}
