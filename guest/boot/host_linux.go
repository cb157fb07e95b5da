package boot

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/guest/wire/framed"
)

const (
	// helloPatience is how long the host may take to listen and to answer: it
	// listens before it starts the machine.
	helloPatience = 20 * time.Second
	helloRetry    = 50 * time.Millisecond
)

// host is the hello stream. connect comes first; then everything is safe for
// concurrent use.
type host struct {
	phases  *phases
	welcome wire.Welcome    // once connected
	orders  chan wire.Order // closed when the stream breaks

	mu      sync.Mutex // guards what follows
	wake    *sync.Cond
	pending []wire.Note
	writing bool
}

func newHost(p *phases) *host {
	h := &host{phases: p, orders: make(chan wire.Order)}
	h.wake = sync.NewCond(&h.mu)
	return h
}

// connect says hello and takes the Welcome.
func (h *host) connect(version string, l *link) error {
	stream, err := l.dial(wire.PortHelloHost)
	if err != nil {
		return err
	}
	if err := h.greet(stream, version); err != nil {
		stream.Close()
		return err
	}
	h.phases.connect(h.note)
	go h.write(stream)
	go h.read(stream)
	return nil
}

// announceBoot tells the host that this is a new boot, and waits until it knows.
func announceBoot() error {
	f, err := dialHost(framed.BootPort, helloPatience)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.SetDeadline(time.Now().Add(helloPatience)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, framed.New(carrier{f})); err != nil {
		return fmt.Errorf("tell the host that the machine has booted: %w", err)
	}
	return nil
}

// carrier is a vsock stream as a net.Conn, whose addresses nobody asks for.
type carrier struct{ *os.File }

// LocalAddr implements net.Conn.
func (carrier) LocalAddr() net.Addr { return nil }

// RemoteAddr implements net.Conn.
func (carrier) RemoteAddr() net.Addr { return nil }

func (h *host) greet(stream stream, version string) error {
	if err := stream.SetDeadline(time.Now().Add(helloPatience)); err != nil {
		return err
	}
	err := wire.WriteFrame(stream, wire.Hello{Protocol: wire.Protocol, Version: version, Kernel: release(), Arch: runtime.GOARCH})
	if err != nil {
		return fmt.Errorf("say hello to the host: %w", err)
	}
	if err := wire.ReadFrame(stream, &h.welcome); err != nil {
		return fmt.Errorf("read the host's welcome: %w", err)
	}
	switch w := h.welcome; {
	case w.Error != "":
		return fmt.Errorf("the host refuses this guest: %s", w.Error)
	case w.Protocol != wire.Protocol:
		return fmt.Errorf("the host speaks protocol %d, this guest %d: rebuild the guest image", w.Protocol, wire.Protocol)
	case len(w.Secret) != wire.SecretSize:
		return fmt.Errorf("the host sent a secret of %d bytes, want %d", len(w.Secret), wire.SecretSize)
	}
	return stream.SetDeadline(time.Time{})
}

// release is the kernel's, as uname -r prints it.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// note sends n after those before it, without blocking.
func (h *host) note(n wire.Note) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pending = append(h.pending, n)
	h.wake.Broadcast()
}

func (h *host) reply(id uint64, err error) {
	r := wire.Reply{ID: id}
	if err != nil {
		r.Error = err.Error()
	}
	h.note(wire.Note{Reply: &r})
}

// flush waits until all notes are written, or for at most the given time.
func (h *host) flush(patience time.Duration) {
	timer := time.AfterFunc(patience, h.wake.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(patience)
	h.mu.Lock()
	defer h.mu.Unlock()
	for (len(h.pending) > 0 || h.writing) && time.Now().Before(deadline) {
		h.wake.Wait()
	}
}

func (h *host) write(stream io.Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		for len(h.pending) == 0 {
			h.wake.Wait()
		}
		notes := h.pending
		h.pending, h.writing = nil, true
		h.mu.Unlock()
		var err error
		for _, n := range notes {
			err = errors.Join(err, wire.WriteFrame(stream, n))
		}
		h.mu.Lock()
		h.writing = false
		h.wake.Broadcast()
		if err != nil {
			return // the reader finds out, too
		}
	}
}

func (h *host) read(stream io.ReadCloser) {
	defer close(h.orders)
	defer stream.Close()
	for {
		var order wire.Order
		if err := wire.ReadFrame(stream, &order); err != nil {
			return
		}
		h.orders <- order
	}
}

// dialHost connects to a vsock port of the host. It tries again while the host
// does not listen yet.
func dialHost(port uint32, patience time.Duration) (*os.File, error) {
	deadline := time.Now().Add(patience)
	for {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open a vsock socket: %w", err)
		}
		err = unix.Connect(fd, &unix.SockaddrVM{CID: wire.HostCID, Port: port})
		if err == nil {
			if err := unix.SetNonblock(fd, true); err != nil {
				unix.Close(fd)
				return nil, err
			}
			return os.NewFile(uintptr(fd), "vsock"), nil
		}
		unix.Close(fd)
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("connect to the host's vsock port %d: %w", port, err)
		}
		time.Sleep(helloRetry)
	}
}
