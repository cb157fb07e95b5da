package initproc

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// parentHooks lets the engine run the hooks that belong outside the container.
func (p *process) parentHooks() error {
	if !p.o.ParentHooks {
		return nil
	}
	if err := p.say(order.Hooks); err != nil {
		return err
	}
	return p.await()
}

// createHooks run in the container's namespaces with the machine's files in sight.
func (p *process) createHooks() error {
	for i := range p.o.CreateHooks {
		if err := runHook(&p.o.CreateHooks[i]); err != nil {
			return failed("hooks.createContainer", err)
		}
	}
	return nil
}

// runHook runs one hook, with the container's state on its standard input.
func runHook(h *order.Hook) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	pid, err := syscall.ForkExec(h.Path, h.Args, &syscall.ProcAttr{
		Env:   h.Env,
		Files: []uintptr{uintptr(pipe[0]), 1, 2},
	})
	unix.Close(pipe[0])
	if err != nil {
		unix.Close(pipe[1])
		return failed(h.Path, err)
	}
	// A pipe takes any state there can be at once: 64 KiB.
	_ = unix.SetNonblock(pipe[1], true)
	_, _ = unix.Write(pipe[1], []byte(h.State))
	unix.Close(pipe[1])
	return waitHook(h, pid)
}

func waitHook(h *order.Hook, pid int) error {
	late := false
	if h.TimeoutMS > 0 {
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return failed(h.Path, err)
		}
		poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, h.TimeoutMS)
		for err == unix.EINTR {
			n, err = unix.Poll(poll, h.TimeoutMS)
		}
		unix.Close(pidfd)
		if late = n == 0; late {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); err == unix.EINTR {
			continue
		} else if err != nil {
			return failed(h.Path, err)
		}
		break
	}
	switch {
	case late:
		return &failure{what: h.Path + ": did not end within its timeout", errno: unix.ETIMEDOUT}
	case ws.Signaled():
		return &failure{what: h.Path + ": killed by signal " + strconv.Itoa(int(ws.Signal()))}
	case ws.ExitStatus() != 0:
		return &failure{what: h.Path + ": exit status " + strconv.Itoa(ws.ExitStatus())}
	}
	return nil
}
