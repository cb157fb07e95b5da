package boot

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/guest/wire/framed"
	"github.com/berthvm/berth/guest/wire/muxed"
)

// link is the way to the host, which the kernel's command line tells: vsock, vsock
// in frames (guest/wire/framed), or one serial port for all (guest/wire/muxed). It
// is safe for concurrent use.
type link struct {
	framed bool
	log    *slog.Logger
	port   *bufio.Reader // of the serial port; nil with vsock
	pipe   *os.File      // the port

	mu     sync.Mutex // guards what follows
	serial *muxed.Session
}

// stream is one to the host: a file, or something made of one.
type stream interface {
	io.ReadWriteCloser
	SetDeadline(t time.Time) error
}

// openLink finds the way to the host. loadVsock is called where it is vsock.
func openLink(cmdline string, loadVsock func() error, log *slog.Logger) (*link, error) {
	if muxed.Requested(cmdline) {
		return openSerial(log)
	}
	if err := loadVsock(); err != nil {
		return nil, err
	}
	l := &link{framed: framed.Requested(cmdline)}
	if l.framed {
		return l, announceBoot()
	}
	return l, nil
}

// dial opens a stream to a port of the host, which may not listen yet.
func (l *link) dial(port uint32) (stream, error) {
	if l.port != nil {
		ctx, cancel := context.WithTimeout(context.Background(), helloPatience)
		defer cancel()
		return l.session().Dial(ctx, port)
	}
	f, err := dialHost(port, helloPatience)
	if err != nil {
		return nil, err
	}
	if l.framed {
		return framed.New(carrier{f}), nil
	}
	return f, nil
}

// file is dial for the kernel, which wants a socket: a vsock is one, and another
// stream gets one, with someone who carries the bytes.
func (l *link) file(port uint32) (*os.File, error) {
	s, err := l.dial(port)
	if err != nil {
		return nil, err
	}
	if f, ok := s.(*os.File); ok {
		return f, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		s.Close()
		return nil, os.NewSyscallError("socketpair", err)
	}
	go relay(s.(net.Conn), os.NewFile(uintptr(fds[1]), "stream"))
	return os.NewFile(uintptr(fds[0]), "stream"), nil
}

// relay carries bytes between a stream and a local socket until both directions
// have ended, and closes both.
func relay(s net.Conn, local *os.File) {
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(s, struct{ io.Reader }{local})
		if half, ok := s.(interface{ CloseWrite() error }); ok {
			err = errors.Join(err, half.CloseWrite())
		}
		done <- err
	}()
	_, err := io.Copy(struct{ io.Writer }{local}, struct{ io.Reader }{s})
	if raw, rerr := local.SyscallConn(); rerr == nil {
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
	if err != nil { // the other direction cannot end by itself any more
		local.Close()
		s.Close()
	}
	<-done
	local.Close()
	s.Close()
}

// openSerial begins the boot's session over the machine's serial port.
func openSerial(log *slog.Logger) (*link, error) {
	name, err := findSerial(muxed.PortName, helloPatience)
	if err != nil {
		return nil, err
	}
	port, err := os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	l := &link{log: log, port: bufio.NewReaderSize(port, 64<<10), pipe: port}
	if err := l.greet(); err != nil {
		port.Close()
		return nil, err
	}
	return l, nil
}

// greet begins a session over the serial port.
func (l *link) greet() error {
	ctx, cancel := context.WithTimeout(context.Background(), helloPatience)
	defer cancel()
	if err := muxed.Greet(ctx, l.port, l.pipe, random{}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serial = muxed.NewSession(muxed.Guest, l.port, l.pipe, func(in *muxed.Incoming) { go deliver(in, l.log) })
	return nil
}

// session is the one that carries streams now.
func (l *link) session() *muxed.Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.serial
}

// mend makes the way to the host good again, if it has noticed that the host is
// another one. An error is for good.
func (l *link) mend() error {
	if l.port == nil {
		return nil
	}
	s := l.session()
	select {
	case <-s.Done():
	default:
		return nil
	}
	s.Wait() // its reader leaves the port alone
	return l.greet()
}

// random is the kernel's source of random bytes.
type random struct{}

// Read implements io.Reader.
func (random) Read(p []byte) (int, error) { return unix.Getrandom(p, 0) }

// findSerial returns the device of the virtio-serial port with that name, which
// the kernel may still be about to find.
func findSerial(name string, patience time.Duration) (string, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		found, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", err
		}
		for _, file := range found {
			text, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(text)) == name {
				return "/dev/" + filepath.Base(filepath.Dir(file)), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("the machine has no serial port %q", name)
		}
	}
}

// deliver connects a stream of the host's to the program that listens on its port.
func deliver(in *muxed.Incoming, log *slog.Logger) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		log.Error("cannot take a stream of the host's", "err", err)
		in.Refuse()
		return
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: wire.StreamSocket(in.Port)})
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		in.Refuse() // nobody listens, or nobody does yet
		return
	}
	relay(in.Accept(), os.NewFile(uintptr(fd), "stream"))
}

// lend lets this machine's programs dial the host, over a socket: see
// wire.StreamsDir. Without a serial port they do so themselves.
func (l *link) lend(log *slog.Logger) error {
	if l.port == nil {
		return nil
	}
	if err := os.MkdirAll(wire.StreamsDir, 0o700); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: wire.HostSocket})
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("listen on %s: %w", wire.HostSocket, err)
	}
	go func() {
		for {
			conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			switch {
			case err == unix.EINTR, err == unix.ECONNABORTED:
			case err != nil:
				log.Error("cannot take a program's call to the host", "err", err)
				time.Sleep(100 * time.Millisecond) // out of descriptors, or memory
			default:
				go l.connect(os.NewFile(uintptr(conn), "stream"))
			}
		}
	}()
	return nil
}

// connect dials the host for a program, which names the port.
func (l *link) connect(local *os.File) {
	var port [4]byte
	if _, err := io.ReadFull(local, port[:]); err != nil {
		local.Close()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), helloPatience)
	defer cancel()
	s, err := l.session().Dial(ctx, binary.BigEndian.Uint32(port[:]))
	if err != nil {
		local.Close()
		return
	}
	if _, err := local.Write([]byte{wire.StreamOpen}); err != nil {
		s.Close()
		local.Close()
		return
	}
	relay(s, local)
}
