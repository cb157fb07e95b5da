package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
)

func event(id string) events.Message {
	return events.Message{Type: events.ContainerEventType, Action: events.ActionStart, Actor: events.Actor{ID: id}}
}

func open(t *testing.T, dir string) *Journal {
	t.Helper()
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func TestPastAndFutureJoin(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	start := time.Now()
	j.Publish(event("a"))
	j.Close()

	j = open(t, dir)
	j.Publish(event("b"))
	past, sub, err := j.Subscribe(start)
	if err != nil {
		t.Fatal(err)
	}
	j.Publish(event("c"))
	got := ""
	for _, m := range past {
		got += m.Actor.ID
	}
	got += (<-sub.C).Actor.ID
	if got != "abc" {
		t.Errorf("got events %q, want abc", got)
	}
	sub.Close()
	if _, open := <-sub.C; open {
		t.Error("a closed subscription still delivers")
	}
	if n := j.Subscribers(); n != 0 {
		t.Errorf("%d subscribers left", n)
	}
}

func TestCutLine(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	j.Publish(event("a"))
	j.Close()
	data, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(j.path, append(data, `{"Type":"contai`...), 0o600); err != nil {
		t.Fatal(err)
	}
	j = open(t, dir)
	j.Publish(event("b"))
	past, _, err := j.Subscribe(time.Unix(0, 1))
	if err != nil || len(past) != 2 {
		t.Errorf("got %d events, %v; want 2", len(past), err)
	}
}

func TestSlowSubscriberIsCutOff(t *testing.T) {
	j := open(t, t.TempDir())
	_, sub, err := j.Subscribe(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for range queue + 1 {
		j.Publish(event("x"))
	}
	n := 0
	for range sub.C {
		n++
	}
	if n != queue {
		t.Errorf("got %d events before the end, want %d", n, queue)
	}
}

func TestRotation(t *testing.T) {
	j := open(t, t.TempDir())
	big := strings.Repeat("x", 10_000)
	for i := range 300 {
		j.Publish(event(fmt.Sprint(i, big)))
	}
	if j.size > maxFile {
		t.Errorf("the file has %d bytes, more than %d", j.size, maxFile)
	}
	past, _, err := j.Subscribe(time.Unix(0, 1))
	if err != nil || len(past) < 100 || !strings.HasPrefix(past[len(past)-1].Actor.ID, "299") {
		t.Errorf("got %d events, %v", len(past), err)
	}
}

// FuzzRead: whatever a crash left in the file, the events that are whole are told.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"Type":"container","Action":"start","timeNano":5}` + "\n" + `{"Type":"cont`))
	f.Add([]byte("null\n[]\n{\"timeNano\":\"x\"}\n"))
	name := filepath.Join(f.TempDir(), "events")
	f.Fuzz(func(t *testing.T, before []byte) {
		whole := "\n" + `{"Type":"image","Action":"pull","timeNano":9223372036854775807}` + "\n"
		if err := os.WriteFile(name, append(before, whole...), 0o600); err != nil {
			t.Fatal(err)
		}
		past, err := readSince(nil, name, 0)
		if err != nil || len(past) == 0 || past[len(past)-1].Action != events.ActionPull {
			t.Errorf("%q: %+v, %v", before, past, err)
		}
	})
}
