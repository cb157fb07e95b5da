package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/docker/buildx/driver"
	"github.com/docker/buildx/util/progress"
)

// nameRemote has the driver of builders elsewhere say which one it could not reach.
func nameRemote() error {
	f, err := driver.GetFactory("remote", false)
	if err != nil {
		return err
	}
	driver.Register(remoteFactory{f})
	return nil
}

type remoteFactory struct{ driver.Factory }

func (f remoteFactory) New(ctx context.Context, cfg driver.InitConfig) (driver.Driver, error) {
	d, err := f.Factory.New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return remote{d, f, cfg.EndpointAddr}, nil
}

type remote struct {
	driver.Driver
	factory driver.Factory
	address string
}

func (r remote) Factory() driver.Factory { return r.factory }

func (r remote) Bootstrap(ctx context.Context, l progress.Logger) error {
	err := r.Driver.Bootstrap(ctx, l)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("cannot reach the builder at %s: %w", r.address, err)
	}
	return err
}
