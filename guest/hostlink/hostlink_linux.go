package hostlink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/guest/wire/framed"
	"github.com/berthvm/berth/guest/wire/muxed"
)

// Way is how streams get to the host and back.
type Way string

// The ways.
const (
	Vsock  Way = "vsock"
	Framed Way = "framed vsock"
	Serial Way = "serial port"
)

// timeout bounds a dial: the host answers at once.
const timeout = 15 * time.Second

// Of tells the way from the kernel's command line.
func Of(cmdline string) Way {
	switch {
	case muxed.Requested(cmdline):
		return Serial
	case framed.Requested(cmdline):
		return Framed
	}
	return Vsock
}

// Listen takes the host's streams to a port, and nobody else's.
func (w Way) Listen(port uint32) (net.Listener, error) {
	if w == Serial {
		return listenSocket(wire.StreamSocket(port))
	}
	l, err := vsock.Listen(port, nil)
	if err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	return hostOnly{l, w == Framed}, nil
}

// Dialer returns what opens streams to a port of the host.
func (w Way) Dialer(port uint32) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		if w == Serial {
			return dialSocket(ctx, wire.HostSocket, port)
		}
		c, err := vsock.Dial(wire.HostCID, port, nil)
		if err != nil {
			return nil, err
		}
		if w == Framed {
			return framed.New(c), nil
		}
		return c, nil
	}
}

// listenSocket listens where PID 1 connects. A socket that an engine before this
// one has left is replaced.
func listenSocket(name string) (net.Listener, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", name)
}

// dialSocket has PID 1 open a stream.
func dialSocket(ctx context.Context, name string, port uint32) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, port)); err != nil {
		return nil, err
	}
	var answer [1]byte
	_, err = io.ReadFull(c, answer[:])
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == io.EOF:
		return nil, fmt.Errorf("port %d: the host refuses", port)
	case err != nil:
		return nil, err
	case answer[0] != wire.StreamOpen:
		return nil, fmt.Errorf("port %d: PID 1 answers %d", port, answer[0])
	}
	return c, nil
}

// hostOnly accepts vsock connections of the host's.
type hostOnly struct {
	net.Listener
	inFrames bool
}

// Accept implements net.Listener.
func (l hostOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*vsock.Addr); ok && a.ContextID == wire.HostCID {
			if l.inFrames {
				return framed.New(c), nil
			}
			return c, nil
		}
		c.Close()
	}
}
