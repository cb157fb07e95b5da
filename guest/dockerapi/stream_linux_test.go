package dockerapi

import (
	"net"
	"testing"
	"time"
)

// sink is a client's end that notes when something came.
type sink struct {
	net.Conn
	at []time.Time
}

func (s *sink) Write(p []byte) (int, error) {
	s.at = append(s.at, time.Now())
	return len(p), nil
}

// TestHeadAlone: output does not follow the answer's head so closely that a client
// reads both at once.
func TestHeadAlone(t *testing.T) {
	s := &sink{}
	h := &hijacked{Conn: s, began: time.Now()}
	for range 2 {
		if n, err := h.Write([]byte("out")); n != 3 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if len(s.at) != 2 || s.at[0].Sub(h.began) < headAlone {
		t.Errorf("the head was sent at %v, output at %v", h.began, s.at)
	}
}
