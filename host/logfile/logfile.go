// Package logfile keeps a log of bounded size: a file and a few older ones
// beside it, path.1 being the youngest. A log may be limited in rate too, for
// writers that are not trusted, and may be followed while it grows.
package logfile

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"
)

const (
	// MaxBytes is where a file ends and the next begins.
	MaxBytes = 1 << 20
	// MaxFiles is how many files there are at most, the current one included.
	MaxFiles = 5
)

// Log is an open log. It is safe for concurrent use. Writing never fails for
// want of disk space: what cannot be written is dropped.
type Log struct {
	path  string
	limit limiter

	mu        sync.Mutex // guards all below
	file      *os.File
	size      int64
	followers map[*follower]struct{}
}

// Open appends to the log at path. bytesPerSecond limits it, with a burst of
// one file; zero does not limit.
func Open(path string, bytesPerSecond int64) (*Log, error) {
	l := &Log{path: path, limit: limiter{perSecond: bytesPerSecond, tokens: MaxBytes, last: time.Now()}, followers: map[*follower]struct{}{}}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("cannot open the log: %w", err)
	}
	return l, nil
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write appends p whole to one file. It reports success even when the disk is
// full, since whoever logs has nothing better to do.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return 0, os.ErrClosed
	}
	n := len(p)
	dropped, ok := l.limit.take(int64(n), time.Now())
	if !ok {
		return n, nil
	}
	if dropped > 0 {
		p = append(fmt.Appendf(nil, "\n[%d bytes dropped: too fast]\n", dropped), p...)
	}
	if l.size > 0 && l.size+int64(len(p)) > MaxBytes {
		l.rotate()
	}
	if l.file != nil {
		written, _ := l.file.Write(p)
		l.size += int64(written)
	}
	for f := range l.followers {
		f.offer(p)
	}
	return n, nil
}

// rotate moves every file one further; the oldest is overwritten.
func (l *Log) rotate() {
	l.file.Close()
	l.file = nil
	for i := MaxFiles - 1; i > 0; i-- {
		os.Rename(name(l.path, i-1), name(l.path, i)) // what is missing leaves a gap
	}
	if err := l.open(); err != nil {
		l.file, l.size = nil, 0
	}
}

func name(path string, i int) string {
	if i == 0 {
		return path
	}
	return path + "." + strconv.Itoa(i)
}

// Close ends the log and everybody who follows it.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	for f := range l.followers {
		close(f.data)
	}
	clear(l.followers)
	return err
}

// Follow copies the last lines of the log to w (all when tail is negative), and
// then what comes until ctx or the log ends. A w that is too slow misses lines,
// and is told.
func (l *Log) Follow(ctx context.Context, tail int, w io.Writer) error {
	f := &follower{data: make(chan []byte, 256)}
	l.mu.Lock()
	if l.file == nil {
		l.mu.Unlock()
		return Tail(l.path, tail, w)
	}
	past, err := read(l.path, tail) // nothing is written meanwhile, so nothing is lost or twice
	l.followers[f] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.followers, f)
		l.mu.Unlock()
	}()
	if err != nil {
		return err
	}
	if _, err := w.Write(past); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case p, ok := <-f.data:
			if !ok {
				return nil
			}
			if _, err := w.Write(p); err != nil {
				return err
			}
		}
	}
}

// Tail copies the last lines of the log to w; all when tail is negative.
func (l *Log) Tail(tail int, w io.Writer) error { return Tail(l.path, tail, w) }

type follower struct {
	data   chan []byte
	missed bool
}

// offer never blocks. The log's mutex is held.
func (f *follower) offer(p []byte) {
	p = bytes.Clone(p)
	if f.missed {
		p = append([]byte("\n[lines missing: the reader was too slow]\n"), p...)
	}
	select {
	case f.data <- p:
		f.missed = false
	default:
		f.missed = true
	}
}

// Tail copies the last lines of the log at path to w; all when tail is negative.
// A log that does not exist is empty.
func Tail(path string, tail int, w io.Writer) error {
	past, err := read(path, tail)
	if err != nil {
		return err
	}
	_, err = w.Write(past)
	return err
}

// read holds at most MaxFiles*MaxBytes in memory.
func read(path string, tail int) ([]byte, error) {
	var all []byte
	for i := range MaxFiles {
		body, err := os.ReadFile(name(path, i))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the log: %w", err)
		}
		all = append(body, all...)
		if tail >= 0 && bytes.Count(all, []byte{'\n'}) > tail {
			break
		}
	}
	if tail < 0 {
		return all, nil
	}
	end := len(all)
	if end > 0 && all[end-1] == '\n' {
		end--
	}
	for ; tail > 0; tail-- {
		if end = bytes.LastIndexByte(all[:max(end, 0)], '\n'); end < 0 {
			return all, nil
		}
	}
	if end == len(all) || end == len(all)-1 && all[end] == '\n' {
		return nil, nil
	}
	return all[end+1:], nil
}

// limiter is a token bucket without a clock of its own.
type limiter struct {
	perSecond int64 // 0: no limit
	tokens    int64
	last      time.Time
	dropped   int64
}

// take says whether n bytes may pass now and, when they may, how many were
// dropped since the last that did.
func (l *limiter) take(n int64, now time.Time) (dropped int64, ok bool) {
	if l.perSecond == 0 {
		return 0, true
	}
	earned := int64(now.Sub(l.last).Seconds() * float64(l.perSecond))
	if earned > 0 {
		l.tokens = min(l.tokens+earned, MaxBytes)
		l.last = now
	}
	if n > l.tokens {
		l.dropped += n
		return 0, false
	}
	l.tokens -= n
	dropped, l.dropped = l.dropped, 0
	return dropped, true
}
