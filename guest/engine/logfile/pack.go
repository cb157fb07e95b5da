package logfile

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	packedSuffix = ".gz"
	packingName  = ".packing" // of the one file that is being written
)

// packing is the compression of files that were set aside, while it goes on.
type packing struct{ stop, done chan struct{} }

// pack begins to compress what was set aside and is not compressed, if that is
// wanted. The caller holds mu, and no packing goes on.
func (l *Log) pack() {
	if !l.opts.Compress {
		return
	}
	var names []string
	for i := 1; i < l.opts.MaxFiles; i++ {
		if _, err := os.Lstat(l.older(i)); err == nil {
			names = append(names, l.older(i))
		}
	}
	if len(names) == 0 {
		return
	}
	p := &packing{make(chan struct{}), make(chan struct{})}
	l.packing = p
	go func() {
		defer close(p.done)
		for _, name := range names {
			// What cannot be compressed is as good as it is.
			if err := packFile(name, l.path+packingName, p.stop); errors.Is(err, errStop) {
				return
			}
		}
	}()
}

// packed waits for the compression that goes on. The caller holds mu.
func (l *Log) packed() {
	if l.packing != nil {
		<-l.packing.done
		l.packing = nil
	}
}

// stopPacking ends the compression that goes on: it begins anew with the next
// Open. The caller holds mu.
func (l *Log) stopPacking() {
	if l.packing != nil {
		close(l.packing.stop)
		l.packed()
	}
}

// packFile replaces a file by a compressed one. At no moment there is neither.
func packFile(name, tmp string, stop <-chan struct{}) error {
	from, err := os.Open(name)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(to, gzip.BestSpeed)
	if err == nil {
		_, err = io.Copy(z, &stoppable{from, stop})
	}
	if err == nil {
		err = z.Close()
	}
	if err = errors.Join(err, to.Close()); err == nil {
		err = os.Rename(tmp, name+packedSuffix)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Remove(name)
}

// stoppable is a file whose reading ends early when stop is closed.
type stoppable struct {
	file *os.File
	stop <-chan struct{}
}

func (s *stoppable) Read(p []byte) (int, error) {
	select {
	case <-s.stop:
		return 0, errStop
	default:
		return s.file.Read(p)
	}
}

// part is one of a log's files, open for reading.
type part struct {
	file   *os.File
	packed bool
}

// openPart opens a file that may have been compressed; of both, the plain one.
func openPart(name string) (*part, error) {
	f, err := os.Open(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return &part{file: f}, err
	}
	f, err = os.Open(name + packedSuffix)
	return &part{f, true}, err
}

// plain makes the part's file one that can be read and sought in.
func (p *part) plain() (*os.File, error) {
	if !p.packed {
		return p.file, nil
	}
	to, err := os.CreateTemp(filepath.Dir(p.file.Name()), "unpacked-")
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	_ = os.Remove(to.Name())
	z, err := gzip.NewReader(p.file)
	if err == nil {
		_, err = io.Copy(to, z)
	}
	if err == nil {
		_, err = to.Seek(0, io.SeekStart)
	}
	if err != nil {
		to.Close()
		return nil, fmt.Errorf("read log: %s: %w", filepath.Base(p.file.Name()), err)
	}
	p.file.Close()
	p.file, p.packed = to, false
	return to, nil
}
