package localkeeper

import (
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/guest/keeper"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFilesAndExit(t *testing.T) {
	k := New()
	defer k.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Put("a", []byte("rec"), r); err != nil {
		t.Fatal(err)
	}
	r.Close()
	io.WriteString(w, "kept")
	w.Close()
	e, err := k.Get("a")
	if err != nil || string(e.Record) != "rec" || len(e.Files) != 1 {
		t.Fatalf("got %+v, %v", e, err)
	}
	data, err := io.ReadAll(e.Files[0])
	if err != nil || string(data) != "kept" {
		t.Errorf("read %q, %v", data, err)
	}
	e.Files[0].Close()

	fd := -1
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "exit 7"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{PidFD: &fd}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	if err := k.Adopt("a", p.Pid, pidfd); err != nil {
		t.Fatal(err)
	}
	select {
	case x := <-k.Exits():
		if x.Key != "a" || x.Status.ExitStatus() != 7 {
			t.Errorf("exit %+v", x)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no exit")
	}
	if e, _ := k.Get("a"); e.Process == nil || !e.Process.Exited {
		t.Error("the entry does not know of the exit")
	}
	if err := k.Delete("a"); err != nil {
		t.Error(err)
	}
	if _, err := k.Get("a"); !errors.Is(err, keeper.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestCloseWithARunningProcess(t *testing.T) {
	k := New()
	fd := -1
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "100"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{PidFD: &fd}})
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	if err := k.Put("a", nil); err != nil {
		t.Fatal(err)
	}
	if err := k.Adopt("a", p.Pid, pidfd); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { k.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for the process")
	}
	_ = p.Kill()
	_, _ = p.Wait()
}
