package main

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestReadStat(t *testing.T) {
	const tail = " S 7 1 1 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 5 1000 300 184 1"
	for stat, want := range map[string]bool{
		"42 (a) b (c)" + tail: true,
		"42 a" + tail:         false,
		"42 (a) S 7":          false,
		"":                    false,
		"x (a)" + tail:        false,
	} {
		pid, ppid, rss, ok := readStat(stat)
		if ok != want || ok && (pid != 42 || ppid != 7 || rss != 300) {
			t.Errorf("%q: %d, %d, %d, %t", stat, pid, ppid, rss, ok)
		}
	}
}

// TestResident counts children too.
func TestResident(t *testing.T) {
	own, err := residentMiB(os.Getpid())
	if err != nil || own < 1 {
		t.Fatalf("%d MiB, %v", own, err)
	}
	child := exec.Command("sh", "-c", "x=$(head -c 60000000 /dev/zero | tr '\\0' x); sleep 60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		child.Process.Kill()
		child.Wait()
	}()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		now, err := residentMiB(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > own+40 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d MiB with a child of 60, %d without", now, own)
		}
	}
	if _, err := residentMiB(1 << 30); err == nil {
		t.Error("a process that is not there has memory")
	}
}
