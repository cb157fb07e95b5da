package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// request is a vhost-user front-end request. The numbers and their payloads are
// the protocol's.
type request uint32

const (
	reqGetFeatures         request = 1
	reqSetFeatures         request = 2
	reqSetOwner            request = 3
	reqResetOwner          request = 4
	reqSetMemTable         request = 5
	reqSetVringNum         request = 8
	reqSetVringAddr        request = 9
	reqSetVringBase        request = 10
	reqGetVringBase        request = 11
	reqSetVringKick        request = 12
	reqSetVringCall        request = 13
	reqSetVringErr         request = 14
	reqGetProtocolFeatures request = 15
	reqSetProtocolFeatures request = 16
	reqGetQueueNum         request = 17
	reqSetVringEnable      request = 18
	reqGetConfig           request = 24
	reqSetConfig           request = 25
)

const (
	headerLen     = 12
	maxPayload    = 4096 // the longest we know is SET_MEM_TABLE with 264 bytes, or GET_CONFIG's
	maxFDs        = maxRegions
	flagVersion   = 1
	flagVersions  = 3
	flagReply     = 1 << 2
	flagNeedReply = 1 << 3

	vringIndex = 0xff
	vringNoFD  = 1 << 8

	configHeaderLen = 12
	maxConfig       = 256
)

// message is one request with the file descriptors that came with it. They
// belong to the message until taken; close frees the rest.
type message struct {
	req     request
	flags   uint32
	payload []byte
	fds     []int
}

func (m *message) close() {
	for _, fd := range m.fds {
		closeFD(fd)
	}
	m.fds = nil
}

// noFD stands for no file descriptor.
const noFD = -1

func closeFD(fd int) {
	if fd != noFD {
		_ = unix.Close(fd)
	}
}

// u64 decodes the payload of the requests that carry a number.
func (m *message) u64() (uint64, error) {
	if len(m.payload) != 8 {
		return 0, m.badPayload()
	}
	return binary.LittleEndian.Uint64(m.payload), nil
}

// vringState decodes a queue's index and a number that belongs to it.
func (m *message) vringState() (index, num uint32, err error) {
	if len(m.payload) != 8 {
		return 0, 0, m.badPayload()
	}
	return binary.LittleEndian.Uint32(m.payload), binary.LittleEndian.Uint32(m.payload[4:]), nil
}

// ringAddrs is where the parts of a queue are, in the front-end's addresses.
type ringAddrs struct {
	desc, used, avail uint64
}

func (m *message) vringAddr() (index uint32, a ringAddrs, err error) {
	if len(m.payload) != 40 {
		return 0, a, m.badPayload()
	}
	le := binary.LittleEndian
	if flags := le.Uint32(m.payload[4:]); flags != 0 {
		return 0, a, fmt.Errorf("unsupported ring flags %#x", flags)
	}
	a = ringAddrs{desc: le.Uint64(m.payload[8:]), used: le.Uint64(m.payload[16:]), avail: le.Uint64(m.payload[24:])}
	return le.Uint32(m.payload), a, nil
}

// vringFD decodes a queue's index and takes its eventfd, which is noFD when the
// front-end has none to give.
func (m *message) vringFD() (index uint32, fd int, err error) {
	v, err := m.u64()
	if err != nil {
		return 0, noFD, err
	}
	if v&^uint64(vringIndex|vringNoFD) != 0 {
		return 0, noFD, m.badPayload()
	}
	want := 1
	if v&vringNoFD != 0 {
		want = 0
	}
	if len(m.fds) != want {
		return 0, noFD, fmt.Errorf("%d files where %d belong", len(m.fds), want)
	}
	fd = noFD
	if want == 1 {
		if err := checkEventFD(m.fds[0]); err != nil {
			return 0, noFD, err
		}
		fd, m.fds = m.fds[0], nil
	}
	return uint32(v & vringIndex), fd, nil
}

func (m *message) memTable() ([]regionInfo, error) {
	le := binary.LittleEndian
	if len(m.payload) < 8 {
		return nil, m.badPayload()
	}
	n := le.Uint32(m.payload)
	if n > maxRegions || len(m.payload) < 8+32*int(n) {
		return nil, m.badPayload()
	}
	infos := make([]regionInfo, n)
	for i := range infos {
		p := m.payload[8+32*i:]
		infos[i] = regionInfo{guestAddr: le.Uint64(p), size: le.Uint64(p[8:]), userAddr: le.Uint64(p[16:]), mmapOffset: le.Uint64(p[24:])}
	}
	return infos, nil
}

func (m *message) badPayload() error {
	return fmt.Errorf("impossible payload of %d bytes", len(m.payload))
}

// checkEventFD refuses what only claims to be an eventfd: the file is written
// to while a queue is locked and must never block or raise a signal. It is made
// non-blocking, if QEMU has not done so.
func checkEventFD(fd int) error {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil || name != "anon_inode:[eventfd]" {
		return errors.New("the file is not an eventfd")
	}
	return unix.SetNonblock(fd, true)
}

// readMessage reads the next request. It returns io.EOF when the front-end hung
// up between two of them.
func readMessage(conn *net.UnixConn) (_ *message, err error) {
	m := &message{}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	var header [headerLen]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	for have := 0; have < headerLen; {
		n, oobn, flags, _, err := conn.ReadMsgUnix(header[have:], oob)
		if oobn > 0 {
			if err := m.takeFDs(oob[:oobn]); err != nil {
				return nil, err
			}
		}
		switch {
		case errors.Is(err, io.EOF) && have > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case flags&unix.MSG_CTRUNC != 0 || len(m.fds) > maxFDs:
			return nil, errors.New("vhost-user message with too many files")
		}
		have += n
	}
	size, err := m.decodeHeader(header[:])
	if err != nil {
		return nil, err
	}
	m.payload = make([]byte, size)
	if _, err := io.ReadFull(conn, m.payload); err != nil {
		return nil, fmt.Errorf("vhost-user request %d: %w", m.req, io.ErrUnexpectedEOF)
	}
	return m, nil
}

func (m *message) decodeHeader(h []byte) (size uint32, err error) {
	le := binary.LittleEndian
	m.req, m.flags, size = request(le.Uint32(h)), le.Uint32(h[4:]), le.Uint32(h[8:])
	switch {
	case m.flags&flagVersions != flagVersion || m.flags&^uint32(flagVersions|flagNeedReply) != 0:
		return 0, fmt.Errorf("vhost-user request %d with impossible flags %#x", m.req, m.flags)
	case size > maxPayload:
		return 0, fmt.Errorf("vhost-user request %d with a payload of %d bytes", m.req, size)
	}
	return size, nil
}

func (m *message) takeFDs(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("vhost-user control message: %w", err)
	}
	for _, c := range msgs {
		if c.Header.Level != unix.SOL_SOCKET || c.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&c)
		if err != nil {
			return fmt.Errorf("vhost-user control message: %w", err)
		}
		m.fds = append(m.fds, fds...)
	}
	return nil
}

// writeReply answers a request.
func writeReply(conn *net.UnixConn, req request, payload []byte) error {
	le := binary.LittleEndian
	b := make([]byte, headerLen, headerLen+len(payload))
	le.PutUint32(b, uint32(req))
	le.PutUint32(b[4:], flagVersion|flagReply)
	le.PutUint32(b[8:], uint32(len(payload)))
	_, err := conn.Write(append(b, payload...))
	return err
}
