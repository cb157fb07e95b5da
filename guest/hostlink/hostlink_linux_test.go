package hostlink

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

func TestOf(t *testing.T) {
	for cmdline, want := range map[string]Way{
		"console=ttyS0 quiet": Vsock, "berth.streams=framed": Framed, "a berth.streams=muxed b": Serial, "xberth.streams=muxed": Vsock,
	} {
		if got := Of(cmdline); got != want {
			t.Errorf("Of(%q) = %s, want %s", cmdline, got, want)
		}
	}
}

func TestDialSocket(t *testing.T) {
	name := filepath.Join(t.TempDir(), "host")
	l, err := listenSocket(name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // PID 1, which knows port 5, is deaf on 6 and mad on 7
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var port [4]byte
			io.ReadFull(c, port[:])
			switch binary.BigEndian.Uint32(port[:]) {
			case 5:
				c.Write([]byte{wire.StreamOpen})
				io.Copy(c, c)
				c.Close()
			case 6:
			case 7:
				c.Write([]byte{99})
				c.Close()
			default:
				c.Close()
			}
		}
	}()
	c, err := dialSocket(t.Context(), name, 5)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("hello"))
	c.(*net.UnixConn).CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("echo: %q, %v", got, err)
	}
	for _, port := range []uint32{7, 8} {
		if c, err := dialSocket(t.Context(), name, port); err == nil {
			c.Close()
			t.Errorf("port %d: the dial succeeded", port)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := dialSocket(ctx, name, 6); err != context.DeadlineExceeded {
		t.Errorf("without an answer: %v", err)
	}
}

// TestListenAgain takes the place of a socket that a dead engine has left.
func TestListenAgain(t *testing.T) {
	name := filepath.Join(t.TempDir(), "5")
	first, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	first.SetUnlinkOnClose(false)
	first.Close()
	second, err := listenSocket(name)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}
