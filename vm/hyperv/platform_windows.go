package hyperv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/Microsoft/go-winio"
	"github.com/Microsoft/go-winio/pkg/guid"
	sys "golang.org/x/sys/windows"

	"github.com/berthvm/berth/vm/hyperv/compute"
)

func windows() platform { return native{} }

// native is this Windows.
type native struct{}

func (native) user() (string, error) {
	user, err := sys.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return "", err
	}
	return user.User.Sid.String(), nil
}

// address is a socket of a machine's. The guest's AF_VSOCK ports are services of
// Hyper-V's with well-known ids.
func address(machine string, port uint32) (*winio.HvsockAddr, error) {
	id, err := guid.FromString(machine)
	if err != nil {
		return nil, err
	}
	return &winio.HvsockAddr{VMID: id, ServiceID: winio.VsockServiceID(port)}, nil
}

func (native) dial(ctx context.Context, machine string, port uint32) (net.Conn, error) {
	a, err := address(machine, port)
	if err != nil {
		return nil, err
	}
	c, err := winio.Dial(ctx, a)
	if errors.Is(err, sys.WSAECONNREFUSED) || errors.Is(err, sys.WSAETIMEDOUT) {
		return nil, fmt.Errorf("dial the guest's vsock port %d: %w", port, syscall.ECONNREFUSED)
	}
	if err != nil {
		return nil, err // not a nil *HvsockConn in an interface
	}
	return c, nil
}

func (native) listen(machine string, port uint32) (net.Listener, error) {
	a, err := address(machine, port)
	if err != nil {
		return nil, err
	}
	l, err := winio.ListenHvsock(a)
	if err != nil {
		return nil, err
	}
	return listener{l}, nil
}

// listener says net.ErrClosed when it is closed.
type listener struct{ *winio.HvsockListener }

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.HvsockListener.Accept()
	if errors.Is(err, os.ErrClosed) {
		return nil, net.ErrClosed
	}
	return c, err
}

// machines is the SID of all virtual machines' worker processes.
const machines = "S-1-5-83-0"

func (n native) pipe(name string) (net.Listener, error) {
	user, err := n.user()
	if err != nil {
		return nil, err
	}
	return winio.ListenPipe(name, &winio.PipeConfig{SecurityDescriptor: compute.PipeAccess(user, machines)})
}
