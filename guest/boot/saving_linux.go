package boot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire"
)

const (
	// knockEvery is how often a guest that will be saved says hello: it cannot tell
	// by itself when it has been.
	knockEvery = time.Second
	// homeless is how long it may be without any host.
	homeless = 30 * time.Second
)

// saving is what a guest does from the host's word that it will be saved until it
// goes on. The clock that it goes by stands still meanwhile. It is for one goroutine.
type saving struct {
	m      *machine
	ticker *time.Ticker // nil while nothing is about to be saved
	alone  time.Time    // since when the host is gone; zero while it is there
}

// begin lets go of what cannot be saved, or says why it cannot.
func (s *saving) begin() error {
	if s.ticker != nil {
		return nil
	}
	if err := s.m.leaveFolders(); err != nil {
		s.m.takeFolders()
		return err
	}
	s.ticker = time.NewTicker(knockEvery)
	return nil
}

// end goes on as if nothing had been said.
func (s *saving) end() {
	if s.ticker == nil {
		return
	}
	s.ticker.Stop()
	s.ticker, s.alone = nil, time.Time{}
	s.m.takeFolders()
}

// orders are the host's, while it is there.
func (s *saving) orders() <-chan wire.Order {
	if !s.alone.IsZero() {
		return nil
	}
	return s.m.host.orders
}

// lost notes that the hello stream broke, if that may be.
func (s *saving) lost() bool {
	if s.ticker == nil {
		return false
	}
	s.alone = time.Now()
	return true
}

// knocks yields a value whenever it is time to say hello.
func (s *saving) knocks() <-chan time.Time {
	if s.ticker == nil {
		return nil
	}
	return s.ticker.C
}

// knock says hello. A host that has not restored the machine hangs up.
func (s *saving) knock() error {
	if err := s.m.link.mend(); err != nil {
		return err
	}
	if err := s.m.rejoin(); err != nil {
		if s.alone.IsZero() || time.Since(s.alone) < homeless {
			return nil
		}
		return err
	}
	s.m.log.Info("the machine goes on from its saved state")
	s.end()
	return nil
}

// rejoin has another host take this boot over.
func (m *machine) rejoin() error {
	stream, err := m.link.dial(wire.PortHelloHost)
	if err != nil {
		return err
	}
	if err := m.host.greet(stream, m.version); err != nil {
		stream.Close()
		return err
	}
	m.host.begin(stream)
	if err := setClock(m.host.welcome.Time); err != nil {
		m.log.Error("the clock is wrong", "err", err)
	}
	if m.hw.cable { // its stream broke, and the card went with it
		if err := m.configureNetwork(); err != nil {
			m.log.Error("the network is down", "err", err)
		}
	}
	m.engine.tell()
	return nil
}

// errFolderUsed says why a machine cannot be saved.
var errFolderUsed = errors.New("a container uses a folder of the host, which cannot be taken along: stop it first")

// leaveFolders unmounts the folders that come over streams, unless they are used.
func (m *machine) leaveFolders() error {
	var mounted []string
	for _, s := range m.host.welcome.Shares {
		if s.Protocol == wire.Share9P {
			mounted = append(mounted, filepath.Join(sharesDir, s.Tag))
		}
	}
	if mounted == nil {
		return nil
	}
	infos, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		return err
	}
	for _, name := range infos {
		f, err := os.Open(name)
		if err != nil {
			continue // the process has ended
		}
		used := usesFolder(f)
		f.Close()
		if used {
			return errFolderUsed
		}
	}
	for _, target := range mounted {
		// One that could not be mounted, or has a second name, is no mount point.
		if err := unix.Unmount(target, 0); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("%w: unmount %s: %w", errFolderUsed, target, err)
		}
	}
	return nil
}

// takeFolders mounts what leaveFolders has unmounted. The thread that loads modules
// ends with the goroutine.
func (m *machine) takeFolders() {
	now, done := make(chan struct{}), make(chan struct{})
	close(now)
	go func() {
		defer close(done)
		m.mountShares(now)
	}()
	<-done
}

// usesFolder tells whether a process' mounts, as proc(5) lists them, have a folder of
// the host anywhere but where PID 1 has mounted it.
func usesFolder(mountinfo io.Reader) bool {
	for lines := bufio.NewScanner(mountinfo); lines.Scan(); {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "9p ") {
			continue
		}
		if filepath.Dir(fields[4]) != sharesDir {
			return true
		}
	}
	return false
}
