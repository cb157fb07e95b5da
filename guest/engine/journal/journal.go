// Package journal keeps the engine's events: in two files, so that they outlive
// the engine, and for whoever subscribed. A Journal is safe for concurrent use.
package journal

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
)

const (
	// maxFile is the size at which the file is set aside, in bytes; one older
	// file is kept.
	maxFile = 1 << 20
	// queue is how many events a subscriber may be behind before it is cut off.
	queue = 1024
)

// Journal is a log of events. Close it to end its subscriptions.
type Journal struct {
	path string

	mu     sync.Mutex
	file   *os.File
	size   int64
	last   int64 // time of the newest event, in ns
	subs   map[*Subscription]struct{}
	closed bool
}

// Subscription is a stream of new events.
type Subscription struct {
	// C carries events in order. It is closed when the journal is, when Close is
	// called, and when the reader is too far behind.
	C <-chan events.Message

	c chan events.Message
	j *Journal
}

// Open opens the journal in dir, which exists. A last line that a crash cut off
// is left out.
func Open(dir string) (*Journal, error) {
	j := &Journal{path: filepath.Join(dir, "events.jsonl"), subs: map[*Subscription]struct{}{}}
	file, err := os.OpenFile(j.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the event journal: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("open the event journal: %w", err)
	}
	j.file, j.size = file, info.Size()
	if j.size > 0 {
		tail := make([]byte, 1)
		if _, err := file.ReadAt(tail, j.size-1); err == nil && tail[0] != '\n' {
			n, _ := file.Write([]byte("\n"))
			j.size += int64(n)
		}
	}
	return j, nil
}

// Publish records an event and hands it to the subscribers. It sets the times
// that are missing, so that no two events have the same. A full disk loses the
// record, not the event.
func (j *Journal) Publish(m events.Message) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	if m.TimeNano == 0 {
		m.TimeNano = max(time.Now().UnixNano(), j.last+1)
	}
	j.last = m.TimeNano
	m.Time = m.TimeNano / int64(time.Second)
	if line, err := json.Marshal(m); err == nil {
		j.append(append(line, '\n'))
	}
	for s := range j.subs {
		select {
		case s.c <- m:
		default:
			delete(j.subs, s)
			close(s.c)
		}
	}
}

func (j *Journal) append(line []byte) {
	if j.size+int64(len(line)) > maxFile {
		if err := os.Rename(j.path, j.path+".1"); err == nil {
			if next, err := os.OpenFile(j.path, os.O_CREATE|os.O_RDWR|os.O_APPEND|os.O_TRUNC, 0o600); err == nil {
				j.file.Close()
				j.file, j.size = next, 0
			}
		}
	}
	n, _ := j.file.Write(line)
	j.size += int64(n)
}

// Subscribe returns the events from since on that are recorded, and a
// subscription to those that follow: together without gap or repetition. A zero
// since means no past events.
func (j *Journal) Subscribe(since time.Time) ([]events.Message, *Subscription, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := &Subscription{c: make(chan events.Message, queue), j: j}
	s.C = s.c
	if j.closed {
		close(s.c)
		return nil, s, nil
	}
	var past []events.Message
	if !since.IsZero() {
		for _, name := range []string{j.path + ".1", j.path} {
			var err error
			if past, err = readSince(past, name, since.UnixNano()); err != nil {
				return nil, nil, err
			}
		}
	}
	j.subs[s] = struct{}{}
	return past, s, nil
}

// Subscribers is how many subscriptions are open.
func (j *Journal) Subscribers() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.subs)
}

func readSince(past []events.Message, name string, since int64) ([]events.Message, error) {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return past, nil
	}
	if err != nil {
		return past, fmt.Errorf("read the event journal: %w", err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxFile)
	for lines.Scan() {
		var m events.Message
		if json.Unmarshal(lines.Bytes(), &m) == nil && m.TimeNano >= since {
			past = append(past, m)
		}
	}
	if err := lines.Err(); err != nil {
		return past, fmt.Errorf("read the event journal: %w", err)
	}
	return past, nil
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	if _, open := s.j.subs[s]; open {
		delete(s.j.subs, s)
		close(s.c)
	}
}

// Close ends all subscriptions and closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	for s := range j.subs {
		delete(j.subs, s)
		close(s.c)
	}
	return j.file.Close()
}
