package engine

import (
	"context"
	"errors"
	iofs "io/fs"
	"os"

	"github.com/berthvm/berth/guest/engine/hostpath"
	"github.com/berthvm/berth/guest/engine/record"
)

// The source of a bind mount is a path of the host: nothing of the machine's own
// tree can be mounted, but for the engine's socket and devices that every container
// has. Inspect shows what the user wrote; what it means is looked up anew at each
// start.

// isSocket says whether a path of the host is one of those where clients look for
// the engine.
func (e *Engine) isSocket(path string) bool {
	switch path {
	case "/var/run/docker.sock", "/run/docker.sock":
		return e.opts.Socket != ""
	}
	return e.opts.Socket != "" && path == e.opts.HostSocket
}

// isDevice says whether a path is that of a device which is the same on every
// machine, and which users mount over files that a container is not to see, and
// over /dev/random.
func isDevice(path string) bool {
	switch path {
	case "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom":
		return true
	}
	return false
}

// checkBind looks for a bind's source, and makes what -v may make.
func (e *Engine) checkBind(ctx context.Context, m *record.Mount) error {
	_, f, err := e.openBind(ctx, m)
	if f != nil {
		f.Close()
	}
	return err
}

// openBind opens a bind's source and returns a path for it that is good while
// the file, if there is one, is open.
func (e *Engine) openBind(ctx context.Context, m *record.Mount) (string, *os.File, error) {
	if e.isSocket(m.Source) {
		return e.opts.Socket, nil, nil
	}
	if isDevice(m.Source) {
		return m.Source, nil, nil
	}
	f, err := e.opts.Folders.Open(ctx, m.Source, m.FromBind)
	var outside *hostpath.OutsideError
	switch {
	case err == nil:
		return procPath(f), f, nil
	case errors.As(err, &outside):
		return "", nil, invalid(`invalid mount config for type "bind": bind source path does not exist: %s: %v`, m.Source, outside)
	case errors.Is(err, iofs.ErrNotExist):
		return "", nil, invalid(`invalid mount config for type "bind": bind source path does not exist: %s`, m.Source)
	case m.FromBind:
		return "", nil, invalid("error while creating mount source path '%s': %v", m.Source, err)
	}
	return "", nil, invalid(`invalid mount config for type "bind": stat %s: %v`, m.Source, err)
}
