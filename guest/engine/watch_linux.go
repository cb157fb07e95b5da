package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/settings"
)

// watch starts what a running container needs beside it: the watch for processes
// killed for want of memory, and the health check. The caller holds mu.
func (c *Container) watch(r *run) {
	ctx, cancel := context.WithCancel(c.e.ctx)
	r.stop = cancel
	start := func(f func()) {
		r.watch.Add(1)
		if !c.e.goRun(func() { defer r.watch.Done(); f() }) {
			r.watch.Done()
		}
	}
	if c.rec.HostConfig.Memory > 0 {
		start(func() {
			_ = r.task.WatchOOM(ctx, func(uint64) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.rec.State.OOMKilled = true
				c.event(events.ActionOOM)
			})
		})
	}
	check := settings.HealthCommand(c.rec.Config)
	if check == nil {
		c.rec.State.Health = nil
		return
	}
	health := &apicontainer.Health{Status: apicontainer.Starting}
	if before := c.rec.State.Health; before != nil {
		health.Log = before.Log
	}
	c.rec.State.Health = health
	h, started := *c.rec.Config.Healthcheck, c.rec.State.StartedAt
	start(func() { c.checkHealth(ctx, check, h, started) })
}

const (
	defaultInterval      = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultTimeout       = 30 * time.Second
	defaultRetries       = 3
	maxHealthLog         = 5
	maxHealthOutput      = 4096 // bytes
)

// checkHealth runs the health check at its interval until ctx ends. A paused
// container is left alone.
func (c *Container) checkHealth(ctx context.Context, cmd []string, h apicontainer.HealthConfig, started time.Time) {
	interval := cmp.Or(h.Interval, defaultInterval)
	timeout := cmp.Or(h.Timeout, defaultTimeout)
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		wait := interval
		starting := h.StartPeriod > 0 && time.Since(started) < h.StartPeriod && c.health() == apicontainer.Starting
		if starting {
			wait = cmp.Or(h.StartInterval, defaultStartInterval)
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if c.paused() {
			continue
		}
		begin := time.Now()
		code, out, err := c.probe(ctx, cmd, timeout, maxHealthOutput)
		if ctx.Err() != nil {
			return
		}
		result := &apicontainer.HealthcheckResult{Start: begin, End: time.Now(), ExitCode: code, Output: out}
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			result.ExitCode = -1
			if result.Output = fmt.Sprintf("Health check exceeded timeout (%v)", timeout); out != "" {
				result.Output += ": " + out
			}
		case err != nil:
			result.ExitCode, result.Output = -1, err.Error()
		}
		grace := begin.Sub(started) < h.StartPeriod
		c.setHealth(result, cmp.Or(h.Retries, defaultRetries), grace)
	}
}

func (c *Container) paused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.State.Status == record.Paused
}

func (c *Container) health() apicontainer.HealthStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.State.Health == nil {
		return apicontainer.NoHealthcheck
	}
	return c.rec.State.Health.Status
}

// setHealth takes up the result of one check. During the grace period failures
// do not count.
func (c *Container) setHealth(result *apicontainer.HealthcheckResult, retries int, grace bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.State.Health == nil {
		return
	}
	h := *c.rec.State.Health // inspect may hold the old one
	h.Log = append(append([]*apicontainer.HealthcheckResult{}, h.Log[max(0, len(h.Log)-maxHealthLog+1):]...), result)
	before := h.Status
	switch {
	case result.ExitCode == 0:
		h.FailingStreak, h.Status = 0, apicontainer.Healthy
	case grace && h.Status == apicontainer.Starting:
	default:
		h.FailingStreak++
		if h.FailingStreak >= retries {
			h.Status = apicontainer.Unhealthy
		}
	}
	c.rec.State.Health = &h
	if h.Status != before {
		c.event(events.ActionHealthStatus + events.Action(": "+string(h.Status)))
	}
}

func itoa(n uint) string { return strconv.FormatUint(uint64(n), 10) }
