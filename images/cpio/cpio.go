// Package cpio writes archives in the "newc" form that Linux unpacks as its
// initramfs. It is a writer only, and a deterministic one: owners are root,
// times are zero and inode numbers count from one, so the same calls give the
// same bytes.
package cpio

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// The file types of Header.Mode, as stat(2) has them.
const (
	TypeDir     = 0o040000
	TypeFile    = 0o100000
	TypeSymlink = 0o120000
	TypeChar    = 0o020000
)

// Header describes one entry.
type Header struct {
	Name         string // relative, without a leading slash or "./"
	Mode         uint32 // type and permission bits
	Major, Minor uint32 // of a device
}

// Writer writes one archive. It is for one goroutine. The archive is complete
// once Close has returned nil.
type Writer struct {
	w     io.Writer
	inode uint32
	size  int64 // bytes written, for padding
}

// NewWriter returns a Writer whose archive goes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Add writes an entry and its body: a file's content, a link's target, or
// nothing. A parent directory must be added before what it holds.
func (w *Writer) Add(h Header, body []byte) error {
	if h.Name == "" || strings.HasPrefix(h.Name, "/") || path.Clean(h.Name) != h.Name {
		return fmt.Errorf("cpio: invalid name %q", h.Name)
	}
	return w.add(h, body)
}

// Dir adds a directory with mode 0755.
func (w *Writer) Dir(name string) error {
	return w.Add(Header{Name: name, Mode: TypeDir | 0o755}, nil)
}

// File adds a regular file.
func (w *Writer) File(name string, perm uint32, body []byte) error {
	return w.Add(Header{Name: name, Mode: TypeFile | perm}, body)
}

// Symlink adds a symbolic link called name to target.
func (w *Writer) Symlink(name, target string) error {
	return w.Add(Header{Name: name, Mode: TypeSymlink | 0o777}, []byte(target))
}

// Close ends the archive. It does not close the underlying writer.
func (w *Writer) Close() error {
	return w.add(Header{Name: "TRAILER!!!"}, nil)
}

func (w *Writer) add(h Header, body []byte) error {
	if int64(len(body)) > 1<<32-1 {
		return fmt.Errorf("cpio: %s: larger than 4 GiB", h.Name)
	}
	w.inode++
	links := 1
	if h.Mode&0o170000 == TypeDir {
		links = 2
	}
	head := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		w.inode, h.Mode, 0, 0, links, 0, len(body), 0, 0, h.Major, h.Minor, len(h.Name)+1, 0, h.Name)
	if err := w.write([]byte(head)); err != nil {
		return err
	}
	return w.write(body)
}

// write writes p and pads to a multiple of four bytes.
func (w *Writer) write(p []byte) error {
	n, err := w.w.Write(p)
	w.size += int64(n)
	if err != nil {
		return err
	}
	if pad := int(-w.size & 3); pad > 0 {
		n, err = w.w.Write(make([]byte, pad))
		w.size += int64(n)
	}
	return err
}
