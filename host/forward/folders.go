package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

// maxFolders bounds the guest's streams to folders: each of its users has one for
// each folder at most.
const maxFolders = 64

// Folders serves wire.PortFolderHost: it gives the streams of those who know the
// boot's secret to the folder that they ask for.
type Folders struct {
	Log *slog.Logger // may be nil
}

// Serve takes the guest's connections to l until l is closed and every connection
// has ended, or ctx is done. secret returns what a stream must begin with now; nil
// matches nothing. folder returns what serves a folder, by its tag, nil for none.
func (f Folders) Serve(ctx context.Context, l net.Listener, secret func() []byte, folder func(tag string) func(net.Conn) error) error {
	log := f.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	slots := make(chan struct{}, maxFolders)
	return serve(ctx, l, func(ctx context.Context, c net.Conn) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			log.Warn("the guest has too many connections to folders", "limit", maxFolders)
			return
		}
		c.SetDeadline(time.Now().Add(handshakeTimeout))
		serve, err := askedFor(c, secret(), folder)
		if err != nil {
			log.Warn("refused the guest a folder", "error", err)
			return
		}
		c.SetDeadline(time.Time{})
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		if err := serve(c); err != nil {
			log.Warn("a folder's stream has ended", "error", err)
		}
	})
}

// askedFor reads what a stream begins with.
func askedFor(c io.Reader, secret []byte, folder func(tag string) func(net.Conn) error) (func(net.Conn) error, error) {
	if err := checkSecret(c, secret); err != nil {
		return nil, err
	}
	var request wire.FolderRequest
	if err := wire.ReadFrame(io.LimitReader(c, maxRequest), &request); err != nil {
		return nil, err
	}
	serve := folder(request.Tag)
	if serve == nil {
		return nil, errors.New("no such folder is lent")
	}
	return serve, nil
}
