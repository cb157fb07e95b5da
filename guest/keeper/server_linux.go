package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sessionQueue is how many messages a client may leave unread before it is
	// taken for hung and disconnected: PID 1 never waits for a client.
	sessionQueue = 4096
	// unclaimedExits is how many exits are remembered for an Adopt that is still
	// on its way.
	unclaimedExits = 256
)

// Server is the store and its socket. Its methods are safe for concurrent use.
type Server struct {
	log *slog.Logger

	mu        sync.Mutex // guards what follows; never held while a client is waited for
	entries   map[string]*held
	byPID     map[int]string // of running adopted processes
	unclaimed []Process      // oldest first
	sessions  map[*session]struct{}
	listener  *conn
	closed    bool

	running sync.WaitGroup
}

type held struct {
	record  []byte
	fds     []int
	process *Process
}

type session struct {
	conn  *conn
	queue chan message
	once  sync.Once
	done  chan struct{}
}

type message struct {
	packet []byte
	fds    []int // closed once sent
}

// NewServer returns an empty store.
func NewServer(log *slog.Logger) *Server {
	return &Server{
		log:      log,
		entries:  map[string]*held{},
		byPID:    map[int]string{},
		sessions: map[*session]struct{}{},
	}
}

// Listen serves the store on a new socket at path, mode 0600, until Close.
// A socket that is there already is replaced.
func (s *Server) Listen(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		unix.Close(fd)
		return fmt.Errorf("keeper: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = unix.Chmod(path, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, 8)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("keeper: listen on %s: %w", path, err)
	}
	listener, err := newConn(fd)
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	s.mu.Lock()
	s.listener = listener
	s.mu.Unlock()
	s.running.Go(func() { s.accept(listener) })
	return nil
}

// Close ends the socket and all connections, and closes the files held.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	if s.listener != nil {
		s.listener.Close()
	}
	for c := range s.sessions {
		c.close()
	}
	for key, e := range s.entries {
		closeAll(e.fds)
		delete(s.entries, key)
	}
	s.mu.Unlock()
	s.running.Wait()
}

// Reap takes the status of the ended child pid by calling reap, and notes it
// for the entry that adopted the process. It reports whether there was one.
// No Adopt can come between the two, so none sees a process that is gone
// without a trace.
func (s *Server) Reap(pid int, reap func() (syscall.WaitStatus, error)) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status, err := reap()
	if err != nil {
		return false, err
	}
	ended := Process{PID: pid, Exited: true, Status: status, At: time.Now()}
	key, ok := s.byPID[pid]
	if !ok {
		if len(s.unclaimed) == unclaimedExits {
			s.unclaimed = slices.Delete(s.unclaimed, 0, 1)
		}
		s.unclaimed = append(s.unclaimed, ended)
		return false, nil
	}
	delete(s.byPID, pid)
	e := s.entries[key]
	ended.StartTime = e.process.StartTime
	e.process = &ended
	s.announce(key, ended)
	return true, nil
}

// Running returns the pids of the adopted processes that have not ended.
func (s *Server) Running() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	pids := make([]int, 0, len(s.byPID))
	for pid := range s.byPID {
		pids = append(pids, pid)
	}
	return pids
}

// announce sends an exit to all clients. s.mu is held.
func (s *Server) announce(key string, p Process) {
	packet := answer{kind: kindExit, entries: []Entry{{Key: key, Process: &p}}}.encode()
	for c := range s.sessions {
		s.enqueue(c, message{packet: packet})
	}
}

// enqueue never blocks: a client that does not read is disconnected.
func (s *Server) enqueue(c *session, m message) {
	select {
	case c.queue <- m:
	default:
		closeAll(m.fds)
		s.log.Warn("keeper: a client does not read; disconnecting it")
		c.close()
	}
}

func (c *session) close() {
	c.once.Do(func() {
		close(c.done)
		c.conn.Close()
	})
}

func (s *Server) accept(listener *conn) {
	for {
		fd, err := listener.accept()
		if err != nil {
			return
		}
		if err := checkPeer(fd); err != nil {
			s.log.Warn("keeper: connection refused", "err", err)
			unix.Close(fd)
			continue
		}
		conn, err := newConn(fd)
		if err != nil {
			s.log.Warn("keeper: connection failed", "err", err)
			continue
		}
		c := &session{conn: conn, queue: make(chan message, sessionQueue), done: make(chan struct{})}
		s.mu.Lock()
		if s.closed {
			c.close()
		} else {
			s.sessions[c] = struct{}{}
			s.running.Go(func() { s.serve(c) })
			s.running.Go(c.write)
		}
		s.mu.Unlock()
	}
}

// checkPeer lets in root and whoever runs the server.
func checkPeer(fd int) error {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d is not allowed", cred.Pid, cred.Uid)
	}
	return nil
}

func (c *session) write() {
	for {
		select {
		case m := <-c.queue:
			err := c.conn.send(m.packet, m.fds)
			closeAll(m.fds)
			if err != nil {
				c.close()
			}
		case <-c.done:
			return
		}
	}
}

func (s *Server) serve(c *session) {
	defer func() {
		c.close()
		s.mu.Lock()
		delete(s.sessions, c) // nothing is queued from here on
		s.mu.Unlock()
		for {
			select {
			case m := <-c.queue:
				closeAll(m.fds)
			default:
				return
			}
		}
	}()
	buf := make([]byte, maxPacket)
	for {
		packet, fds, err := c.conn.receive(buf)
		if err != nil {
			return
		}
		q, err := decodeCall(packet)
		if err != nil {
			closeAll(fds)
			s.log.Warn("keeper: malformed call; disconnecting the client")
			return
		}
		s.mu.Lock()
		if !s.closed {
			a, dups := s.answer(q, fds)
			a.kind, a.number = kindReply, q.number
			s.enqueue(c, message{a.encode(), dups})
		} else {
			closeAll(fds)
		}
		s.mu.Unlock()
	}
}

// answer carries out a call. It takes over fds; the reply's descriptors are the
// caller's. s.mu is held.
func (s *Server) answer(q call, fds []int) (answer, []int) {
	e := s.entries[q.key]
	if q.kind == kindPut {
		return s.put(q, e, fds), nil
	}
	defer closeAll(fds)
	if q.kind == kindList {
		return s.list(q.key), nil
	}
	if e == nil {
		return answer{code: codeNotFound}, nil
	}
	switch q.kind {
	case kindGet:
		dups, err := dupAll(e.fds)
		if err != nil {
			return answer{code: codeFailed, text: err.Error()}, nil
		}
		return answer{entries: []Entry{e.entry(q.key)}}, dups
	case kindDelete:
		s.disown(e)
		closeAll(e.fds)
		delete(s.entries, q.key)
		return answer{}, nil
	default:
		return s.adopt(q, e, fds), nil
	}
}

func (s *Server) put(q call, e *held, fds []int) answer {
	if e == nil {
		if len(s.entries) >= maxEntries {
			closeAll(fds)
			return answer{code: codeFull}
		}
		e = &held{}
		s.entries[q.key] = e
	}
	closeAll(e.fds)
	e.record, e.fds = q.record, fds
	return answer{}
}

func (s *Server) list(after string) answer {
	keys := make([]string, 0, len(s.entries))
	for key := range s.entries {
		if key > after {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	var a answer
	size := 0
	for _, key := range keys {
		e := s.entries[key]
		size += len(key) + len(e.record) + 64
		if size > maxPacket-maxText && len(a.entries) > 0 {
			a.more = true
			break
		}
		a.entries = append(a.entries, e.entry(key))
	}
	return a
}

func (s *Server) adopt(q call, e *held, fds []int) answer {
	if len(fds) != 1 {
		return answer{code: codeFailed, text: "adopt wants one pidfd"}
	}
	process, err := s.find(q.pid, fds[0])
	if err != nil {
		return answer{code: codeNoProcess, text: err.Error()}
	}
	s.disown(e)
	e.process = process
	if process.Exited {
		s.announce(q.key, *process)
	} else {
		s.byPID[q.pid] = q.key
	}
	return answer{}
}

// find describes a child of ours that runs, or waits to be reaped, or was
// reaped lately.
func (s *Server) find(pid, pidfd int) (*Process, error) {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PIDFD, pidfd, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err == nil {
		start, err := startTime(pid)
		if err != nil {
			return nil, err
		}
		return &Process{PID: pid, StartTime: start}, nil
	}
	for i := len(s.unclaimed) - 1; i >= 0; i-- {
		if p := s.unclaimed[i]; p.PID == pid {
			s.unclaimed = slices.Delete(s.unclaimed, i, i+1)
			return &p, nil
		}
	}
	return nil, fmt.Errorf("process %d: %w", pid, err)
}

// disown forgets the process of e, whose exit will be nobody's.
func (s *Server) disown(e *held) {
	if e.process != nil && !e.process.Exited {
		delete(s.byPID, e.process.PID)
	}
	e.process = nil
}

func (e *held) entry(key string) Entry {
	return Entry{Key: key, Record: e.record, Process: e.process}
}

func dupAll(fds []int) ([]int, error) {
	var dups []int
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(dups)
			return nil, fmt.Errorf("dup: %w", err)
		}
		dups = append(dups, dup)
	}
	return dups, nil
}

// startTime reads field 22 of /proc/PID/stat. The second, the name in
// parentheses, may hold anything.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("process %d: cannot parse its stat file", pid)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
