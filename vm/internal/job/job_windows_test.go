package job

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestMain is a process that waits, when it is told so.
func TestMain(m *testing.M) {
	if os.Getenv("BERTH_TEST_WAIT") != "" {
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

func TestClose(t *testing.T) {
	j, err := New()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BERTH_TEST_WAIT=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if err := j.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("the process ended by itself: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the process outlives its job")
	}
}
