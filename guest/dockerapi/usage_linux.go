package dockerapi

import (
	"net/http"
	"slices"

	"github.com/moby/moby/api/types/build"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/berthvm/berth/guest/engine"
)

// diskUsage is docker system df. Before 1.52 it had another shape, which is still
// there where it is not asked for details.
func (s *Server) diskUsage(c *call) error {
	want := c.URL.Query()["type"]
	for _, t := range want {
		switch system.DiskUsageObject(t) {
		case system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject:
		default:
			return invalid("unknown object type: %s", t)
		}
	}
	has := func(t system.DiskUsageObject) bool { return len(want) == 0 || slices.Contains(want, string(t)) }
	details := c.version >= 52 && c.flag("verbose")
	var u system.DiskUsage
	var err error
	if has(system.ImageObject) {
		if u.ImageUsage, err = s.cfg.Images.DiskUsage(c.Context()); err != nil {
			return err
		}
	}
	if has(system.ContainerObject) {
		if u.ContainerUsage, err = s.containerUsage(c); err != nil {
			return err
		}
	}
	if has(system.VolumeObject) {
		if u.VolumeUsage, err = s.cfg.Volumes.DiskUsage(c.Context()); err != nil {
			return err
		}
	}
	if has(system.BuildCacheObject) {
		if u.BuildCacheUsage, err = s.cfg.Builds.DiskUsage(c.Context(), true); err != nil {
			return err
		}
	}
	if details {
		return c.reply(http.StatusOK, u)
	}
	old, err := c.oldDiskUsage(u)
	if err != nil {
		return err
	}
	if c.version < 52 {
		return c.reply(http.StatusOK, old)
	}
	m, err := fields(withoutItems(u))
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, add(m, old))
}

// withoutItems is u with the sums only.
func withoutItems(u system.DiskUsage) system.DiskUsage {
	if u.ImageUsage != nil {
		sums := *u.ImageUsage
		sums.Items, u.ImageUsage = nil, &sums
	}
	if u.ContainerUsage != nil {
		sums := *u.ContainerUsage
		sums.Items, u.ContainerUsage = nil, &sums
	}
	if u.VolumeUsage != nil {
		sums := *u.VolumeUsage
		sums.Items, u.VolumeUsage = nil, &sums
	}
	if u.BuildCacheUsage != nil {
		sums := *u.BuildCacheUsage
		sums.Items, u.BuildCacheUsage = nil, &sums
	}
	return u
}

// oldDiskUsage is disk usage as it was before 1.52: what was asked for only.
func (c *call) oldDiskUsage(u system.DiskUsage) (map[string]any, error) {
	old := map[string]any{}
	if u.ImageUsage != nil {
		list := make([]*image.Summary, 0, len(u.ImageUsage.Items))
		for _, img := range u.ImageUsage.Items {
			list = append(list, &img)
		}
		shaped, err := c.imageListShape(list)
		if err != nil {
			return nil, err
		}
		old["LayersSize"], old["Images"] = u.ImageUsage.TotalSize, shaped
	}
	if u.ContainerUsage != nil {
		old["Containers"] = append([]apicontainer.Summary{}, u.ContainerUsage.Items...)
	}
	if u.VolumeUsage != nil {
		old["Volumes"] = append([]volume.Volume{}, u.VolumeUsage.Items...)
	}
	if u.BuildCacheUsage != nil {
		old["BuildCache"] = append([]build.CacheRecord{}, u.BuildCacheUsage.Items...)
	}
	return old, nil
}

func (s *Server) containerUsage(c *call) (*apicontainer.DiskUsage, error) {
	list, err := s.cfg.Engine.List(c.Context(), engine.ListOptions{All: true, Size: true})
	if err != nil {
		return nil, err
	}
	u := &apicontainer.DiskUsage{TotalCount: int64(len(list))}
	for _, item := range list {
		u.TotalSize += item.SizeRw
		switch item.State {
		case apicontainer.StateRunning, apicontainer.StatePaused, apicontainer.StateRestarting:
			u.ActiveCount++
		default:
			u.Reclaimable += item.SizeRw
		}
	}
	for i := range list {
		list[i].ImageManifestDescriptor = nil
	}
	u.Items = list
	return u, nil
}
