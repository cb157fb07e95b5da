package boot

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/keeper"
)

// reaper is the one place that waits for children: PID 1's own, the engine's
// containers, and every orphan. It is safe for concurrent use.
type reaper struct {
	keeper *keeper.Server
	log    *slog.Logger

	mu    sync.Mutex // guards what follows
	own   map[int]chan<- syscall.WaitStatus
	empty *sync.Cond // a child was reaped
	none  bool       // there was no child at the last look
}

func newReaper(k *keeper.Server, log *slog.Logger) *reaper {
	r := &reaper{keeper: k, log: log, own: map[int]chan<- syscall.WaitStatus{}, none: true}
	r.empty = sync.NewCond(&r.mu)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() {
		for range children {
			r.reap()
		}
	}()
	return r
}

// reap waits for every child that has ended.
func (r *reaper) reap() {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		pid := pidOf(&info)
		if err != nil || pid == 0 {
			r.mu.Lock()
			r.none = err == unix.ECHILD
			r.empty.Broadcast()
			r.mu.Unlock()
			return
		}
		r.reapOne(pid)
	}
}

func (r *reaper) reapOne(pid int) {
	r.mu.Lock() // start, below, may still be about to note the pid
	own := r.own[pid]
	delete(r.own, pid)
	r.mu.Unlock()
	var status syscall.WaitStatus
	take := func() (syscall.WaitStatus, error) {
		for {
			_, err := syscall.Wait4(pid, &status, 0, nil)
			if err != syscall.EINTR {
				return status, err
			}
		}
	}
	if own != nil {
		if _, err := take(); err == nil {
			own <- status
		}
		return
	}
	if _, err := r.keeper.Reap(pid, take); err != nil {
		r.log.Warn("cannot reap", "pid", pid, "err", err)
	}
}

// pidOf reads si_pid, which lies at the start of the union.
func pidOf(info *unix.Siginfo) int { return int(siginfoPID(info)) }

// start starts a program and returns where its status will be sent.
func (r *reaper) start(argv []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	ended := make(chan syscall.WaitStatus, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		return 0, nil, os.NewSyscallError("start "+argv[0], err)
	}
	r.own[pid] = ended
	r.none = false
	return pid, ended, nil
}

// run runs a program to its end and collects its output.
func (r *reaper) run(argv []string, output io.Writer) (syscall.WaitStatus, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer reader.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		writer.Close()
		return 0, err
	}
	defer null.Close()
	_, ended, err := r.start(argv, &syscall.ProcAttr{
		Env:   environment(),
		Files: []uintptr{null.Fd(), writer.Fd(), writer.Fd()},
	})
	writer.Close()
	if err != nil {
		return 0, err
	}
	var text bytes.Buffer
	_, err = io.Copy(&text, io.LimitReader(reader, 64<<10))
	output.Write(text.Bytes())
	return <-ended, err
}

// environment of the programs that PID 1 starts.
func environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"}
}
