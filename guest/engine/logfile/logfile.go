// Package logfile keeps what a container prints, in docker's json-file format:
// one JSON object per line of output, in a file that is set aside when it has
// grown, with a bounded number of older files beside it, which may be compressed.
//
// A Log is safe for concurrent use. Readers follow it without polling: an append
// wakes them.
package logfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// MaxLine is the largest piece of a line that becomes one entry, in bytes.
// Longer lines are several entries, of which only the last ends in a newline.
const MaxLine = 16 << 10

// Entry is one entry of a log.
type Entry struct {
	Line   []byte // with its newline, if the line ended here
	Stream string // "stdout" or "stderr"
	Time   time.Time
	Attrs  map[string]string
}

// Log is the log of one container. The zero value is not useful; see New.
type Log struct {
	path string
	opts Options

	mu      sync.Mutex
	file    *os.File // nil when not open for writing
	size    int64
	gen     int           // how often the file was set aside
	changed chan struct{} // closed by the next change, when someone waits
	packing *packing      // nil when none goes on
	buf     []byte
}

// New returns the log whose newest file is path. Nothing is opened yet.
func New(path string, opts Options) *Log {
	return &Log{path: path, opts: opts}
}

// Path is the name of the newest file.
func (l *Log) Path() string { return l.path }

// Open opens the log for appending. An entry that a crash cut off is dropped
// from the end.
func (l *Log) Open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		return nil
	}
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	size, err := dropTorn(file)
	if err != nil {
		file.Close()
		return fmt.Errorf("open log: %w", err)
	}
	l.file, l.size = file, size
	l.pack()
	return nil
}

// dropTorn cuts what follows the last newline and returns the file's size.
func dropTorn(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	buf := make([]byte, 4096)
	for end := size; end > 0; {
		n := min(end, int64(len(buf)))
		if _, err := file.ReadAt(buf[:n], end-n); err != nil {
			return 0, err
		}
		for i := n - 1; i >= 0; i-- {
			if buf[i] == '\n' {
				keep := end - n + i + 1
				if keep == size {
					return size, nil
				}
				return keep, file.Truncate(keep)
			}
		}
		end -= n
	}
	if size == 0 {
		return 0, nil
	}
	return 0, file.Truncate(0)
}

// Append writes entries and wakes the readers that follow. It returns an error
// of the file system, after which the entries are lost.
func (l *Log) Append(entries ...Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return fs.ErrClosed
	}
	l.buf = l.buf[:0]
	for _, e := range entries {
		if len(l.opts.Attrs) > 0 {
			e.Attrs = l.opts.Attrs
		}
		l.buf = appendEntry(l.buf, e)
	}
	var err error
	if l.opts.MaxSize > 0 && l.size > 0 && l.size+int64(len(l.buf)) > l.opts.MaxSize {
		err = l.rotate()
	}
	n, werr := l.file.Write(l.buf)
	if werr != nil && n > 0 {
		_ = l.file.Truncate(l.size) // no reader may see half an entry
		n = 0
	}
	l.size += int64(n)
	if cap(l.buf) > 4*MaxLine {
		l.buf = nil
	}
	l.wake()
	return errors.Join(err, werr)
}

func (l *Log) rotate() error {
	l.packed()
	for i := l.opts.MaxFiles - 1; i > 0; i-- {
		for _, suffix := range []string{"", packedSuffix} {
			err := os.Remove(l.older(i) + suffix)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				err = os.Rename(l.older(i-1)+suffix, l.older(i)+suffix)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("rotate log: %w", err)
			}
		}
	}
	if err := os.Remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("rotate log: %w", err)
	}
	next, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND|os.O_TRUNC, 0o640)
	if err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	l.file.Close()
	l.file, l.size = next, 0
	l.gen++
	l.pack()
	return nil
}

func (l *Log) older(i int) string {
	if i == 0 {
		return l.path
	}
	return l.path + "." + strconv.Itoa(i)
}

func (l *Log) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Close ends writing: readers that follow come to the end. The log can be
// opened again.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopPacking()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	l.wake()
	return err
}

// Remove deletes the log's files.
func (l *Log) Remove() error {
	err := l.Close()
	names, _ := filepath.Glob(l.path + ".*")
	for _, name := range append(names, l.path) {
		if rerr := os.Remove(name); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
