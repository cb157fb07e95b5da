package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// pidFile is the name of the file in a machine's directory that says which QEMU
// runs it.
const pidFile = "qemu.pid"

// process is a running QEMU.
type process struct {
	pid  int
	cmd  *exec.Cmd
	done chan struct{} // closed when it was reaped and stderr is complete

	status error // of the exit; good once done is closed
	stderr *tail
}

// launch runs QEMU with inherited files, from descriptor 3 on, and writes its
// pid file to dir.
func launch(path string, args []string, files []*os.File, dir string) (*process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...)
	cmd.ExtraFiles = files
	cmd.Stdout = w
	cmd.Stderr = w
	cmd.Dir = string(filepath.Separator)
	cmd.SysProcAttr = procAttr()
	p := &process{cmd: cmd, done: make(chan struct{}), stderr: &tail{}}
	started := make(chan error)
	go p.parent(started, r, w)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot run %s: %w", path, err)
	}
	p.pid = cmd.Process.Pid
	if err := writePID(dir, p.pid); err != nil {
		p.kill()
		<-p.done
		return nil, err
	}
	return p, nil
}

// parent is QEMU's parent thread: Linux kills QEMU when the thread ends, which by
// being locked it does not before it has reaped QEMU. Other hosts have a leash.
func (p *process) parent(started chan<- error, r, w *os.File) {
	runtime.LockOSThread() // for life: the thread ends with the goroutine
	err := p.cmd.Start()
	w.Close()
	var held io.Closer
	if err == nil {
		if held, err = leash(p.cmd.Process.Pid); err != nil {
			p.kill()
			p.cmd.Wait()
		}
	}
	started <- err
	if err != nil {
		r.Close()
		return
	}
	var read sync.WaitGroup
	read.Go(func() {
		io.Copy(p.stderr, r)
		r.Close()
	})
	p.status = p.cmd.Wait()
	// Nobody else has the pipe's other end, unless QEMU has forked.
	r.SetReadDeadline(time.Now().Add(time.Second))
	read.Wait()
	held.Close()
	close(p.done)
}

// wait returns QEMU's last words, and the status of its exit.
func (p *process) wait() (stderr string, status error) {
	<-p.done
	return p.stderr.String(), p.status
}

// kill ends QEMU at once, if it runs. It does not wait.
func (p *process) kill() { p.cmd.Process.Kill() }

// tail keeps the last lines that were written to it.
type tail struct {
	mu   sync.Mutex
	data []byte
}

// tailSize is how many bytes a tail keeps.
const tailSize = 4 << 10

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	if extra := len(t.data) - tailSize; extra > 0 {
		t.data = append(t.data[:0], t.data[extra:]...)
	}
	return len(p), nil
}

// String returns the lines, joined to one and without QEMU's own name.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range strings.Lines(strings.ToValidUTF8(string(t.data), "")) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "qemu-system-"); ok {
			if _, text, ok := strings.Cut(rest, ": "); ok {
				line = text
			}
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// record identifies a process beyond the reuse of its number.
type record struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // as the host counts, see startOf
	Boot  string `json:"boot"`  // the host's boot id
}

// identify describes the process with a pid.
func identify(pid int) (record, error) {
	start, err := startOf(pid)
	if err != nil {
		return record{}, err
	}
	return record{PID: pid, Start: start, Boot: bootID()}, nil
}

func writePID(dir string, pid int) error {
	rec, err := identify(pid)
	if err != nil {
		return fmt.Errorf("QEMU has ended at once: %w", err)
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	// It need not outlive the host's crash, and then means nothing: no fsync.
	name := filepath.Join(dir, pidFile)
	if err := os.WriteFile(name+".new", append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// endLeftover kills the QEMU that a dead predecessor has left in dir, and
// removes its files.
func endLeftover(dir string, log *slog.Logger) error {
	for _, name := range []string{monitorSocket, pidFile + ".new"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	name := filepath.Join(dir, pidFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var rec record
	if json.Unmarshal(data, &rec) == nil && rec.PID > 1 && rec.Boot == bootID() {
		if err := rec.kill(log); err != nil {
			return fmt.Errorf("cannot end QEMU (process %d) of an earlier run: %w", rec.PID, err)
		}
	}
	return os.Remove(name)
}
