//go:build !windows

package compute

import (
	"context"
	"fmt"

	"github.com/berthvm/berth/vm"
)

// Local is the Host Compute System of this Windows.
func Local() Service { return none{} }

type none struct{}

func (none) Probe(context.Context) (string, error) {
	return "", fmt.Errorf("%w: the Host Compute System is a part of Windows", vm.ErrUnavailable)
}

func (n none) Create(ctx context.Context, _ Design) (System, error) {
	_, err := n.Probe(ctx)
	return nil, err
}
