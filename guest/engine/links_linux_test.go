package engine_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/enginetest"
	"github.com/berthvm/berth/guest/network"
)

// TestLinks: a container knows another by the alias, the host name and the name,
// at the address it has now.
func TestLinks(t *testing.T) {
	w := enginetest.New(t)
	e := w.Engine()
	db := create(t, e, "db", nil, "sleep")
	web := create(t, e, "web", &apicontainer.HostConfig{Links: []string{"db:/store", "db"}}, "sleep")
	if err := e.Start(ctx, web); err == nil || !strings.Contains(err.Error(), "Cannot link to a non running container: /db AS /web/store") {
		t.Errorf("linked to what does not run: %v", err)
	}
	start(t, e, db)
	start(t, e, web)
	hosts := func() string {
		t.Helper()
		r, err := e.Inspect(ctx, web, false)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(r.HostConfig.Links, " "); got != "/db:/web/store /db:/web/db" {
			t.Errorf("inspect shows %q", got)
		}
		data, err := os.ReadFile(r.HostsPath)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if got := hosts(); !strings.Contains(got, "172.17.0.1\tstore "+db[:12]+" db\n") || !strings.Contains(got, "172.17.0.1\tdb "+db[:12]+"\n") {
		t.Errorf("hosts:\n%s", got)
	}
	if err := e.Restart(ctx, db, engine.StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := hosts(); !strings.Contains(got, "172.17.0.3\tstore ") || strings.Contains(got, "172.17.0.1\t") {
		t.Errorf("hosts after the other has a new address:\n%s", got)
	}
	list, err := e.List(ctx, engine.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(s apicontainer.Summary) bool { return s.ID == db })
	if got := strings.Join(list[i].Names, " "); got != "/db /web/db /web/store" {
		t.Errorf("the list calls it %s", got)
	}
	if r, err := e.Inspect(ctx, "/web/store", false); err != nil || r.ID != db {
		t.Errorf("by the link's name: %v", err)
	}
	if err := e.RemoveLink(ctx, "db"); !errdefs.IsConflict(err) {
		t.Errorf("removing the container's own name: %v", err)
	}
	if err := e.RemoveLink(ctx, "/web/db"); err != nil {
		t.Error(err)
	}
	if _, err := e.Inspect(ctx, "web/db", false); !errdefs.IsNotFound(err) {
		t.Errorf("a link that was removed: %v", err)
	}
	e.Close()
	e = w.Engine() // links outlive the engine
	if _, err := e.Inspect(ctx, "web/store", false); err != nil {
		t.Error(err)
	}
}

func TestBadLinks(t *testing.T) {
	e := enginetest.New(t).Engine()
	create(t, e, "host", &apicontainer.HostConfig{NetworkMode: "host"}, "sleep")
	for spec, want := range map[string]string{
		"":       "empty string specified for links",
		"a:b:c":  "invalid format for links: a:b:c",
		"nobody": "could not get container for nobody: No such container: nobody",
		"host":   "conflicting options: host type networking can't be used with links. This would result in undefined behavior",
	} {
		_, _, err := e.Create(ctx, engine.CreateOptions{Config: &apicontainer.Config{Image: "img"},
			HostConfig: &apicontainer.HostConfig{Links: []string{spec}}})
		if !errdefs.IsInvalidArgument(err) || err.Error() != want {
			t.Errorf("%q: %v, want %s", spec, err, want)
		}
	}
}

// TestHostNetworkHosts: a container with the machine's network knows the names that
// the machine knows.
func TestHostNetworkHosts(t *testing.T) {
	machine, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	e := enginetest.New(t).Engine()
	id := create(t, e, "here", &apicontainer.HostConfig{NetworkMode: "host", ExtraHosts: []string{"db:10.0.0.1"}}, "sleep")
	start(t, e, id)
	r, err := e.Inspect(ctx, id, false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(r.HostsPath)
	if err != nil {
		t.Fatal(err)
	}
	if want := string(network.HostsLike(machine, nil)) + "10.0.0.1\tdb\n"; string(got) != want {
		t.Errorf("hosts:\n%s\nwant\n%s", got, want)
	}
}
