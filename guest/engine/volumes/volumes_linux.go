package volumes

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	apivolume "github.com/moby/moby/api/types/volume"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/filter"
	"github.com/berthvm/berth/guest/volume"
)

// Service is the volumes of one engine. It is safe for concurrent use.
type Service struct {
	store  *volume.Store
	engine *engine.Engine
}

// New returns the service of a store.
func New(store *volume.Store, e *engine.Engine) *Service { return &Service{store, e} }

func (s *Service) event(action events.Action, id string, attrs map[string]string) {
	s.engine.Journal.Publish(events.Message{Type: events.VolumeEventType, Action: action, Scope: "local",
		Actor: events.Actor{ID: id, Attributes: attrs}})
}

func api(v volume.Volume) apivolume.Volume {
	out := apivolume.Volume{Name: v.Name, Driver: v.Driver, Mountpoint: v.Path, Scope: "local", Labels: v.Labels,
		Options: v.Options, CreatedAt: v.Created.Format(time.RFC3339)}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	return out
}

// Create makes a volume.
func (s *Service) Create(ctx context.Context, req apivolume.CreateRequest) (apivolume.Volume, error) {
	if req.ClusterVolumeSpec != nil {
		return apivolume.Volume{}, errdefs.ErrUnavailable.WithMessage(
			`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	}
	_, err := s.store.Get(req.Name)
	v, cerr := s.store.Create(ctx, req.Name, req.Driver, req.DriverOpts, req.Labels)
	if cerr != nil {
		return apivolume.Volume{}, cerr
	}
	if err != nil {
		s.event(events.ActionCreate, v.Name, map[string]string{"driver": v.Driver})
	}
	return api(v), nil
}

// Inspect describes one volume.
func (s *Service) Inspect(name string) (apivolume.Volume, error) {
	v, err := s.store.Get(name)
	if err != nil {
		return apivolume.Volume{}, err
	}
	return api(v), nil
}

// List describes the volumes that match.
func (s *Service) List(_ context.Context, f filter.Set) ([]apivolume.Volume, error) {
	if err := f.Check("dangling", "name", "driver", "label"); err != nil {
		return nil, err
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	all, err := s.store.List()
	if err != nil {
		return nil, err
	}
	out := []apivolume.Volume{}
	for _, v := range all {
		if !f.Pattern("name", v.Name) || !f.Exact("driver", v.Driver) || !f.Labels("label", v.Labels) {
			continue
		}
		if f.Has("dangling") && (len(s.engine.VolumeUsers(v.Name)) == 0) != dangling {
			continue
		}
		out = append(out, api(v))
	}
	return out, nil
}

// Remove removes a volume that no container has.
func (s *Service) Remove(ctx context.Context, name string, force bool) error {
	if users := s.engine.VolumeUsers(name); len(users) > 0 {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("remove %s: volume is in use - [%s]", name, strings.Join(users, ", ")))
	}
	if err := s.store.Remove(ctx, name, force); err != nil {
		return err
	}
	s.event(events.ActionDestroy, name, map[string]string{"driver": "local"})
	return nil
}

// Prune removes anonymous volumes, or with all=true in f every volume, that no
// container has.
func (s *Service) Prune(ctx context.Context, f filter.Set) (apivolume.PruneReport, error) {
	report := apivolume.PruneReport{VolumesDeleted: []string{}}
	if err := f.Check("all", "label", "label!"); err != nil {
		return report, err
	}
	all, err := f.Bool("all", false)
	if err != nil {
		return report, err
	}
	list, err := s.store.List()
	if err != nil {
		return report, err
	}
	for _, v := range list {
		if !all && !v.Anonymous() || !f.Prunes(v.Labels) || len(s.engine.VolumeUsers(v.Name)) > 0 {
			continue
		}
		size, _ := s.store.Size(ctx, v.Name)
		if s.Remove(ctx, v.Name, true) == nil {
			report.VolumesDeleted = append(report.VolumesDeleted, v.Name)
			report.SpaceReclaimed += uint64(size)
		}
	}
	s.event(events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatUint(report.SpaceReclaimed, 10)})
	return report, nil
}

// DiskUsage measures all volumes.
func (s *Service) DiskUsage(ctx context.Context) (*apivolume.DiskUsage, error) {
	list, err := s.store.List()
	if err != nil {
		return nil, err
	}
	u := &apivolume.DiskUsage{TotalCount: int64(len(list)), Items: []apivolume.Volume{}}
	for _, v := range list {
		size, err := s.store.Size(ctx, v.Name)
		if err != nil {
			return nil, err
		}
		users := len(s.engine.VolumeUsers(v.Name))
		item := api(v)
		item.UsageData = &apivolume.UsageData{RefCount: int64(users), Size: size}
		u.Items = append(u.Items, item)
		u.TotalSize += size
		if users > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += size
		}
	}
	return u, nil
}
