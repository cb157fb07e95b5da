package engine

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"github.com/berthvm/berth/guest/engine/logfile"
	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/stdio"
)

// Attached is what a client attaches with. Fields that stdio.Attachment has too
// mean the same.
type Attached struct {
	Stdin          io.Reader
	Interrupt      func()
	Stdout, Stderr bool
	Stream         bool // what comes from now on
	Logs           bool // what came before
	DetachKeys     []byte
	// Begin is called when nothing can be refused any more. It returns the
	// function that takes output. tty says that the output has one stream only.
	Begin func(tty bool) (func(stdio.Stream, []byte) error, error)
}

// Attach connects a client to a container's streams, and returns when the
// container ends, the client detaches, or ctx ends.
func (e *Engine) Attach(ctx context.Context, name string, a Attached) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	cfg := c.rec.Config
	switch c.rec.State.Status {
	case record.Paused:
		c.mu.Unlock()
		return conflict("container %s is paused, unpause the container before attach", name)
	case record.Restarting:
		c.mu.Unlock()
		return conflict("container %s is restarting, wait until the container is running", name)
	}
	streams := c.streams
	reader := streams.Subscribe(a.Stdout, a.Stderr)
	c.event(events.ActionAttach)
	c.mu.Unlock()

	out, err := a.Begin(cfg.Tty)
	if err != nil {
		reader.Close()
		return err
	}
	if a.Logs {
		err := c.replay(ctx, logfile.ReadOptions{Tail: -1}, a.Stdout, a.Stderr, out)
		if err != nil {
			reader.Close()
			return err
		}
	}
	if !a.Stream {
		reader.Close()
		return nil
	}
	in := a.Stdin
	if !cfg.OpenStdin {
		in = nil
	}
	err = streams.Attach(ctx, reader, stdio.Attachment{Stdin: in, Interrupt: a.Interrupt,
		Out: out, TTY: cfg.Tty, DetachKeys: a.DetachKeys, CloseStdin: cfg.StdinOnce})
	if errors.Is(err, stdio.ErrDetached) {
		c.mu.Lock()
		c.event(events.ActionDetach)
		c.mu.Unlock()
		return nil
	}
	return err
}

func (c *Container) replay(ctx context.Context, o logfile.ReadOptions, stdout, stderr bool, out func(stdio.Stream, []byte) error) error {
	if c.log == nil {
		return nil
	}
	return c.log.Read(ctx, o, func(entry logfile.Entry) error {
		stream := stdio.Stdout
		if entry.Stream == "stderr" {
			stream = stdio.Stderr
		}
		if stream == stdio.Stdout && !stdout || stream == stdio.Stderr && !stderr {
			return nil
		}
		return out(stream, entry.Line)
	})
}

// Logs calls out with a container's log entries. begin is called first, when
// nothing can be refused any more; it says whether the container has a terminal.
func (e *Engine) Logs(ctx context.Context, name string, o logfile.ReadOptions, begin func(tty bool) error, out func(logfile.Entry) error) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	if c.log == nil {
		return errdefs.ErrNotImplemented.WithMessage("configured logging driver does not support reading")
	}
	c.mu.Lock()
	tty := c.rec.Config.Tty
	if s := c.rec.State.Status; s == record.Removing || s == record.Dead {
		c.mu.Unlock()
		return conflict("can not get logs from container which is dead or marked for removal")
	}
	c.mu.Unlock()
	if err := begin(tty); err != nil {
		return err
	}
	return c.log.Read(ctx, o, out)
}

// Resize sets the size of a container's terminal, in characters.
func (e *Engine) Resize(ctx context.Context, name string, height, width uint) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.rec.State.Status.Alive() || c.run == nil {
		return conflict("container %s is not running", c.id)
	}
	if c.run.master == nil {
		return nil
	}
	if err := resize(c.run.master, height, width); err != nil {
		return err
	}
	c.event(events.ActionResize, "height", itoa(height), "width", itoa(width))
	return nil
}

// Committed records that an image was made of a container.
func (e *Engine) Committed(ctx context.Context, name, imageID, ref, comment string) {
	c, err := e.find(ctx, name)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.event(events.ActionCommit, "comment", comment, "imageID", imageID, "imageRef", ref)
}
