package cgroup

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// watcher waits for changes of control files, by inotify. It is registered before
// the files are first read, so no change falls between. The kernel does not say
// when a group is removed; what comes before is that it is no longer populated.
type watcher struct{ f *os.File }

func watch(files ...string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	for _, file := range files {
		if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY); err != nil {
			unix.Close(fd)
			return nil, &os.PathError{Op: "watch", Path: file, Err: err}
		}
	}
	return &watcher{os.NewFile(uintptr(fd), "inotify")}, nil
}

func (w *watcher) close() { w.f.Close() }

// wait blocks until the file has changed or is gone.
func (w *watcher) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { w.f.Close() })
	defer stop()
	var buf [4096]byte
	if _, err := w.f.Read(buf[:]); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

// WatchOOM calls f with the number of processes that were killed for want of
// memory so far, each time it has grown since the call, until ctx ends (which is
// returned) or the group has no process any more (nil).
func (g *Group) WatchOOM(ctx context.Context, f func(kills uint64)) error {
	file, events := g.dir+"/memory.events", g.dir+"/cgroup.events"
	w, err := watch(file, events)
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	defer w.close()
	seen, err := oomKills(file)
	for err == nil {
		if err = w.wait(ctx); err != nil {
			break
		}
		var kills uint64
		if kills, err = oomKills(file); err == nil && kills > seen {
			seen = kills
			f(kills)
		}
		if v, eerr := event(events, "populated"); eerr != nil || v == "0" {
			return nil
		}
	}
	if gone(err) {
		return nil
	}
	return err
}

// OOMKills is how many processes the kernel has killed for want of memory.
func (g *Group) OOMKills() (uint64, error) { return oomKills(g.dir + "/memory.events") }

func oomKills(file string) (uint64, error) {
	v, err := event(file, "oom_kill")
	if err != nil || v == "" {
		return 0, err
	}
	return strconv.ParseUint(v, 10, 64)
}
