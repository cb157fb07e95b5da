package images

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"
)

func TestExpand(t *testing.T) {
	env := []string{"PATH=/old", "PATH=/bin", "EMPTY="}
	for in, want := range map[string]string{
		"":                     "",
		"PATH=/usr/bin:$PATH":  "PATH=/usr/bin:/bin",
		"${PATH}x$PATH.y":      "/binx/bin.y",
		"${NONE:-word}":        "word",
		"${PATH:-word}":        "/bin",
		"${EMPTY:-word}":       "word",
		"${PATH:+set}${NO:+x}": "set",
		"$NONE":                "",
		`\$PATH`:               "$PATH",
		`'$PATH' "$PATH"`:      `'$PATH' "/bin"`,
		"100$":                 "100$",
		"${PATH":               "${PATH",
		`a\b`:                  `a\b`,
	} {
		if got := expand(in, env); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestChange(t *testing.T) {
	c := apicontainer.Config{Env: []string{"A=1"}}
	err := Change(&c, []string{"ENV A=2 B=$A", "ENV C=$B", `LABEL x="a $B"`, `CMD echo $A`, "USER u$A", "WORKDIR /w/$B", "WORKDIR sub", "EXPOSE 80/udp $A",
		`VOLUME ["/v"]`, `ENTRYPOINT ["/x","$A"]`, "STOPSIGNAL SIGINT", "ONBUILD RUN $A"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"A=2", "B=1", "C=1"}; !reflect.DeepEqual(c.Env, want) {
		t.Errorf("env %q, want %q", c.Env, want)
	}
	if c.Labels["x"] != "a 1" || c.User != "u2" || c.WorkingDir != "/w/1/sub" || len(c.ExposedPorts) != 2 || len(c.Volumes) != 1 {
		t.Errorf("%+v", c)
	}
	if !reflect.DeepEqual([]string(c.Entrypoint), []string{"/x", "$A"}) || c.Cmd[2] != "echo $A" || c.OnBuild[0] != "RUN $A" {
		t.Errorf("commands are the container's to expand: %q, %q, %q", c.Entrypoint, c.Cmd, c.OnBuild)
	}
	// All together are a Dockerfile.
	c = apicontainer.Config{}
	if err := Change(&c, []string{"# first\nUSER u\nENV A=1 \\\n  B=2", "HEALTHCHECK --interval=5s --retries=4 CMD [\"true\"]", "healthcheck --timeout=1s cmd x y"}); err != nil {
		t.Fatal(err)
	}
	if h := c.Healthcheck; c.User != "u" || !reflect.DeepEqual(c.Env, []string{"A=1", "B=2"}) || h == nil || h.Interval != 0 ||
		h.Timeout != time.Second || !reflect.DeepEqual(h.Test, []string{"CMD-SHELL", "x y"}) {
		t.Errorf("%+v, health check %+v", c, h)
	}
	if err := Change(&c, []string{"HEALTHCHECK NONE"}); err != nil || !reflect.DeepEqual(c.Healthcheck.Test, []string{"NONE"}) {
		t.Errorf("no health check: %+v, %v", c.Healthcheck, err)
	}
	for _, bad := range []string{"", "RUN x", "ENV", "EXPOSE x", "ENV novalue", "HEALTHCHECK", "HEALTHCHECK --interval=x CMD y", "USER u\nRUN x"} {
		if err := Change(&c, []string{bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// FuzzChange: no instruction panics, and what is left out of a name stays out.
func FuzzChange(f *testing.F) {
	f.Add("ENV A=$B 'c d'=${E:-x}")
	f.Add(`LABEL a="b\" c" d`)
	f.Add("EXPOSE 80/tcp 1-3")
	f.Add("HEALTHCHECK --interval=1s CMD x \\\n y")
	f.Fuzz(func(t *testing.T, line string) {
		var c apicontainer.Config
		if err := Change(&c, []string{line}); err != nil {
			return
		}
		for _, kv := range c.Env {
			if !strings.Contains(kv, "=") {
				t.Errorf("%q: env %q", line, kv)
			}
		}
	})
}

// FuzzParsePlatform: a platform names what it is for, or is refused.
func FuzzParsePlatform(f *testing.F) {
	for _, v := range []string{"linux/amd64", "arm64/v8", `{"os":"linux","architecture":"arm"}`, `{"os.version":"1"}`, "{", "windows(1)/x", "//"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		p, err := ParsePlatform(v)
		switch {
		case err != nil:
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v is not the client's fault", v, err)
			}
		case v != "" && (p == nil || p.OS == "" || p.Architecture == ""):
			t.Errorf("%q is %+v", v, p)
		}
	})
}

// TestCommitted: what is committed over a container's configuration leaves that as it
// is.
func TestCommitted(t *testing.T) {
	container := func() *apicontainer.Config {
		return &apicontainer.Config{User: "1", Env: []string{"PATH=/bin", "A=1", "B=1"}, Cmd: []string{"own"},
			Labels: map[string]string{"own": "1", "both": "1"}, Volumes: map[string]struct{}{"/own": {}}}
	}
	own := container()
	over := &apicontainer.Config{User: "2", Env: []string{"B=2", "C=2"}, Labels: map[string]string{"both": "2"},
		ExposedPorts: apinet.PortSet{apinet.MustParsePort("2/tcp"): {}}}
	got, err := committed(own, over, []string{"ENV PATH=/sbin", "ENV A 3", "LABEL own=3", "VOLUME /new", "EXPOSE 3", "ONBUILD RUN true"})
	want := apicontainer.Config{User: "2", Env: []string{"PATH=/sbin", "A=3", "B=2", "C=2"}, Cmd: []string{"own"}, OnBuild: []string{"RUN true"},
		Labels: map[string]string{"own": "3", "both": "2"}, Volumes: map[string]struct{}{"/own": {}, "/new": {}},
		ExposedPorts: apinet.PortSet{apinet.MustParsePort("2/tcp"): {}, apinet.MustParsePort("3/tcp"): {}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("committed %+v, %v, want %+v", got, err, want)
	}
	if !reflect.DeepEqual(own, container()) {
		t.Errorf("the container is now %+v", own)
	}
	if len(over.Labels) != 1 || len(over.ExposedPorts) != 1 {
		t.Errorf("the request is now %+v", over)
	}
}
