//go:build !windows

package hyperv

import (
	"context"
	"fmt"
	"net"

	"github.com/berthvm/berth/vm"
)

func windows() platform { return none{} }

type none struct{}

var errNone = fmt.Errorf("%w: Hyper-V is a part of Windows", vm.ErrUnavailable)

func (none) user() (string, error) { return "", errNone }

func (none) dial(context.Context, string, uint32) (net.Conn, error) { return nil, errNone }

func (none) listen(string, uint32) (net.Listener, error) { return nil, errNone }

func (none) pipe(string) (net.Listener, error) { return nil, errNone }
