package engine_test

import (
	"strings"
	"testing"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/enginetest"
)

// TestVolumes: what happens to a container's volumes is told, and an anonymous one
// stays as long as somebody has it.
func TestVolumes(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	_, sub, err := e.Journal.Subscribe(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	id := create(t, e, "first", &apicontainer.HostConfig{Binds: []string{"/anon", "named:/n:ro"}}, "exit", "0")
	lent := create(t, e, "second", &apicontainer.HostConfig{VolumesFrom: []string{"first"}}, "exit", "0")
	start(t, e, id)
	wait(t, e, id, "")
	r, err := e.Inspect(ctx, id, false)
	if err != nil || len(r.Mounts) != 2 || r.Mounts[0].Destination != "/anon" || len(r.Mounts[0].Name) != 64 || r.Mounts[0].Mode != "z" || r.Mounts[1].RW {
		t.Fatalf("%+v, %v", r.Mounts, err)
	}
	anon := r.Mounts[0].Name
	if users := strings.Join(e.VolumeUsers(anon), " "); !strings.Contains(users, id) || !strings.Contains(users, lent) {
		t.Errorf("users of the volume: %s", users)
	}
	for _, c := range []string{id, lent} {
		if err := e.Remove(ctx, c, engine.RemoveOptions{Volumes: true}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for destroyed := 0; destroyed < 2; {
		m := <-sub.C
		name := strings.NewReplacer(anon, "anon", id, "first", lent, "second").Replace(m.Actor.ID)
		if m.Type == events.VolumeEventType {
			got = append(got, string(m.Action)+" "+name)
		} else if m.Action == events.ActionDestroy {
			destroyed++
			got = append(got, "gone "+name)
		}
		if m.Action == events.ActionMount && name == "named" && (m.Actor.Attributes["container"] != id || m.Actor.Attributes["read/write"] != "false") {
			t.Errorf("mount carries %v", m.Actor.Attributes)
		}
	}
	const want = "create anon, create named, mount anon, mount named, unmount anon, unmount named, gone first, destroy anon, gone second"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("events: %s\nwant    %s", s, want)
	}
}
