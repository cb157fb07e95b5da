// Package inflate undoes the compression that archives come in: gzip, bzip2, xz or
// zstd, told by their first bytes; anything else passes as it is.
//
// A stream may be hostile: whatever it claims, reading it takes at most some 64 MiB
// of this process's memory. xz, which would take as much as the stream asks for, is
// left to the program xz (busybox's will do), which is ended by Close.
package inflate

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory for one stream, in bytes.
const maxWindow = 64 << 20

// New returns what r holds, decompressed. r is read ahead of need, and a Read of it
// may still be under way after Close. The reader is for one goroutine at a time.
func New(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 32<<10)
	head, _ := b.Peek(6)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return startXZ(ctx, b)
	case isZstd(head):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// isZstd tells a frame of zstd, also one to skip that stands before the others
// (RFC 8878, 3.1).
func isZstd(head []byte) bool {
	if len(head) < 4 {
		return false
	}
	skip := head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
	return skip || bytes.Equal(head[:4], []byte{0x28, 0xb5, 0x2f, 0xfd})
}

// xz is a program that decompresses.
type xz struct {
	out    io.ReadCloser
	errors bytes.Buffer
	cmd    *exec.Cmd
	cancel context.CancelFunc
	err    error // of its end; valid once done
	done   bool
}

func startXZ(ctx context.Context, r io.Reader) (*xz, error) {
	ctx, cancel := context.WithCancel(ctx)
	x := &xz{cancel: cancel, cmd: exec.CommandContext(ctx, "xz", "-d", "-c", "-q")}
	x.cmd.Stderr = &x.errors
	x.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	in, err := x.cmd.StdinPipe()
	if err == nil {
		x.out, err = x.cmd.StdoutPipe()
	}
	if err == nil {
		err = x.cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("decompress xz: %w", err)
	}
	go func() { // not joined: nothing but r's owner can end a Read of it
		_, _ = io.Copy(in, r)
		in.Close()
	}()
	return x, nil
}

// Read implements io.Reader. The program's failure is the stream's.
func (x *xz) Read(p []byte) (int, error) {
	n, err := x.out.Read(p)
	if errors.Is(err, io.EOF) {
		if werr := x.wait(); werr != nil {
			err = werr
		}
	}
	return n, err
}

func (x *xz) wait() error {
	if x.done {
		return x.err
	}
	x.done = true
	if err := x.cmd.Wait(); err != nil {
		x.err = fmt.Errorf("decompress xz: %w", err)
		if text := strings.TrimSpace(x.errors.String()); text != "" {
			x.err = fmt.Errorf("decompress xz: %s", text)
		}
	}
	return x.err
}

// Close implements io.Closer.
func (x *xz) Close() error {
	x.cancel()
	_ = x.wait()
	return nil
}
