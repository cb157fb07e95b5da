package stdio

import (
	"context"
	"errors"
	"io"
)

// ErrDetached is returned by Attach when the user typed the detach keys.
var ErrDetached = errors.New("detached")

// DefaultDetachKeys are ctrl-p, ctrl-q.
var DefaultDetachKeys = []byte{16, 17}

// Attachment is someone attached to a process.
type Attachment struct {
	Stdin io.Reader // nil: not attached
	// Interrupt makes a Read of Stdin return; it is called when the process has
	// ended. It must be set with Stdin.
	Interrupt func()
	// Out takes output. An error ends the attachment.
	Out func(stream Stream, p []byte) error

	TTY        bool
	DetachKeys []byte // looked for on a terminal; empty: the default
	// CloseStdin ends the process's standard input with Stdin; otherwise, and on
	// a terminal, the end of Stdin ends the attachment.
	CloseStdin bool
}

// Attach connects a to the process until the process or the attachment ends, or
// ctx does. reader was subscribed for it earlier, so that nothing printed since
// then is missed; Attach closes it. It joins what it starts.
func (s *Set) Attach(ctx context.Context, reader *Reader, a Attachment) error {
	defer reader.Close()
	stop := context.AfterFunc(ctx, reader.Close)
	defer stop()

	typed, gone := make(chan error, 1), make(chan struct{})
	if a.Stdin != nil {
		go func() {
			err := s.pump(a, gone)
			if ended := !a.CloseStdin || a.TTY; ended || errors.Is(err, ErrDetached) {
				reader.Close()
			}
			typed <- err
		}()
	} else {
		typed <- nil
	}
	var failed error
	for failed == nil {
		stream, p, err := reader.Next()
		if err != nil {
			break
		}
		failed = a.Out(stream, p)
	}
	close(gone)
	if a.Stdin != nil {
		a.Interrupt()
	}
	if err := <-typed; errors.Is(err, ErrDetached) {
		return err
	}
	return failed
}

// pump copies what the user types.
func (s *Set) pump(a Attachment, gone <-chan struct{}) error {
	in := a.Stdin
	if a.TTY {
		keys := a.DetachKeys
		if len(keys) == 0 {
			keys = DefaultDetachKeys
		}
		in = newDetachReader(in, keys)
	}
	_, err := io.Copy(stdinWriter{s, gone}, in)
	if errors.Is(err, ErrDetached) {
		return err
	}
	if a.CloseStdin && !a.TTY {
		s.closeStdin(gone)
	}
	if errors.Is(err, io.ErrClosedPipe) {
		err = nil // the process does not read any more, but may still print
	}
	return err
}

type stdinWriter struct {
	s    *Set
	gone <-chan struct{}
}

func (w stdinWriter) Write(p []byte) (int, error) { return w.s.writeStdin(w.gone, p) }
