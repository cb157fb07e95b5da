package boot

import (
	"bytes"
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

// host is the hello stream. connect comes first, and again is for the same
// goroutine; all else is safe for concurrent use then.
type host struct {
	phases  *phases
	welcome wire.Welcome      // once connected
	orders  <-chan wire.Order // of the stream; closed when it breaks

	mu      sync.Mutex // guards what follows
	wake    *sync.Cond
	stream  stream // the one that notes go to
	pending []wire.Note
	writing bool
}

func newHost(p *phases) *host {
	h := &host{phases: p}
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
	h.begin(stream)
	return nil
}

// begin uses a stream whose hello was answered.
func (h *host) begin(s stream) {
	orders := make(chan wire.Order)
	h.mu.Lock()
	if h.stream != nil {
		h.pending, h.writing = nil, false // they were for another host
	}
	h.stream, h.orders = s, orders
	h.wake.Broadcast() // the writer before leaves
	h.mu.Unlock()
	go h.write(s)
	go h.read(s, orders)
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

// greet says hello and takes the Welcome. One that has a secret already keeps it,
// and all else that it was told.
func (h *host) greet(stream stream, version string) error {
	if err := stream.SetDeadline(time.Now().Add(helloPatience)); err != nil {
		return err
	}
	mine := h.welcome.Secret
	err := wire.WriteFrame(stream, wire.Hello{Protocol: wire.Protocol, Version: version, Kernel: release(), Arch: runtime.GOARCH, Secret: mine})
	if err != nil {
		return fmt.Errorf("say hello to the host: %w", err)
	}
	var w wire.Welcome
	if err := wire.ReadFrame(stream, &w); err != nil {
		return fmt.Errorf("read the host's welcome: %w", err)
	}
	switch {
	case w.Error == "" && mine != nil && !bytes.Equal(w.Secret, mine):
		return errors.New("the host does not know this boot")
	case w.Error != "":
		return fmt.Errorf("the host refuses this guest: %s", w.Error)
	case w.Protocol != wire.Protocol:
		return fmt.Errorf("the host speaks protocol %d, this guest %d: rebuild the guest image", w.Protocol, wire.Protocol)
	case len(w.Secret) != wire.SecretSize:
		return fmt.Errorf("the host sent a secret of %d bytes, want %d", len(w.Secret), wire.SecretSize)
	}
	if mine == nil {
		h.welcome = w
	}
	h.welcome.Time = w.Time
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

func (h *host) write(stream stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		for len(h.pending) == 0 && h.stream == stream {
			h.wake.Wait()
		}
		if h.stream != stream {
			return
		}
		notes := h.pending
		h.pending, h.writing = nil, true
		h.mu.Unlock()
		var err error
		for _, n := range notes {
			err = errors.Join(err, wire.WriteFrame(stream, n))
		}
		h.mu.Lock()
		if h.stream != stream {
			return
		}
		h.writing = false
		h.wake.Broadcast()
		if err != nil {
			return // the reader finds out, too
		}
	}
}

func (h *host) read(stream io.ReadCloser, orders chan<- wire.Order) {
	defer close(orders)
	defer stream.Close()
	for {
		var order wire.Order
		if err := wire.ReadFrame(stream, &order); err != nil {
			return
		}
		orders <- order
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
