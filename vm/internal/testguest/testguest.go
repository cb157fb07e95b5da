// Package testguest is what the machines of vm/vmtest run: a program that
// answers on a few vsock ports and does as it is told. It runs over any
// transport, so the fake machine runs the very code that a real machine's PID 1
// runs (package main in ./init).
//
// # Ports
//
//	1000 guest→host  ready   dialed at each boot; "ready\n", then open until the boot ends;
//	                         dialed again when it breaks after the order "stay"
//	1001 host→guest  echo    returns every byte; ends its direction when the host has
//	1002 host→guest  order   one Order per line, one line of answer: "ok" or an error's text
//
// # Orders
//
//	poweroff     switch off
//	reboot       restart
//	fault        break: a kernel panic on a real machine
//	deaf         ignore the power button from now on
//	stay TEXT    remember the text, and outlive what breaks all streams
//	recall       the answer is the text of stay
//	print TEXT   write a line to the console
//	dial PORT    dial a port of the host and echo there; the answer tells how it went
//	... ARGS     anything else goes to Hooks.Do
package testguest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The ports, see the package doc.
const (
	PortReady = 1000
	PortEcho  = 1001
	PortOrder = 1002
)

// Transport is the guest's side of a vm.Transport.
type Transport interface {
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	Listen(port uint32) (net.Listener, error)
}

// Exit is how the program wants its boot to end.
type Exit string

// The ways to end.
const (
	PowerOff Exit = "poweroff"
	Reboot   Exit = "reboot"
	Fault    Exit = "fault"
)

// Hooks are the machine around the program.
type Hooks struct {
	Button  <-chan struct{}                          // yields a value when the power button was pressed
	Console io.Writer                                // the console
	Do      func(order, args string) (string, error) // other orders; nil knows none
}

type program struct {
	Transport
	hooks Hooks
	ctx   context.Context // the boot's: ends the program, the connections with it
	exit  chan Exit
	deaf  atomic.Bool
	kept  atomic.Pointer[string] // the text of stay
	tasks sync.WaitGroup
}

// Run is one boot. It returns when it was told to, when the button was pressed,
// or when ctx ends; an error means that the transport does not work.
func Run(ctx context.Context, t Transport, hooks Hooks) (Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &program{Transport: t, hooks: hooks, ctx: ctx, exit: make(chan Exit, 1)}
	defer p.tasks.Wait()
	defer cancel()
	if err := p.serve(PortEcho, p.echo); err != nil {
		return "", err
	}
	if err := p.serve(PortOrder, p.orders); err != nil {
		return "", err
	}
	if ready, err := t.Dial(ctx, PortReady); err == nil {
		if _, err := io.WriteString(ready, "ready\n"); err != nil {
			ready.Close()
			return "", err
		}
		p.start(ready, p.call)
	}
	for {
		select {
		case <-hooks.Button:
			if !p.deaf.Load() {
				return PowerOff, nil
			}
		case exit := <-p.exit:
			return exit, nil
		case <-ctx.Done():
			return PowerOff, nil
		}
	}
}

// call holds the call to the host, and after the order to stay calls again.
func (p *program) call(ready net.Conn) {
	io.Copy(io.Discard, ready)
	for p.ctx.Err() == nil && p.kept.Load() != nil {
		if again, err := p.Dial(p.ctx, PortReady); err == nil {
			io.WriteString(again, "ready\n")
			p.start(again, p.call)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// serve takes connections to a port until the boot ends.
func (p *program) serve(port uint32, handle func(net.Conn)) error {
	l, err := p.Listen(port)
	if err != nil {
		return fmt.Errorf("listen on %d: %w", port, err)
	}
	p.closeAtEnd(l)
	p.tasks.Add(1)
	go func() {
		defer p.tasks.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.start(c, handle)
		}
	}()
	return nil
}

// start handles a connection beside the others.
func (p *program) start(c net.Conn, handle func(net.Conn)) {
	stop := context.AfterFunc(p.ctx, func() { c.Close() })
	p.tasks.Add(1)
	go func() {
		defer p.tasks.Done()
		defer stop()
		defer c.Close()
		handle(c)
	}()
}

func (p *program) closeAtEnd(c io.Closer) {
	p.tasks.Add(1)
	context.AfterFunc(p.ctx, func() {
		defer p.tasks.Done()
		c.Close()
	})
}

// echo returns what it gets and half-closes when the other end has.
func (p *program) echo(c net.Conn) {
	if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}); err != nil {
		return
	}
	if hc, ok := c.(interface{ CloseWrite() error }); ok {
		hc.CloseWrite()
	}
	io.Copy(io.Discard, c) // nothing comes any more: wait for the other end's Close
}

func (p *program) orders(c net.Conn) {
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		order, args, _ := strings.Cut(lines.Text(), " ")
		answer, exit, err := p.order(order, args)
		if err != nil {
			answer = "error: " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		if answer == "" {
			answer = "ok"
		}
		fmt.Fprintln(c, answer)
		if exit != "" {
			select {
			case p.exit <- exit:
			default:
			}
		}
	}
}

func (p *program) order(order, args string) (answer string, exit Exit, err error) {
	switch order {
	case "poweroff", "reboot", "fault":
		return "", Exit(order), nil
	case "deaf":
		p.deaf.Store(true)
		return "", "", nil
	case "stay":
		p.kept.Store(&args)
		return "", "", nil
	case "recall":
		if text := p.kept.Load(); text != nil {
			return *text, "", nil
		}
		return "", "", errors.New("there is nothing to recall")
	case "print":
		_, err := fmt.Fprintln(p.hooks.Console, args)
		return "", "", err
	case "dial":
		port, err := strconv.ParseUint(args, 10, 32)
		if err != nil {
			return "", "", err
		}
		c, err := p.Dial(p.ctx, uint32(port))
		if err != nil {
			return "", "", err
		}
		p.start(c, p.echo)
		return "", "", nil
	}
	if p.hooks.Do == nil {
		return "", "", errors.New("unknown order " + order)
	}
	answer, err = p.hooks.Do(order, args)
	return answer, "", err
}
