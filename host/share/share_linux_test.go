package share

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/host/share/owner"
)

// mounted serves a fresh folder through the machine's own FUSE, as the guest's
// kernel would mount it, and returns the folder and the mount.
func mounted(t *testing.T, o Options) (host, guest string) {
	t.Helper()
	return mountedAs(t, o, func(f *FS) fuse.RawFileSystem { return f })
}

// mountedAs is mounted, with what as makes of the FS in between.
func mountedAs(t *testing.T, o Options, as func(*FS) fuse.RawFileSystem) (host, guest string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root; the end-to-end suite covers the same through a VM")
	}
	host, guest = t.TempDir(), t.TempDir()
	must(t, os.Chmod(filepath.Dir(host), 0o755)) // other users go through it
	f, err := New(host, o)
	if err != nil {
		t.Fatal(err)
	}
	options := f.mountOptions()
	options.AllowOther, options.DirectMountStrict, options.Options = true, true, []string{"default_permissions"}
	s, err := fuse.NewServer(as(f), guest, options)
	if err != nil {
		t.Fatalf("this test needs /dev/fuse: %v", err)
	}
	go s.Serve()
	if err := s.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left := func() int {
			f.mu.Lock()
			defer f.mu.Unlock()
			return len(f.handles)
		}
		// The kernel releases files after close has returned.
		for deadline := time.Now().Add(5 * time.Second); left() > 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if n := left(); n != 0 {
			t.Errorf("%d handles left open", n)
		}
		if err := s.Unmount(); err != nil {
			unix.Unmount(guest, unix.MNT_DETACH)
			t.Error(err)
		}
		s.Wait()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return host, guest
}

// TestMain clears the umask, which the guest's kernel would apply and the tests
// do not want.
func TestMain(m *testing.M) {
	unix.Umask(0)
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReadWrite(t *testing.T) {
	host, guest := mounted(t, Options{})
	data := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	must(t, os.WriteFile(filepath.Join(guest, "big"), data, 0o644))
	got, err := os.ReadFile(filepath.Join(host, "big"))
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the host reads %d bytes, %v", len(got), err)
	}
	must(t, os.WriteFile(filepath.Join(host, "from host"), data, 0o644))
	got, err = os.ReadFile(filepath.Join(guest, "from host"))
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("the guest reads %d bytes, %v", len(got), err)
	}
	fd, err := os.OpenFile(filepath.Join(guest, "big"), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	fd.WriteString("end")
	must(t, fd.Sync())
	must(t, fd.Close())
	must(t, os.Truncate(filepath.Join(guest, "from host"), 5))
	if fi, _ := os.Stat(filepath.Join(host, "big")); fi.Size() != int64(len(data)+3) {
		t.Errorf("after appending: %d bytes", fi.Size())
	}
	if fi, _ := os.Stat(filepath.Join(host, "from host")); fi.Size() != 5 {
		t.Errorf("after truncating: %d bytes", fi.Size())
	}
}

// TestSetIDBits: a file that others than root change loses them, however they do.
func TestSetIDBits(t *testing.T) {
	_, guest := mounted(t, Options{})
	file := filepath.Join(guest, "file")
	must(t, os.WriteFile(file, []byte("data"), 0o666))
	const both = unix.S_ISUID | unix.S_ISGID
	mode := func() uint16 {
		t.Helper()
		var st unix.Statx_t // the kernel may not believe what it knew
		must(t, unix.Statx(unix.AT_FDCWD, file, unix.AT_STATX_FORCE_SYNC, unix.STATX_MODE, &st))
		return st.Mode & both
	}
	for _, tc := range []struct {
		name, script string
		root         bool
	}{
		{"a write", "printf x >>$0", false},
		{"truncating", ": >$0", false},
		{"allocating", "fallocate -l 9000 $0", false},
		{"copying", "cp --reflink=auto $0.source $0", false},
		{"root's write", "printf x >>$0", true},
	} {
		must(t, os.WriteFile(file+".source", make([]byte, 10000), 0o644))
		must(t, os.Chmod(file, 0o777|os.ModeSetuid|os.ModeSetgid))
		if got := mode(); got != both {
			t.Fatalf("%s: mode %o to begin with", tc.name, got)
		}
		cmd := exec.Command("sh", "-ec", tc.script, file)
		want := uint16(both)
		if !tc.root {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
			want = 0
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", tc.name, err, out)
		}
		if got := mode(); got != want {
			t.Errorf("%s leaves mode %o, want %o", tc.name, got, want)
		}
	}
}

// TestWriteAlone: a program's writes are the only requests they cause.
func TestWriteAlone(t *testing.T) {
	var asked atomic.Int32
	_, guest := mountedAs(t, Options{}, func(f *FS) fuse.RawFileSystem { return countXAttrs{f, &asked} })
	file, err := os.Create(filepath.Join(guest, "file"))
	must(t, err)
	defer file.Close()
	for range 100 {
		_, err := file.Write([]byte("x"))
		must(t, err)
	}
	if n := asked.Load(); n > 1 {
		t.Errorf("100 writes asked %d times for attributes, want once", n)
	}
}

// countXAttrs counts look-ups of extended attributes.
type countXAttrs struct {
	*FS
	asked *atomic.Int32
}

func (c countXAttrs) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	c.asked.Add(1)
	return c.FS.GetXAttr(cancel, in, attr, dest)
}

func TestNames(t *testing.T) {
	host, guest := mounted(t, Options{})
	must(t, os.MkdirAll(filepath.Join(guest, "a/b/c"), 0o755))
	for _, name := range []string{"plain", "spa ce", "ümlaut", "\xff\xfe not UTF-8", strings.Repeat("x", 255)} {
		must(t, os.WriteFile(filepath.Join(guest, "a", name), []byte(name), 0o644))
		if got, err := os.ReadFile(filepath.Join(host, "a", name)); err != nil || string(got) != name {
			t.Errorf("%q on the host: %q, %v", name, got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(guest, strings.Repeat("x", 256)), nil, 0o644); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a name too long: %v", err)
	}
	must(t, os.Rename(filepath.Join(guest, "a/plain"), filepath.Join(guest, "a/b/moved")))
	must(t, os.Link(filepath.Join(guest, "a/b/moved"), filepath.Join(guest, "a/b/linked")))
	must(t, os.Symlink("moved", filepath.Join(guest, "a/b/sym")))
	if got, err := os.ReadFile(filepath.Join(guest, "a/b/sym")); err != nil || string(got) != "plain" {
		t.Errorf("through the link: %q, %v", got, err)
	}
	var one, two unix.Stat_t
	must(t, unix.Stat(filepath.Join(guest, "a/b/moved"), &one))
	must(t, unix.Stat(filepath.Join(guest, "a/b/linked"), &two))
	if one.Ino != two.Ino || one.Nlink != 2 {
		t.Errorf("hard link: inodes %d and %d, %d links", one.Ino, two.Ino, one.Nlink)
	}
	must(t, unix.Renameat2(unix.AT_FDCWD, filepath.Join(guest, "a/b/sym"), unix.AT_FDCWD, filepath.Join(guest, "a/b/linked"), unix.RENAME_EXCHANGE))
	if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(guest, "a/b/sym"), unix.AT_FDCWD, filepath.Join(guest, "a/b/linked"), unix.RENAME_NOREPLACE); err != unix.EEXIST {
		t.Errorf("rename without replacing: %v", err)
	}
	if err := os.Remove(filepath.Join(guest, "a")); err == nil {
		t.Error("a full folder was removed")
	}
	must(t, os.RemoveAll(filepath.Join(guest, "a")))
	if _, err := os.Lstat(filepath.Join(host, "a")); !os.IsNotExist(err) {
		t.Errorf("after removal: %v", err)
	}
}

func TestManyNames(t *testing.T) {
	host, guest := mounted(t, Options{})
	want := map[string]bool{}
	for i := range 3000 {
		name := fmt.Sprintf("file-%04d-%s", i, strings.Repeat("n", i%40))
		must(t, os.WriteFile(filepath.Join(host, name), nil, 0o644))
		want[name] = true
	}
	entries, err := os.ReadDir(guest)
	must(t, err)
	for _, e := range entries {
		if _, err := e.Info(); err != nil || !want[e.Name()] {
			t.Errorf("unexpected or twice: %s, %v", e.Name(), err)
		}
		delete(want, e.Name())
	}
	if len(want) > 0 {
		t.Errorf("%d names are missing", len(want))
	}
}

// as runs f in a thread that acts as the guest's user uid.
func as(uid int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread dies with its ids
		unix.Setfsgid(uid)
		unix.Setfsuid(uid)
		f()
	}()
	<-done
}

func TestOwners(t *testing.T) {
	host, guest := mounted(t, Options{})
	stat := func(p string) (st unix.Stat_t) {
		t.Helper()
		must(t, unix.Lstat(p, &st))
		return st
	}
	shared := filepath.Join(guest, "shared")
	must(t, os.WriteFile(filepath.Join(host, "shared"), nil, 0o600))
	if st := stat(shared); st.Uid != 0 {
		t.Errorf("root sees the owner %d", st.Uid)
	}
	as(1234, func() {
		if err := os.WriteFile(shared, []byte("x"), 0); err != nil {
			t.Errorf("another user of the guest has no access to what belongs to whoever asks: %v", err)
		}
	})

	must(t, os.Chown(shared, 999, 998))
	must(t, unix.Chmod(shared, 0o4640))
	st := stat(shared)
	if st.Uid != 999 || st.Gid != 998 || st.Mode&0o7777 != 0o4640 {
		t.Errorf("after chown and chmod: %d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	real := stat(filepath.Join(host, "shared"))
	if real.Uid != uint32(os.Getuid()) || real.Mode&0o7777 != 0o640 {
		t.Errorf("on the host: %d %o", real.Uid, real.Mode)
	}
	must(t, os.Chmod(filepath.Join(host, "shared"), 0o755))
	time.Sleep(Validity + 100*time.Millisecond)
	if st := stat(shared); st.Mode&0o7777 != 0o755 {
		t.Errorf("a chmod on the host is not seen: %o", st.Mode)
	}
	must(t, os.Chmod(shared, 0))
	if real := stat(filepath.Join(host, "shared")); real.Mode&0o777 != 0o600 {
		t.Errorf("the host's owner lost access: %o", real.Mode)
	}
	if st := stat(shared); st.Mode&0o7777 != 0 {
		t.Errorf("chmod 0: %o", st.Mode)
	}

	must(t, os.Mkdir(filepath.Join(guest, "dir"), 0o777))
	must(t, os.Chown(filepath.Join(guest, "dir"), 70, 70))
	must(t, os.Chmod(filepath.Join(guest, "dir"), 0o700))
	as(70, func() {
		if err := os.WriteFile(filepath.Join(guest, "dir/own"), nil, 0o600); err != nil {
			t.Errorf("the owner cannot write into its folder: %v", err)
		}
	})
	if st := stat(filepath.Join(guest, "dir/own")); st.Uid != 70 || st.Gid != 70 {
		t.Errorf("root sees a file of user 70 as %d:%d", st.Uid, st.Gid)
	}
	as(71, func() {
		if _, err := os.ReadDir(filepath.Join(guest, "dir")); err == nil {
			t.Error("a stranger reads a folder with mode 700")
		}
	})
}

func TestSpecialFiles(t *testing.T) {
	host, guest := mounted(t, Options{})
	for _, c := range []struct {
		name string
		mode uint32
	}{{"fifo", unix.S_IFIFO | 0o644}, {"sock", unix.S_IFSOCK | 0o666}, {"null", unix.S_IFCHR | 0o666}, {"disk", unix.S_IFBLK | 0o660}} {
		p := filepath.Join(guest, c.name)
		must(t, unix.Mknod(p, c.mode, int(unix.Mkdev(1, 3))))
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		if st.Mode != c.mode || (c.mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev != unix.Mkdev(1, 3)) {
			t.Errorf("%s: mode %o, device %d", c.name, st.Mode, st.Rdev)
		}
		must(t, unix.Lstat(filepath.Join(host, c.name), &st))
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			t.Errorf("%s is no regular file on the host: %o", c.name, st.Mode)
		}
		must(t, os.Remove(p))
	}
	// The host's own device is shown, but the server does not open it.
	must(t, unix.Mknod(filepath.Join(host, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	f, err := New(host, Options{})
	must(t, err)
	defer f.Close()
	var entry fuse.EntryOut
	if s := f.Lookup(nil, &fuse.InHeader{NodeId: 1}, "zero", &entry); !s.Ok() {
		t.Fatal(s)
	}
	var out fuse.OpenOut
	if s := f.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: entry.NodeId}}, &out); s.Ok() {
		t.Error("a guest made the host open a device")
	}
}

func TestXattrs(t *testing.T) {
	host, guest := mounted(t, Options{})
	p := filepath.Join(guest, "f")
	must(t, os.WriteFile(p, nil, 0o644))
	must(t, unix.Setxattr(p, "user.note", []byte("hi"), 0))
	must(t, os.Chown(p, 5, 5))
	buf := make([]byte, 100)
	n, err := unix.Getxattr(p, "user.note", buf)
	if err != nil || string(buf[:n]) != "hi" {
		t.Errorf("user.note: %q, %v", buf[:max(n, 0)], err)
	}
	if n, err = unix.Listxattr(p, buf); err != nil || string(buf[:n]) != "user.note\x00" {
		t.Errorf("list: %q, %v", buf[:max(n, 0)], err)
	}
	if _, err = unix.Getxattr(p, owner.Xattr, buf); err == nil {
		t.Error("the guest reads Berth's own attribute")
	}
	if err = unix.Setxattr(p, owner.Xattr, []byte("0:0:104777:0"), 0); err == nil {
		t.Error("the guest writes Berth's own attribute")
	}
	if _, err = unix.Getxattr(filepath.Join(host, "f"), owner.Xattr, buf); err != nil {
		t.Errorf("the owner is not recorded: %v", err)
	}
}

// TestNoEscape: links that point out lead, on the host, nowhere.
func TestNoEscape(t *testing.T) {
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600))
	host := t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(host, "out")))
	must(t, os.Symlink("/proc/self/fd", filepath.Join(host, "magic")))
	f, err := New(host, Options{})
	must(t, err)
	defer f.Close()
	head := func(id uint64) *fuse.InHeader { return &fuse.InHeader{NodeId: id} }
	var out fuse.EntryOut
	for _, name := range []string{"..", ".", "", "a/b", "../x", "/etc", "a\x00b"} {
		if s := f.Lookup(nil, head(1), name, &out); s.Ok() {
			t.Errorf("lookup of %q succeeded", name)
		}
		if s := f.Mkdir(nil, &fuse.MkdirIn{InHeader: *head(1)}, name, &out); s.Ok() {
			t.Errorf("mkdir of %q succeeded", name)
		}
	}
	for _, link := range []string{"out", "magic"} {
		if s := f.Lookup(nil, head(1), link, &out); !s.Ok() || out.Mode&unix.S_IFMT != unix.S_IFLNK {
			t.Fatalf("%s: %v, mode %o", link, s, out.Mode)
		}
		id := out.NodeId
		var in fuse.EntryOut
		if s := f.Lookup(nil, head(id), "secret", &in); s != fuse.ENOTDIR {
			t.Errorf("%s/secret: %v", link, s)
		}
		var open fuse.OpenOut
		if s := f.OpenDir(nil, &fuse.OpenIn{InHeader: *head(id)}, &open); s.Ok() {
			t.Errorf("%s opened as a folder", link)
		}
		if s := f.Open(nil, &fuse.OpenIn{InHeader: *head(id)}, &open); s.Ok() {
			t.Errorf("%s opened as a file", link)
		}
		size := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: *head(id), Valid: fuse.FATTR_SIZE | fuse.FATTR_MODE}}
		var attr fuse.AttrOut
		f.SetAttr(nil, &size, &attr)
	}
	if b, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(b) != "s" {
		t.Errorf("the file outside: %q, %v", b, err)
	}
	if fi, _ := os.Stat(outside); fi.Mode().Perm() == 0 {
		t.Error("chmod went through a link")
	}
}

// TestRace swaps a folder for a link while the guest creates files in it.
func TestRace(t *testing.T) {
	outside := t.TempDir()
	host, guest := mounted(t, Options{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			os.Mkdir(filepath.Join(host, "d"), 0o755)
			os.RemoveAll(filepath.Join(host, "d"))
			os.Symlink(outside, filepath.Join(host, "d"))
			os.Remove(filepath.Join(host, "d"))
		}
	})
	// O_NOFOLLOW on the guest's side of d: what is left is what the server does.
	for i := range 2000 {
		dir, err := unix.Open(filepath.Join(guest, "d"), unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if fd, err := unix.Openat(dir, fmt.Sprint(i), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644); err == nil {
			unix.Close(fd)
		}
		unix.Close(dir)
	}
	close(stop)
	wg.Wait()
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("%d files were made outside of the folder", len(left))
	}
}

func TestHidden(t *testing.T) {
	dir := t.TempDir()
	host := filepath.Join(dir, "home")
	state := filepath.Join(host, ".local", "berth")
	later := filepath.Join(host, ".local", "later")
	must(t, os.MkdirAll(state, 0o700))
	must(t, os.WriteFile(filepath.Join(state, "key"), nil, 0o600))
	f, err := New(host, Options{Hidden: []string{state, later}})
	must(t, err)
	defer f.Close()
	var local, out fuse.EntryOut
	if s := f.Lookup(nil, &fuse.InHeader{NodeId: 1}, ".local", &local); !s.Ok() {
		t.Fatal(s)
	}
	head := fuse.InHeader{NodeId: local.NodeId}
	if s := f.Lookup(nil, &head, "berth", &out); s != fuse.ENOENT {
		t.Errorf("lookup: %v", s)
	}
	must(t, os.Mkdir(later, 0o700))
	if s := f.Lookup(nil, &head, "later", &out); s != fuse.ENOENT {
		t.Errorf("lookup of what came later: %v", s)
	}
	if s := f.Mkdir(nil, &fuse.MkdirIn{InHeader: head}, "berth", &out); s.Ok() {
		t.Error("mkdir in its place")
	}
	if s := f.Rename(nil, &fuse.RenameIn{InHeader: head, Newdir: 1}, "berth", "seen"); s.Ok() {
		t.Error("it was renamed")
	}
	must(t, os.Rename(state, filepath.Join(host, "elsewhere")))
	if s := f.Lookup(nil, &fuse.InHeader{NodeId: 1}, "elsewhere", &out); s != fuse.ENOENT {
		t.Errorf("lookup where the host has moved it: %v", s)
	}
}

// TestFewDescriptors: the guest may know more files than the FS has descriptors.
func TestFewDescriptors(t *testing.T) {
	host, guest := mounted(t, Options{Descriptors: 40})
	const dirs, files = 20, 20
	name := func(top string, d, i int) string {
		return filepath.Join(top, fmt.Sprintf("d%d", d), "sub", fmt.Sprintf("f%d", i))
	}
	// An open file outlives its name and all that follows.
	open, err := os.Create(filepath.Join(guest, "open"))
	must(t, err)
	defer open.Close()
	must(t, os.Remove(filepath.Join(guest, "open")))
	for d := range dirs {
		must(t, os.MkdirAll(filepath.Dir(name(guest, d, 0)), 0o755))
		for i := range files {
			must(t, os.WriteFile(name(guest, d, i), fmt.Append(nil, d, i), 0o644))
		}
	}
	descriptors, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	if len(descriptors) > 200 {
		t.Errorf("%d descriptors are open", len(descriptors))
	}
	must(t, os.Rename(filepath.Join(guest, "d0"), filepath.Join(guest, "moved")))
	must(t, os.Rename(filepath.Join(guest, "moved"), filepath.Join(guest, "d0")))
	must(t, os.Rename(name(guest, 1, 1), name(guest, 2, 2))) // onto another
	must(t, os.Remove(name(host, 3, 3)))                     // by the host, in between
	must(t, os.WriteFile(name(host, 3, 3), []byte("new"), 0o644))
	for range 2 {
		for d := range dirs {
			for i := range files {
				want := fmt.Sprint(d, i)
				switch {
				case d == 1 && i == 1:
					if _, err := os.Stat(name(guest, d, i)); !os.IsNotExist(err) {
						t.Errorf("what was moved: %v", err)
					}
					continue
				case d == 2 && i == 2:
					want = fmt.Sprint(1, 1)
				case d == 3 && i == 3:
					want = "new"
				}
				if got, err := os.ReadFile(name(guest, d, i)); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v", name("", d, i), got, err)
				}
			}
		}
	}
	_, err = open.WriteString("still there")
	must(t, err)
	must(t, open.Truncate(5))
	if st, err := open.Stat(); err != nil || st.Size() != 5 {
		t.Errorf("the file without a name: %v, %v", st, err)
	}
	must(t, os.RemoveAll(filepath.Join(guest, "d5")))
	// Too many open files are the guest's error, not the end.
	var many []*os.File
	for len(many) < 100 && err == nil {
		var f *os.File
		if f, err = os.Open(name(guest, 6, len(many)%files)); err == nil {
			many = append(many, f)
		}
	}
	for _, f := range many {
		f.Close()
	}
	if !errors.Is(err, unix.ENFILE) || len(many) < 5 {
		t.Errorf("after %d open files: %v", len(many), err)
	}
}

// TestWayToHidden: nobody can put another folder where the host looks for the
// hidden one.
func TestWayToHidden(t *testing.T) {
	dir := t.TempDir()
	host := filepath.Join(dir, "home")
	must(t, os.MkdirAll(filepath.Join(host, "real", "deep", "berth"), 0o700))
	must(t, os.MkdirAll(filepath.Join(host, "other"), 0o700))
	must(t, os.Symlink("real", filepath.Join(host, "link")))
	f, err := New(host, Options{Hidden: []string{filepath.Join(host, "link", "deep", "berth"), filepath.Join(host, "none", "berth")}})
	must(t, err)
	defer f.Close()
	root := fuse.InHeader{NodeId: 1}
	busy := fuse.Status(unix.EBUSY)
	for _, name := range []string{"real", "link"} {
		if s := f.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: 1}, name, "seen"); s != busy {
			t.Errorf("%s was moved: %v", name, s)
		}
		if s := f.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: 1, Flags: unix.RENAME_EXCHANGE}, "other", name); s != busy {
			t.Errorf("%s was exchanged: %v", name, s)
		}
	}
	if s := f.Unlink(nil, &root, "link"); s != busy {
		t.Errorf("the link was removed: %v", s)
	}
	if s := f.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: 1}, "other", "free"); !s.Ok() {
		t.Errorf("a folder beside: %v", s)
	}
}

func TestReadOnly(t *testing.T) {
	host, guest := mounted(t, Options{ReadOnly: true})
	must(t, os.WriteFile(filepath.Join(host, "f"), []byte("x"), 0o666))
	if _, err := os.ReadFile(filepath.Join(guest, "f")); err != nil {
		t.Error(err)
	}
	for name, try := range map[string]func() error{
		"write":  func() error { return os.WriteFile(filepath.Join(guest, "f"), nil, 0) },
		"create": func() error { return os.WriteFile(filepath.Join(guest, "g"), nil, 0o644) },
		"remove": func() error { return os.Remove(filepath.Join(guest, "f")) },
		"chmod":  func() error { return os.Chmod(filepath.Join(guest, "f"), 0) },
		"mkdir":  func() error { return os.Mkdir(filepath.Join(guest, "d"), 0o755) },
		"rename": func() error { return os.Rename(filepath.Join(guest, "f"), filepath.Join(guest, "h")) },
		"xattr":  func() error { return unix.Setxattr(filepath.Join(guest, "f"), "user.x", nil, 0) },
	} {
		if err := try(); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSparseAndMmap(t *testing.T) {
	host, guest := mounted(t, Options{})
	p := filepath.Join(guest, "sparse")
	file, err := os.Create(p)
	must(t, err)
	defer file.Close()
	must(t, file.Truncate(1<<30))
	_, err = file.WriteAt([]byte("data"), 512<<20)
	must(t, err)
	if off, err := unix.Seek(int(file.Fd()), 0, unix.SEEK_DATA); err != nil || off != 512<<20 {
		t.Errorf("first data at %d, %v", off, err)
	}
	var st syscall.Stat_t
	must(t, syscall.Stat(filepath.Join(host, "sparse"), &st))
	if st.Blocks*512 > 1<<20 {
		t.Errorf("a sparse file takes %d bytes", st.Blocks*512)
	}
	m, err := unix.Mmap(int(file.Fd()), 512<<20, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	copy(m, "mapped")
	must(t, unix.Msync(m, unix.MS_SYNC))
	must(t, unix.Munmap(m))
	got := make([]byte, 6)
	hf, err := os.Open(filepath.Join(host, "sparse"))
	must(t, err)
	defer hf.Close()
	if hf.ReadAt(got, 512<<20); string(got) != "mapped" {
		t.Errorf("the host sees %q", got)
	}
}

// TestTools: what people do in shared folders.
func TestTools(t *testing.T) {
	_, guest := mounted(t, Options{})
	script := `set -e; cd "$1"; git init -q r; cd r; for i in $(seq 200); do echo $i >f$i; done
git add .; git -c user.name=a -c user.email=a@b commit -qm x; git status --porcelain | wc -l | grep -qx 0; git gc -q
tar cf ../t.tar .; mkdir ../u; tar xpf ../t.tar -C ../u; diff -r . ../u; cp -a . ../v; flock ../lock true; rm -r ../u ../v`
	if out, err := exec.Command("bash", "-c", script, "bash", guest).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestReset(t *testing.T) {
	f, err := New(t.TempDir(), Options{})
	must(t, err)
	var out fuse.EntryOut
	if s := f.Mkdir(nil, &fuse.MkdirIn{InHeader: fuse.InHeader{NodeId: 1}, Mode: 0o755}, "d", &out); !s.Ok() {
		t.Fatal(s)
	}
	must(t, f.Reset())
	var attr fuse.AttrOut
	if s := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: out.NodeId}}, &attr); s.Ok() {
		t.Error("a node outlived the reset")
	}
	if s := f.Lookup(nil, &fuse.InHeader{NodeId: 1}, "d", &out); !s.Ok() {
		t.Errorf("lookup after the reset: %v", s)
	}
	must(t, f.Close())
	must(t, f.Close())
	if n := f.HandleRequest([][]byte{make([]byte, 64)}, [][]byte{make([]byte, 64)}); n != 0 {
		t.Errorf("a closed folder answered %d bytes", n)
	}
}

// FuzzRequest sends arbitrary requests; whatever they do stays in the folder.
func FuzzRequest(f *testing.F) {
	outside, err := os.MkdirTemp("", "share-fuzz-")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(outside) })
	folder := filepath.Join(outside, "folder")
	os.Mkdir(folder, 0o755)
	os.Symlink("..", filepath.Join(folder, "up"))
	fs, err := New(folder, Options{})
	if err != nil {
		f.Fatal(err)
	}
	for op := range byte(53) {
		in := make([]byte, 120)
		in[4], in[16] = op, 1
		copy(in[40:], "up\x00x\x00")
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		fs.HandleRequest([][]byte{in}, [][]byte{make([]byte, 8192)})
		entries, err := os.ReadDir(outside)
		if err != nil || len(entries) != 1 {
			t.Fatalf("outside of the folder: %v, %v", entries, err)
		}
	})
}
