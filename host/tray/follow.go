package tray

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/host/machine"
)

// The pauses between attempts to reach a daemon that lives and does not answer:
// it has just begun, or is about to end.
const reachFirst, reachLast = 50 * time.Millisecond, 5 * time.Second

// Follow calls each with the machine as it is now and after each change, until
// ctx ends, whose error it returns. It talks to the machine's daemon where there
// is one, and else waits for the file that says how the machine is to change.
func Follow(ctx context.Context, m machine.Machine, each func(api.Snapshot)) error {
	files, err := watchFiles(m.StateDir)
	if err != nil {
		return err
	}
	defer files.close()
	client := api.NewClient(m.APIAddress())
	pause := reachFirst
	for {
		files.refresh()
		s := m.LastState()
		if !s.State.Alive() {
			pause = reachFirst
			each(api.Snapshot{Status: s})
			if err := files.wait(ctx, 0); err != nil {
				return err
			}
			continue
		}
		// Its end is an error like any other: the files say what comes then.
		_ = client.Watch(ctx, func(s api.Snapshot) {
			pause = reachFirst
			each(s)
		})
		if err := files.wait(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, reachLast)
	}
}

// files tells of changes in a directory that may come and go.
type files struct {
	dir string
	w   *fsnotify.Watcher
}

// watchFiles makes dir's parent, and watches both.
func watchFiles(dir string) (*files, error) {
	w, err := fsnotify.NewWatcher()
	if err == nil {
		parent := filepath.Dir(dir)
		if err = os.MkdirAll(parent, 0o700); err == nil {
			err = w.Add(parent)
		}
		if err != nil {
			w.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot watch %s: %w", dir, err)
	}
	return &files{dir, w}, nil
}

func (f *files) close() { f.w.Close() }

// refresh watches dir too, if it is there by now.
func (f *files) refresh() { _ = f.w.Add(f.dir) }

// wait returns when something has changed, or after the time, if it is not 0.
func (f *files) wait(ctx context.Context, limit time.Duration) error {
	var timeout <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		timeout = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout:
			return nil
		case e, ok := <-f.w.Events:
			if !ok {
				return errors.New("the file system's events have ended")
			}
			// Locks and logs change too; only what begins and ends a daemon counts.
			if e.Name == f.dir || filepath.Base(e.Name) == machine.StateFileName {
				return nil
			}
		case <-f.w.Errors:
			return nil // events were lost: look again
		}
	}
}
