package engine

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/blkiodev"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/runspec"
	"github.com/berthvm/berth/guest/engine/settings"
)

// Update changes a container's limits and restart policy; zero values keep what
// there is. It returns warnings.
func (e *Engine) Update(ctx context.Context, name string, u apicontainer.UpdateConfig) ([]string, error) {
	if err := apicontainer.ValidateRestartPolicy(u.RestartPolicy); err != nil {
		return nil, invalid("%v", err)
	}
	warnings, err := settings.CheckResources(&u.Resources, ncpu(), true)
	if err != nil {
		return nil, err
	}
	c, err := e.find(ctx, name)
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.update(u); err != nil {
		return nil, fmt.Errorf("Cannot update container %s: %w", c.id, err)
	}
	c.save(true)
	c.event(events.ActionUpdate)
	return warnings, nil
}

// update applies u, live where the container runs. The caller holds op and mu.
func (c *Container) update(u apicontainer.UpdateConfig) error {
	if s := c.rec.State.Status; s == record.Removing || s == record.Dead {
		return conflict("container is marked for removal and cannot be %q", "update")
	}
	if err := updateConflict(&c.rec.HostConfig.Resources, &u.Resources); err != nil {
		return err
	}
	if u.RestartPolicy.Name != "" && c.rec.HostConfig.AutoRemove && !u.RestartPolicy.IsNone() {
		return conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
	}
	merged := mergeResources(c.rec.HostConfig.Resources, u.Resources)
	if c.run != nil {
		limits, err := runspec.Resources(&merged)
		if err != nil {
			return err
		}
		if err := c.run.task.Update(limits); err != nil {
			return err
		}
	}
	c.rec.HostConfig.Resources = merged
	if u.RestartPolicy.Name != "" {
		c.rec.HostConfig.RestartPolicy = u.RestartPolicy
	}
	return nil
}

// updateConflict refuses what does not go with the limits there are.
func updateConflict(r, u *apicontainer.Resources) error {
	switch {
	case u.NanoCPUs > 0 && r.CPUPeriod > 0:
		return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set")
	case u.NanoCPUs > 0 && r.CPUQuota > 0:
		return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set")
	case u.CPUPeriod > 0 && r.NanoCPUs > 0:
		return conflict("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
	case u.CPUQuota > 0 && r.NanoCPUs > 0:
		return conflict("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")
	case u.Memory > r.MemorySwap && u.MemorySwap == 0:
		return conflict("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	}
	return nil
}

// mergeResources returns r with what u sets.
func mergeResources(r, u apicontainer.Resources) apicontainer.Resources {
	for _, f := range []struct{ to, from *int64 }{
		{&r.CPUShares, &u.CPUShares}, {&r.Memory, &u.Memory}, {&r.NanoCPUs, &u.NanoCPUs},
		{&r.CPUPeriod, &u.CPUPeriod}, {&r.CPUQuota, &u.CPUQuota},
		{&r.MemoryReservation, &u.MemoryReservation}, {&r.MemorySwap, &u.MemorySwap},
	} {
		if *f.from != 0 {
			*f.to = *f.from
		}
	}
	if u.CpusetCpus != "" {
		r.CpusetCpus = u.CpusetCpus
	}
	if u.CpusetMems != "" {
		r.CpusetMems = u.CpusetMems
	}
	if u.BlkioWeight != 0 {
		r.BlkioWeight = u.BlkioWeight
	}
	if u.BlkioWeightDevice != nil {
		r.BlkioWeightDevice = u.BlkioWeightDevice
	}
	for _, f := range []struct{ to, from *[]*blkiodev.ThrottleDevice }{
		{&r.BlkioDeviceReadBps, &u.BlkioDeviceReadBps}, {&r.BlkioDeviceWriteBps, &u.BlkioDeviceWriteBps},
		{&r.BlkioDeviceReadIOps, &u.BlkioDeviceReadIOps}, {&r.BlkioDeviceWriteIOps, &u.BlkioDeviceWriteIOps},
	} {
		if *f.from != nil {
			*f.to = *f.from
		}
	}
	if u.PidsLimit != nil {
		r.PidsLimit = u.PidsLimit
	}
	return r
}
