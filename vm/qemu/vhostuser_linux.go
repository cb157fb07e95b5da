package qemu

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/virtiofs"
	"github.com/berthvm/berth/vm/internal/virtionet"
	"github.com/berthvm/berth/vm/internal/virtiovsock"
)

// hasVhostUser says that QEMU has it on this host.
const hasVhostUser = true

const guestCID = 3

// vsock is a virtio vsock device as streams.
type vsock struct{ *virtiovsock.Device }

func newVsock(log *slog.Logger) streams {
	return vsock{virtiovsock.New(virtiovsock.Options{GuestCID: guestCID, Log: log})}
}

// Serve implements streams.
func (v vsock) Serve(ctx context.Context, conn net.Conn) error {
	return v.Device.Serve(ctx, conn.(*net.UnixConn))
}

// Reset implements streams.
func (v vsock) Reset(time.Time) { v.Device.Reset() }

// Resume implements streams. No machine with a vsock was ever saved.
func (v vsock) Resume() {}

// Close implements streams.
func (v vsock) Close() { v.Device.Close() }

// overSocket is a device as backend.
type overSocket func(ctx context.Context, conn *net.UnixConn) error

// Serve implements backend.
func (serve overSocket) Serve(ctx context.Context, conn net.Conn) error {
	return serve(ctx, conn.(*net.UnixConn))
}

func newNetwork(n vm.OffloadNetwork, log *slog.Logger) backend {
	return overSocket(virtionet.New(n, log).Serve)
}

func newFolder(s vm.Share, log *slog.Logger) (backend, error) {
	if s.Server == nil {
		return nil, fmt.Errorf("share %q has no server", s.Tag)
	}
	d, err := virtiofs.New(s.Tag, s.Server, log)
	if err != nil {
		return nil, fmt.Errorf("share %q: %w", s.Tag, err)
	}
	return overSocket(d.Serve), nil
}
