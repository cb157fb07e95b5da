package main

import (
	"bytes"
	"path/filepath"

	"github.com/berthvm/berth/images/hello"
)

// containerImages adds the container images that every machine has from the
// start, as OCI archives, so that a first run needs no network.
func (r root) containerImages(s settings) error {
	var archive bytes.Buffer
	if err := hello.Write(&archive, filepath.Join(r.tree, "bin", "busybox"), s.arch); err != nil {
		return err
	}
	return r.write("usr/share/berth/images/hello.tar", 0o644, archive.Bytes())
}
