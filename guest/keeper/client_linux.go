package keeper

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Errors a caller may match with errors.Is.
var (
	// ErrNotFound is returned for a key the keeper does not hold.
	ErrNotFound = errors.New("keeper: no such entry")
	// ErrNoProcess is returned by Adopt for a process that is no child of PID 1
	// and has not been one lately.
	ErrNoProcess = errors.New("keeper: no such process")
	// ErrFull is returned by Put when the keeper holds too many entries.
	ErrFull = errors.New("keeper: full")
	// ErrClosed is returned by every call after Close, or once PID 1 is gone.
	ErrClosed = errors.New("keeper: connection closed")
)

// Client is the engine's connection to the keeper. Its methods are safe for
// concurrent use; calls are answered within the time of a few system calls.
type Client struct {
	conn *conn

	mu      sync.Mutex // guards what follows
	number  uint32
	waiting map[uint32]chan<- reply
	closed  bool

	exits   chan Exit
	queue   chan Exit // from the reader to the forwarder
	readers sync.WaitGroup
	closing sync.Once
	done    chan struct{} // closed by Close
}

type reply struct {
	answer answer
	fds    []int
}

// Dial connects to the keeper's socket at path. From then on the client gets
// every exit of an adopted process; Close it to end that.
func Dial(path string) (*Client, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("keeper: connect to %s: %w", path, err)
	}
	c, err := newConn(fd)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	return newClient(c), nil
}

func newClient(conn *conn) *Client {
	c := &Client{
		conn:    conn,
		waiting: map[uint32]chan<- reply{},
		exits:   make(chan Exit),
		queue:   make(chan Exit),
		done:    make(chan struct{}),
	}
	c.readers.Go(c.read)
	c.readers.Go(c.forward)
	return c
}

// Close ends the connection and Exits. The keeper keeps everything. A client
// whose connection has failed must be closed too.
func (c *Client) Close() error {
	var err error
	c.closing.Do(func() {
		close(c.done)
		err = c.conn.Close()
	})
	c.readers.Wait()
	return err
}

// Put creates or replaces the entry under key. PID 1 keeps dups of files; the
// caller's stay its own. A replaced entry's files are closed in PID 1; its
// process stays.
func (c *Client) Put(key string, record []byte, files ...*os.File) error {
	switch {
	case key == "" || len(key) > MaxKey:
		return fmt.Errorf("keeper: put: a key has 1 to %d bytes, not %d", MaxKey, len(key))
	case len(record) > MaxRecord:
		return fmt.Errorf("keeper: put %s: a record has at most %d bytes, not %d", key, MaxRecord, len(record))
	case len(files) > MaxFiles:
		return fmt.Errorf("keeper: put %s: at most %d files, not %d", key, MaxFiles, len(files))
	}
	_, err := c.call(call{kind: kindPut, key: key, record: record}, files)
	return err
}

// Get returns the entry under key, with dups of its files.
func (c *Client) Get(key string) (Entry, error) {
	r, err := c.call(call{kind: kindGet, key: key}, nil)
	if err != nil {
		return Entry{}, err
	}
	if len(r.answer.entries) != 1 {
		closeAll(r.fds)
		return Entry{}, errMalformed
	}
	entry := r.answer.entries[0]
	for _, fd := range r.fds {
		entry.Files = append(entry.Files, os.NewFile(uintptr(fd), key))
	}
	return entry, nil
}

// List returns all entries, sorted by key.
func (c *Client) List() ([]Entry, error) {
	var all []Entry
	after := ""
	for {
		r, err := c.call(call{kind: kindList, key: after}, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, r.answer.entries...)
		if !r.answer.more || len(r.answer.entries) == 0 {
			return all, nil
		}
		after = all[len(all)-1].Key
	}
}

// Delete drops the entry under key and closes its files in PID 1. Its process,
// if it runs, is reaped all the same, without an Exit.
func (c *Client) Delete(key string) error {
	_, err := c.call(call{kind: kindDelete, key: key}, nil)
	return err
}

// Adopt ties the process pid, a child of PID 1 to which pidfd refers, to the
// entry under key, in place of an earlier one. When it returns nil, the process'
// end, even if it came before, is or will be in the entry and in Exits.
func (c *Client) Adopt(key string, pid int, pidfd *os.File) error {
	_, err := c.call(call{kind: kindAdopt, key: key, pid: pid}, []*os.File{pidfd})
	return err
}

// Exits returns the channel of ends of adopted processes. It is closed when the
// connection ends. Exits wait, in order and without bound, until they are taken;
// calls do not wait for them.
func (c *Client) Exits() <-chan Exit { return c.exits }

func (c *Client) call(q call, files []*os.File) (reply, error) {
	answered := make(chan reply, 1)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return reply{}, ErrClosed
	}
	c.number++
	q.number = c.number
	c.waiting[q.number] = answered
	c.mu.Unlock()

	if err := c.send(q, files); err != nil {
		c.mu.Lock()
		delete(c.waiting, q.number)
		c.mu.Unlock()
		return reply{}, fmt.Errorf("keeper: %s: %w", q.key, err)
	}
	r, ok := <-answered
	if !ok {
		return reply{}, ErrClosed
	}
	if err := r.answer.err(q.key); err != nil {
		closeAll(r.fds)
		return reply{}, err
	}
	return r, nil
}

// send dups files for as long as the packet needs them: File.Fd would make the
// caller's files blocking.
func (c *Client) send(q call, files []*os.File) error {
	var fds []int
	defer func() { closeAll(fds) }()
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var dupErr error
		err = raw.Control(func(fd uintptr) {
			var dup int
			if dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); dupErr == nil {
				fds = append(fds, dup)
			}
		})
		if err := errors.Join(err, dupErr); err != nil {
			return err
		}
	}
	if err := c.conn.send(q.encode(), fds); err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return nil
}

func (a answer) err(key string) error {
	switch a.code {
	case codeOK:
		return nil
	case codeNotFound:
		return fmt.Errorf("%w: %s", ErrNotFound, key)
	case codeNoProcess:
		return fmt.Errorf("%w: %s: %s", ErrNoProcess, key, a.text)
	case codeFull:
		return fmt.Errorf("%w: %s", ErrFull, key)
	default:
		return fmt.Errorf("keeper: %s: %s", key, a.text)
	}
}

// read hands replies to their callers and exits to the forwarder.
func (c *Client) read() {
	defer c.fail()
	buf := make([]byte, maxPacket)
	for {
		packet, fds, err := c.conn.receive(buf)
		if err != nil {
			return
		}
		a, err := decodeAnswer(packet)
		if err != nil {
			closeAll(fds)
			return
		}
		if a.kind == kindExit {
			closeAll(fds)
			select {
			case c.queue <- Exit{Key: a.entries[0].Key, Process: *a.entries[0].Process}:
			case <-c.done:
				return
			}
			continue
		}
		c.mu.Lock()
		answered := c.waiting[a.number]
		delete(c.waiting, a.number)
		c.mu.Unlock()
		if answered == nil {
			closeAll(fds)
			continue
		}
		answered <- reply{a, fds}
	}
}

// fail ends all calls that wait, and the forwarder.
func (c *Client) fail() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for number, answered := range c.waiting {
		close(answered)
		delete(c.waiting, number)
	}
	close(c.queue)
}

// forward moves exits from the reader to the consumer and holds them between.
func (c *Client) forward() {
	defer close(c.exits)
	var held []Exit
	in := c.queue
	for in != nil || len(held) > 0 {
		var out chan<- Exit
		var next Exit
		if len(held) > 0 {
			out, next = c.exits, held[0]
		}
		select {
		case e, ok := <-in:
			if !ok {
				in = nil
				continue
			}
			held = append(held, e)
		case out <- next:
			held = held[1:]
		case <-c.done:
			return
		}
	}
}
