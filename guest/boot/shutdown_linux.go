package boot

import (
	"bufio"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// graceOrdered is how long the engine may take to stop the containers, which
	// have ten seconds each by default, all at once.
	graceOrdered = 20 * time.Second
	// graceAbandoned is the same when nobody waits any more.
	graceAbandoned = 5 * time.Second
	// killPatience is how long killed processes may take to be gone.
	killPatience = 2 * time.Second
)

// shutdown takes everything down and ends the machine. It does not return.
func (m *machine) shutdown(how int, grace time.Duration) {
	m.engine.stop(grace)
	if pids := m.keeper.Running(); len(pids) > 0 { // the engine is not there to stop them
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGTERM)
		}
		m.reaper.waitFor(func() bool { return len(m.keeper.Running()) == 0 }, min(grace, 2*time.Second))
	}
	unix.Kill(-1, unix.SIGKILL)
	m.reaper.waitFor(func() bool { return m.reaper.none }, killPatience)
	m.keeper.Close() // it may hold files of the data disk
	m.host.flush(time.Second)
	unmountAll(m.log)
	if how == unix.LINUX_REBOOT_CMD_RESTART {
		if err := m.hw.announceRestart(m.link); err != nil {
			m.log.Warn("cannot tell the host of the restart, which may end the machine", "err", err)
		}
	}
	halt(how)
}

// waitFor waits until done, which is asked after each reaping with the reaper's
// lock held, or until patience is over.
func (r *reaper) waitFor(done func() bool, patience time.Duration) {
	r.reap()
	timer := time.AfterFunc(patience, r.empty.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(patience)
	r.mu.Lock()
	defer r.mu.Unlock()
	for !done() && time.Now().Before(deadline) {
		r.empty.Wait()
	}
}

// unmountAll unmounts what lies on the data disk, last mounted first, and the
// disk itself. What is still busy is made read-only, which is as safe.
func unmountAll(log *slog.Logger) {
	for range 3 {
		for _, target := range mountsBelow("/") {
			unix.Unmount(target, 0)
		}
	}
	left := mountsBelow(dataDir)
	for _, target := range left {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			log.Warn("cannot unmount", "target", target, "err", err)
		}
	}
	unix.Sync()
	if len(left) > 0 {
		log.Warn("unmounted while busy", "mounts", left)
		os.WriteFile("/proc/sysrq-trigger", []byte("u"), 0) // remount all read-only, soon
		time.Sleep(200 * time.Millisecond)
	}
}

// mountsBelow lists the mount points at or below dir that may be unmounted,
// last mounted first.
func mountsBelow(dir string) []string {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer file.Close()
	var targets []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		target := unescape(fields[4])
		if target != dir && !strings.HasPrefix(target, strings.TrimSuffix(dir, "/")+"/") {
			continue
		}
		switch top, _, _ := strings.Cut(strings.TrimPrefix(target, "/"), "/"); top {
		case "", "proc", "sys", "dev":
			continue // needed to the end, and nothing is lost with them
		}
		targets = append([]string{target}, targets...)
	}
	return targets
}

// unescape undoes mountinfo's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// halt ends the machine.
func halt(how int) {
	unix.Sync()
	unix.Reboot(how)
	for {
		time.Sleep(time.Hour) // PID 1 must not end
	}
}

// watchPowerButton sends on pressed when the machine's power button is pushed, or
// poweroff(8) says so to PID 1, which Hyper-V has the kernel call instead.
func watchPowerButton(pressed chan<- struct{}, log *slog.Logger) {
	press := func() {
		select {
		case pressed <- struct{}{}:
		default:
		}
	}
	powerOff := make(chan os.Signal, 1)
	signal.Notify(powerOff, unix.SIGUSR2)
	go func() {
		for range powerOff {
			press()
		}
	}()
	devices, err := filepath.Glob("/dev/input/event*")
	if err != nil {
		return
	}
	for _, device := range devices {
		file, err := os.Open(device)
		if err != nil {
			log.Warn("cannot watch the power button", "err", err)
			continue
		}
		go func() {
			defer file.Close()
			const eventKey, keyPower, size = 1, 116, 24
			buf := make([]byte, 16*size)
			for {
				n, err := file.Read(buf)
				if err != nil {
					return
				}
				for event := buf[:n]; len(event) >= size; event = event[size:] {
					kind := *(*uint16)(unsafe.Pointer(&event[16]))
					code := *(*uint16)(unsafe.Pointer(&event[18]))
					value := *(*int32)(unsafe.Pointer(&event[20]))
					if kind == eventKey && code == keyPower && value == 1 {
						press()
					}
				}
			}
		}()
	}
}
