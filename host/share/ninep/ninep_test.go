//go:build unix

package ninep

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
)

// attach serves a folder and returns its root, as the guest's root has it.
func attach(t *testing.T, folder string, o Options) p9.File {
	t.Helper()
	s, err := New(folder, o)
	if err != nil {
		t.Fatal(err)
	}
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.Serve(host) }()
	client, err := p9.NewClient(guest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		guest.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := s.files.Load(); n != 0 {
			t.Errorf("%d files are left", n)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	root, err := client.Attach("")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func walk(t *testing.T, from p9.File, names ...string) p9.File {
	t.Helper()
	_, f, err := from.Walk(names)
	if err != nil {
		t.Fatalf("walk to %v: %v", names, err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func refused(t *testing.T, what string, err error, want ...linux.Errno) {
	t.Helper()
	for _, e := range want {
		if errors.Is(err, e) {
			return
		}
	}
	t.Errorf("%s: %v, want one of %v", what, err, want)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, f p9.File) (string, error) {
	t.Helper()
	if _, _, err := f.Open(p9.ReadOnly); err != nil {
		return "", err
	}
	buf := make([]byte, 1000)
	n, err := f.ReadAt(buf, 0)
	if err == io.EOF {
		err = nil
	}
	return string(buf[:n]), err
}

func names(t *testing.T, dir p9.File) []string {
	t.Helper()
	f := walk(t, dir)
	if _, _, err := f.Open(p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	var all []string
	for offset := uint64(0); ; {
		entries, err := f.Readdir(offset, 200)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			return all
		}
		for _, e := range entries {
			if e.Name != "." && e.Name != ".." {
				all = append(all, e.Name)
			}
			offset = e.Offset
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "d", "f"), "hello")
	root := attach(t, dir, Options{})
	if text, err := read(t, walk(t, root, "d", "f")); err != nil || text != "hello" {
		t.Errorf("read: %q, %v", text, err)
	}
	made, _, _, err := walk(t, root, "d").Create("new", p9.ReadWrite, 0o640, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := made.WriteAt([]byte("text"), 2); err != nil {
		t.Error(err)
	}
	if err := made.FSync(); err != nil {
		t.Error(err)
	}
	made.Close()
	if text, err := os.ReadFile(filepath.Join(dir, "d", "new")); err != nil || string(text) != "\x00\x00text" {
		t.Errorf("on the host: %q, %v", text, err)
	}
	if err := walk(t, root, "d", "new").SetAttr(p9.SetAttrMask{Size: true}, p9.SetAttr{Size: 3}); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "d", "new")); err != nil || st.Size() != 3 || st.Mode() != 0o640 {
		t.Errorf("on the host: %v, %v", st, err)
	}
	if _, err := root.Mkdir("e", 0o711, 0, 0); err != nil {
		t.Error(err)
	}
	if err := walk(t, root, "d").RenameAt("new", walk(t, root, "e"), "newer"); err != nil {
		t.Error(err)
	}
	if err := walk(t, root, "e").Link(walk(t, root, "d", "f"), "linked"); err != nil {
		t.Error(err)
	}
	if got := strings.Join(names(t, walk(t, root, "e")), " "); got != "linked newer" && got != "newer linked" {
		t.Errorf("names: %s", got)
	}
	if _, err := root.Symlink("/etc/passwd", "link", 0, 0); err != nil {
		t.Error(err)
	}
	if target, err := walk(t, root, "link").Readlink(); err != nil || target != "/etc/passwd" {
		t.Errorf("link: %q, %v", target, err)
	}
	refused(t, "rmdir of a full folder", root.UnlinkAt("e", 0x200), linux.ENOTEMPTY, linux.EEXIST)
	refused(t, "unlink of a folder", root.UnlinkAt("e", 0), linux.EISDIR)
	refused(t, "rmdir of a file", walk(t, root, "e").UnlinkAt("newer", 0x200), linux.ENOTDIR)
	for _, name := range []string{"newer", "linked"} {
		if err := walk(t, root, "e").UnlinkAt(name, 0); err != nil {
			t.Error(err)
		}
	}
	if err := root.UnlinkAt("e", 0x200); err != nil {
		t.Error(err)
	}
	when := time.Unix(1e9, 5e8)
	times := p9.SetAttrMask{MTime: true, MTimeNotSystemTime: true}
	if err := walk(t, root, "d", "f").SetAttr(times, p9.SetAttr{MTimeSeconds: 1e9, MTimeNanoSeconds: 5e8}); err != nil {
		t.Error(err)
	}
	if st, _ := os.Stat(filepath.Join(dir, "d", "f")); !st.ModTime().Equal(when) {
		t.Errorf("the file is of %v", st.ModTime())
	}
	if st, err := root.StatFS(); err != nil || st.Blocks == 0 || st.NameLength != 255 {
		t.Errorf("StatFS: %+v, %v", st, err)
	}
}

// TestOwners checks that what the guest does to owners is remembered, and that
// what the host's user sees stays his.
func TestOwners(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), "")
	root := attach(t, dir, Options{})
	f := walk(t, root, "f")
	if err := f.SetAttr(p9.SetAttrMask{UID: true, GID: true}, p9.SetAttr{UID: 999, GID: 998}); err != nil {
		t.Fatal(err)
	}
	if err := f.SetAttr(p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o4711}); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Mknod("null", 0o020666, 1, 3, 0, 0); err != nil {
		t.Fatal(err)
	}
	again := attach(t, dir, Options{}) // after a restart
	_, _, a, err := walk(t, again, "f").GetAttr(p9.AttrMaskAll)
	if err != nil || a.UID != 999 || a.GID != 998 || a.Mode != 0o100711 {
		t.Errorf("f: %+v, %v", a, err)
	}
	_, _, a, err = walk(t, again, "null").GetAttr(p9.AttrMaskAll)
	if err != nil || a.Mode != 0o020666 || a.RDev != 1<<8|3 {
		t.Errorf("null: %+v, %v", a, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "f")); err != nil || st.Mode() != 0o711 {
		t.Errorf("f on the host: %v, %v", st.Mode(), err)
	}
	if st, err := os.Stat(filepath.Join(dir, "null")); err != nil || !st.Mode().IsRegular() {
		t.Errorf("null on the host: %v, %v", st.Mode(), err)
	}
}

// TestStaysInside tries what leads out of the folder, or to what is hidden.
func TestStaysInside(t *testing.T) {
	top := t.TempDir()
	dir, state := filepath.Join(top, "home"), filepath.Join(top, "home", "local", "berth")
	write(t, filepath.Join(top, "secret"), "secret")
	write(t, filepath.Join(state, "key"), "key")
	write(t, filepath.Join(dir, "sub", "f"), "f")
	for link, target := range map[string]string{"out": "..", "file": "../secret", "abs": top, "in": "local/berth", "sub2": "sub"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	root := attach(t, dir, Options{Hidden: []string{state}})
	for _, path := range [][]string{{"out", "secret"}, {"abs", "secret"}, {"..", "secret"}, {"local", "berth"}, {"in", "key"}, {"local", "..", "sub"}, {"sub2", "f"}, {"sub/f"}} {
		if _, f, err := root.Walk(path); err == nil {
			f.Close()
			t.Errorf("walk to %v succeeded", path)
		}
	}
	if got := names(t, walk(t, root, "local")); len(got) != 0 {
		t.Errorf("the hidden folder is listed: %q", got)
	}
	local := walk(t, root, "local")
	_, err := local.Mkdir("berth", 0o755, 0, 0)
	refused(t, "a folder in the hidden one's place", err, linux.EACCES)
	refused(t, "removing the hidden folder", local.UnlinkAt("berth", 0x200), linux.EACCES)
	refused(t, "renaming the hidden folder", local.RenameAt("berth", root, "mine"), linux.EACCES)
	refused(t, "renaming onto the hidden folder", root.RenameAt("sub", local, "berth"), linux.EACCES)
	refused(t, "renaming what leads to the hidden folder", root.RenameAt("local", root, "other"), linux.EBUSY)

	// A folder that is swapped for a link after the guest has found it.
	sub, f := walk(t, root, "sub"), walk(t, root, "sub", "f")
	if err := os.Rename(filepath.Join(dir, "sub"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("local/berth", filepath.Join(dir, "sub")); err != nil {
		t.Fatal(err)
	}
	if text, err := read(t, f); err != nil || text != "f" {
		t.Errorf("the file in the folder that was moved: %q, %v", text, err)
	}
	if _, _, err := sub.Walk([]string{"key"}); err == nil {
		t.Error("the swapped folder leads to what is hidden")
	}
	// A file that is swapped for a link to one, after the guest has found it.
	swapped := walk(t, root, "moved", "f")
	if err := os.Remove(filepath.Join(dir, "moved", "f")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../local/berth/key", filepath.Join(dir, "moved", "f")); err != nil {
		t.Fatal(err)
	}
	if text, err := read(t, swapped); err == nil {
		t.Errorf("the swapped file reads %q", text)
	}
}

func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), "f")
	root := attach(t, dir, Options{ReadOnly: true})
	if text, err := read(t, walk(t, root, "f")); err != nil || text != "f" {
		t.Errorf("read: %q, %v", text, err)
	}
	_, _, err := walk(t, root, "f").Open(p9.WriteOnly)
	refused(t, "open to write", err, linux.EROFS)
	_, _, _, err = walk(t, root).Create("g", p9.ReadWrite, 0o644, 0, 0)
	refused(t, "create", err, linux.EROFS)
	_, err = root.Mkdir("d", 0o755, 0, 0)
	refused(t, "mkdir", err, linux.EROFS)
	refused(t, "unlink", root.UnlinkAt("f", 0), linux.EROFS)
	refused(t, "rename", root.RenameAt("f", root, "g"), linux.EROFS)
	refused(t, "chmod", walk(t, root, "f").SetAttr(p9.SetAttrMask{Permissions: true}, p9.SetAttr{}), linux.EROFS)
}

func TestTooManyFiles(t *testing.T) {
	root := attach(t, t.TempDir(), Options{Files: 10})
	for i := range 20 {
		_, f, err := root.Walk(nil)
		if err == nil {
			defer f.Close()
			continue
		}
		refused(t, "one file too many", err, linux.ENFILE)
		if i < 5 {
			t.Errorf("only %d files of 10", i)
		}
		return
	}
	t.Error("20 files of 10")
}

// message is a request as the guest's kernel sends it.
func message(kind byte, tag uint16, body ...byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(headSize+len(body)))
	b = append(b, kind)
	return append(binary.LittleEndian.AppendUint16(b, tag), body...)
}

func attachBody(fid, user uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, fid)
	b = binary.LittleEndian.AppendUint32(b, noFID)
	b = append(b, 1, 0, 'u', 0, 0)
	return binary.LittleEndian.AppendUint32(b, user)
}

// TestWhoAsks has two users attach, and look at a file that belongs to whoever
// asks.
func TestWhoAsks(t *testing.T) {
	s, err := New(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.Serve(host) }()
	guest.SetDeadline(time.Now().Add(20 * time.Second))
	ask := func(request []byte) []byte {
		t.Helper()
		go guest.Write(request)
		head := make([]byte, headSize)
		if _, err := io.ReadFull(guest, head); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, le32(head)-headSize)
		if _, err := io.ReadFull(guest, body); err != nil {
			t.Fatal(err)
		}
		return append(head, body...)
	}
	version := append([]byte{0, 0, 2, 0, 8, 0}, "9P2000.L"...)
	if answer := ask(message(100, 0xffff, version...)); answer[4] != 101 {
		t.Fatalf("version: %q", answer)
	}
	for i, user := range []uint32{1000, 33} {
		if answer := ask(message(typeAttach, 1, attachBody(uint32(i), user)...)); answer[4] != typeAttach+1 {
			t.Fatalf("attach: %q", answer)
		}
		getattr := append(binary.LittleEndian.AppendUint32(nil, uint32(i)), 0xff, 0x3f, 0, 0, 0, 0, 0, 0)
		answer := ask(message(24, 1, getattr...))
		const uidAt = headSize + 8 + 13 + 4 // valid, qid, mode
		if answer[4] != 25 || le32(answer[uidAt:]) != user || le32(answer[uidAt+4:]) != user {
			t.Errorf("the root's owner is %d for user %d", le32(answer[uidAt:]), user)
		}
	}
	// A request for an attribute, and that the file is there after it.
	xattr := append(binary.LittleEndian.AppendUint32(nil, 0), 9, 0, 0, 0, 1, 0, 'a')
	if answer := ask(message(typeXattrWalk, 7, xattr...)); answer[4] != typeError || answer[5] != 7 || le32(answer[headSize:]) != uint32(linux.ENOTSUP) {
		t.Errorf("an extended attribute: %q", answer)
	}
	if answer := ask(message(24, 1, 0, 0, 0, 0, 0xff, 0x3f, 0, 0, 0, 0, 0, 0)); answer[4] != 25 {
		t.Errorf("after an extended attribute: %q", answer)
	}
	guest.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestReadsNoAnswers has a guest that asks and never listens: it is not read from
// any more.
func TestReadsNoAnswers(t *testing.T) {
	s, err := New(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.Serve(host) }()
	guest.SetWriteDeadline(time.Now().Add(2 * time.Second))
	sent := 0
	for ; sent < 100*maxWaiting; sent++ {
		if _, err := guest.Write(message(24, uint16(sent), 0, 0, 0, 0, 0xff, 0x3f, 0, 0, 0, 0, 0, 0)); err != nil {
			break
		}
	}
	if sent > 100*maxWaiting-1 {
		t.Errorf("the host took %d requests of a guest that reads no answer", sent)
	}
	guest.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	s.Close()
}

// FuzzServe sends arbitrary bytes; whatever they do stays in the folder.
func FuzzServe(f *testing.F) {
	version := message(100, 0xffff, append([]byte{0, 0, 2, 0, 8, 0}, "9P2000.L"...)...)
	f.Add(bytes.Join([][]byte{version, message(typeAttach, 1, attachBody(0, 0)...), message(24, 1, 0, 0, 0, 0, 0xff, 0x3f, 0, 0, 0, 0, 0, 0)}, nil))
	f.Add(bytes.Join([][]byte{version, message(typeAttach, 1, attachBody(0, 0)...), message(110, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 'f')}, nil))
	f.Add(message(typeAttach, 1, 1, 2, 3))
	top := f.TempDir()
	if err := os.WriteFile(filepath.Join(top, "outside"), []byte("untouched"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := filepath.Join(top, "shared")
		os.Mkdir(dir, 0o700)
		os.WriteFile(filepath.Join(dir, "f"), []byte("f"), 0o600)
		s, err := New(dir, Options{Files: 100})
		if err != nil {
			t.Fatal(err)
		}
		host, guest := net.Pipe()
		served := make(chan struct{})
		go func() {
			s.Serve(host)
			close(served)
		}()
		go io.Copy(io.Discard, guest)
		guest.SetWriteDeadline(time.Now().Add(time.Second))
		guest.Write(raw)
		guest.Close()
		<-served
		s.Close()
		if n := s.files.Load(); n != 0 {
			t.Errorf("%d files are left", n)
		}
		if left, err := os.ReadDir(top); err != nil || len(left) != 2 {
			t.Errorf("beside the folder: %v, %v", left, err)
		}
		if text, _ := os.ReadFile(filepath.Join(top, "outside")); string(text) != "untouched" {
			t.Errorf("outside: %q", text)
		}
		os.RemoveAll(dir)
	})
}
