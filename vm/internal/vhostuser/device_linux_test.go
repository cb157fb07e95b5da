package vhostuser

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mirror is a device that copies what it reads into what it may write of the
// same chain.
type mirror struct {
	queues int

	mu     sync.Mutex
	events []string // "fresh", "resumed", "stop"
	err    error    // why a queue broke
	most   int      // chains in one batch
	got    [][]byte // what was read
	held   []*Chain // what hold kept back
	hold   bool
	q      *Queue
}

func (m *mirror) Start(queues []*Queue, _ uint64, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.q = queues[0]
	if fresh {
		m.events = append(m.events, "fresh")
	} else {
		m.events = append(m.events, "resumed")
	}
}

func (m *mirror) Stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, "stop")
}

func (m *mirror) HandleQueue(q *Queue) {
	for q.Begin() {
		q.DisableKicks()
		m.batch(q)
		more := q.EnableKicks()
		err := q.Err()
		q.End()
		if err != nil {
			m.mu.Lock()
			m.err = err
			m.mu.Unlock()
		}
		if !more {
			return
		}
	}
}

func (m *mirror) batch(q *Queue) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Chain{}
	for n := 1; q.Pop(c); n++ {
		m.most = max(m.most, n)
		b := make([]byte, min(c.Readable(), 1<<20))
		m.got = append(m.got, b[:c.Read(b)])
		if len(m.got) > 64 {
			m.got = m.got[1:]
		}
		if m.hold {
			m.held = append(m.held, c)
			c = &Chain{}
			continue
		}
		q.Push(c, uint32(c.Write(b)))
	}
}

func (m *mirror) said() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.events)
}

// session is a front-end with a served mirror.
type session struct {
	*vhosttest.FrontEnd
	dev    *mirror
	served chan error
}

func serve(t testing.TB, memory int) *session {
	t.Helper()
	front, back := vhosttest.Pair(t)
	s := &session{FrontEnd: vhosttest.New(t, front, memory), dev: &mirror{queues: 2}, served: make(chan error, 1)}
	spec := Spec{Features: 1 << 5, Queues: s.dev.queues, Config: []byte{1, 2, 3, 4, 5, 6, 7, 8}}
	go func() {
		s.served <- Serve(context.Background(), back, spec, s.dev, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		s.Close()
		select {
		case <-s.served:
		case <-time.After(5 * time.Second):
			t.Error("Serve does not return")
		}
	})
	return s
}

// result waits for the end of Serve.
func (s *session) result(t testing.TB) error {
	t.Helper()
	select {
	case err := <-s.served:
		s.served <- err
		return err
	case <-time.After(5 * time.Second):
		t.Fatal("Serve does not return")
		return nil
	}
}
