package forward

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

func TestFolders(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, wire.SecretSize)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- Folders{}.Serve(t.Context(), l, func() []byte { return secret }, func(tag string) func(net.Conn) error {
			if tag != "host0" {
				return nil
			}
			return func(c net.Conn) error {
				_, err := io.WriteString(c, "served")
				return err
			}
		})
	}()
	for _, tt := range []struct {
		name, tag string
		secret    []byte
		want      string
	}{
		{"lent", "host0", secret, "served"},
		{"not lent", "host1", secret, ""},
		{"no tag", "", secret, ""},
		{"another secret", "host0", make([]byte, wire.SecretSize), ""},
	} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		c.Write(tt.secret)
		wire.WriteFrame(c, wire.FolderRequest{Tag: tt.tag})
		got, _ := io.ReadAll(c) // a refusal may be a reset
		if string(got) != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
		c.Close()
	}
	l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
