package engine

import (
	"runtime"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestForeign(t *testing.T) {
	here := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	there := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	for _, c := range []struct {
		image ocispec.Platform
		asked *ocispec.Platform
		warns bool
	}{{here, nil, false}, {there, nil, true}, {there, &there, false}, {ocispec.Platform{}, nil, false}} {
		w := foreign(c.image, c.asked)
		if (w != "") != c.warns || c.warns && !strings.HasPrefix(w, "The requested image's platform (linux/s390x) does not match the detected host platform (linux/") {
			t.Errorf("%+v, %+v: %q", c.image, c.asked, w)
		}
	}
}
