package main

import (
	"io"
	"path/filepath"
)

// archiveName is the archive's for a platform.
func (s settings) archiveName(p platform) string {
	name := "berth-" + s.version + "-" + p.String()
	if p.os == "windows" {
		return name + ".zip"
	}
	return name + ".tar.gz"
}

// pack makes a platform's archive, and for Linux Debian's package too.
func (s settings) pack(p platform, programs, work string) error {
	bill, err := s.bill(p, programs, work, guests...)
	if err != nil {
		return err
	}
	t, err := s.files(p, programs, work, bill)
	if err != nil {
		return err
	}
	top := "berth-" + s.version + "-" + p.String()
	err = write(filepath.Join(s.out, s.archiveName(p)), func(w io.Writer) error {
		var under tree
		for _, e := range t {
			e.name = top + "/" + e.name
			under.add(e)
		}
		if p.os == "windows" {
			return under.zip(w, s.when)
		}
		return under.tarball(w, "", s.when)
	})
	if err != nil || p.os != "linux" {
		return err
	}
	return s.deb(p, programs, work)
}

// files are an archive's.
func (s settings) files(p platform, programs, work string, bill []byte) (tree, error) {
	var t tree
	for _, program := range hostPrograms {
		t.add(entry{name: program + p.exe(), file: filepath.Join(programs, program+p.exe()), exec: true})
	}
	for _, arch := range guests {
		if err := t.addDir("image-"+arch, filepath.Join(work, "image-"+arch)); err != nil {
			return nil, err
		}
	}
	if err := t.addDir("completions", filepath.Join(work, "completions")); err != nil {
		return nil, err
	}
	t.add(entry{name: "sbom.cdx.json", text: bill})
	t.add(entry{name: "LICENSE", file: "LICENSE"})
	t.add(entry{name: "README.md", file: "README.md"})
	return t, nil
}
