package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

// errMonitorClosed is returned once QEMU has hung up.
var errMonitorClosed = errors.New("QEMU's monitor has hung up")

// monitor is the QMP connection. The library's calls take no context and wait
// for QEMU for as long as it lives, so each runs in a goroutine of its own; all
// of them end when QEMU does, and wait joins them. Its methods are safe for
// concurrent use.
type monitor struct {
	qmp    *qmp.SocketMonitor
	calls  sync.WaitGroup
	events chan struct{} // closed when the last event was handled; nil when not connected

	mu     sync.Mutex
	closed bool
}

// openMonitor connects to QEMU's monitor, which may not listen yet, and hands its
// events to on, one at a time. It fails when ctx ends first, or QEMU, which closes
// ended. Unless the returned monitor is nil, wait has to be called.
func openMonitor(ctx context.Context, path string, ended <-chan struct{}, on func(qmp.Event)) (*monitor, error) {
	sock, err := qmp.NewSocketMonitor("unix", path, 5*time.Second)
	for err != nil {
		select {
		case <-ctx.Done():
			return nil, err
		case <-ended:
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
		sock, err = qmp.NewSocketMonitor("unix", path, 5*time.Second)
	}
	m := &monitor{qmp: sock}
	return m, m.do(ctx, func() error { return m.connect(on) })
}

// connect shakes hands. QEMU sends no event before its CPUs run.
func (m *monitor) connect(on func(qmp.Event)) error {
	if err := m.qmp.Connect(); err != nil {
		return err
	}
	events, err := m.qmp.Events(context.Background()) // they end with QEMU
	if err != nil {
		return err
	}
	m.events = make(chan struct{})
	go func() {
		defer close(m.events)
		for e := range events {
			on(e)
		}
	}()
	return nil
}

// do runs f beside the caller until it is done or ctx ends; f goes on then.
func (m *monitor) do(ctx context.Context, f func() error) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return errMonitorClosed
	}
	done := make(chan error, 1)
	m.calls.Go(func() { done <- f() })
	m.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run executes a command that takes no arguments.
func (m *monitor) run(ctx context.Context, command string) error {
	return m.call(ctx, command, nil, nil)
}

// call executes a command with its arguments, if there are any, and decodes what it
// returns into result, if that is not nil. A command that QEMU does not answer before
// ctx ends may still take effect.
func (m *monitor) call(ctx context.Context, command string, arguments, result any) error {
	line, err := json.Marshal(qmp.Command{Execute: command, Args: arguments})
	if err != nil {
		return err
	}
	answer := make(chan []byte, 1)
	err = m.do(ctx, func() error {
		raw, err := m.qmp.Run(line)
		answer <- raw
		return err
	})
	if err == nil && result != nil {
		err = json.Unmarshal(<-answer, &struct {
			Return any `json:"return"`
		}{result})
	}
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	return nil
}

// wait returns when the last event was handled and every call has returned, and
// closes the connection. QEMU must have ended.
func (m *monitor) wait() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.calls.Wait()
	if m.events == nil {
		m.qmp.Disconnect()
		return
	}
	// The library drops what it has not read once it disconnects. When reading
	// failed otherwise than by an end of file, it sits on the error until then.
	select {
	case <-m.events:
	case <-time.After(time.Second):
	}
	m.qmp.Disconnect()
	<-m.events
}
