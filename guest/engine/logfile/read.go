package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// maxEntry bounds one line of a log file that is read, in bytes: six bytes for
// each of a piece's, and the rest of the object.
const maxEntry = 8*MaxLine + 64<<10

// ReadOptions select entries.
type ReadOptions struct {
	Since, Until time.Time // zero: no bound
	Tail         int       // only the last entries; negative: all
	Follow       bool      // go on until the log is closed
	Stream       string    // only this stream; empty: both
}

// errStop ends a read early without being its error.
var errStop = errors.New("logfile: stop")

// Read calls fn with the selected entries, oldest first. It returns fn's error,
// ctx's when it ends first, or nil at the end. The entry is fn's to keep.
func (l *Log) Read(ctx context.Context, o ReadOptions, fn func(Entry) error) error {
	parts, gen, err := l.openAll()
	if err != nil {
		return err
	}
	defer func() {
		for _, p := range parts {
			p.file.Close()
		}
	}()
	filtered := func(e Entry) error {
		switch {
		case !o.Until.IsZero() && e.Time.After(o.Until):
			return errStop
		case !o.Since.IsZero() && e.Time.Before(o.Since), o.Stream != "" && e.Stream != o.Stream:
			return nil
		}
		return fn(e)
	}
	first := 0
	if o.Tail >= 0 {
		if first, err = seekTail(parts, o.Tail); err != nil {
			return err
		}
	}
	for i, p := range parts[first:] {
		f, perr := p.plain()
		if err = perr; err != nil {
			break
		}
		r := &reader{file: f}
		if err = r.all(ctx, filtered); err != nil {
			break
		}
		if i == len(parts[first:])-1 && o.Follow {
			err = l.follow(ctx, r, gen, o.Until, filtered)
		}
	}
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// openAll opens the log's files, oldest first, and returns the generation of the
// newest.
func (l *Log) openAll() ([]*part, int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var parts []*part
	for i := l.opts.MaxFiles - 1; i >= 0; i-- {
		p, err := openPart(l.older(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			for _, p := range parts {
				p.file.Close()
			}
			return nil, 0, fmt.Errorf("read log: %w", err)
		}
		parts = append(parts, p)
	}
	return parts, l.gen, nil
}

// follow reads on as the log grows, from file to file as they are set aside.
func (l *Log) follow(ctx context.Context, r *reader, gen int, until time.Time, fn func(Entry) error) error {
	var timeout <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		timeout = timer.C
	}
	first := r.file
	defer func() {
		if r.file != first {
			r.file.Close()
		}
	}()
	for {
		changed, next, open := l.wait(gen)
		if err := r.all(ctx, fn); err != nil { // what came between the last read and wait
			return err
		}
		switch {
		case next != nil:
			f, err := next.plain()
			if err != nil {
				next.file.Close()
				return err
			}
			if r.file != first {
				r.file.Close()
			}
			*r = reader{file: f}
			gen++
			continue
		case !open:
			return nil
		}
		select {
		case <-changed:
		case <-timeout:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wait returns a channel that the next change closes, the file after the one of
// generation gen when there is one, and whether the log is being written.
func (l *Log) wait(gen int) (<-chan struct{}, *part, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for behind := l.gen - gen; behind > 0; behind-- {
		if p, err := openPart(l.older(behind - 1)); err == nil {
			return nil, p, true
		}
	}
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed, nil, l.file != nil
}

// seekTail returns the first of the parts that hold the last n lines, and sets its
// offset to where they begin.
func seekTail(parts []*part, n int) (first int, err error) {
	for i := len(parts) - 1; i >= 0; i-- {
		f, err := parts[i].plain()
		if err != nil {
			return 0, err
		}
		lines, err := seekLines(f, n)
		if err != nil {
			return 0, err
		}
		n -= lines
		if n <= 0 {
			return i, nil
		}
	}
	return 0, nil
}

// seekLines sets the file's offset to where its last n lines begin, and returns
// how many that are.
func seekLines(f *os.File, n int) (int, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n <= 0 {
		return 0, err
	}
	found := 0
	buf := make([]byte, 32<<10)
	for pos := end; pos > 0; {
		size := min(pos, int64(len(buf)))
		if _, err := f.ReadAt(buf[:size], pos-size); err != nil {
			return 0, err
		}
		for i := size - 1; i >= 0; i-- {
			at := pos - size + i
			if buf[i] != '\n' || at == end-1 {
				continue
			}
			if found++; found == n {
				_, err := f.Seek(at+1, io.SeekStart)
				return n, err
			}
		}
		pos -= size
	}
	if end > 0 {
		found++
	}
	_, err = f.Seek(0, io.SeekStart)
	return found, err
}

// reader reads a file's complete lines; what follows the last newline is kept
// for the next time.
type reader struct {
	file *os.File
	buf  []byte // read, not yet decoded
	skip bool   // in a line that is too long to be an entry
}

func (r *reader) all(ctx context.Context, fn func(Entry) error) error {
	chunk := make([]byte, 32<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.file.Read(chunk)
		r.buf = append(r.buf, chunk[:n]...)
		if ferr := r.lines(fn); ferr != nil {
			return ferr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
}

func (r *reader) lines(fn func(Entry) error) error {
	done := 0
	defer func() { r.buf = append(r.buf[:0], r.buf[done:]...) }()
	for {
		i := bytes.IndexByte(r.buf[done:], '\n')
		if i < 0 {
			if len(r.buf)-done > maxEntry {
				done, r.skip = len(r.buf), true
			}
			return nil
		}
		line := r.buf[done : done+i]
		done += i + 1
		if r.skip {
			r.skip = false
			continue
		}
		e, err := decodeEntry(line)
		if err != nil {
			continue // a torn or foreign line must not hide the others
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}
