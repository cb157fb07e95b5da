package main

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
)

// debLib is where the programs and the image are, beside each other; /usr/bin has
// a link.
const debLib = "usr/lib/berth"

// hypervisors are the packages a machine of that architecture takes.
var hypervisors = map[string]string{"amd64": "qemu-system-x86 (>= 1:7.2)", "arm64": "qemu-system-arm (>= 1:7.2)"}

// control describes the package, see deb-control(5). size is in KiB.
func (s settings) control(p platform, size int64) string {
	return fmt.Sprintf(`Package: berth
Version: %s
Architecture: %s
Maintainer: The Berth authors <berth@users.noreply.github.com>
Installed-Size: %d
Depends: %s
Suggests: docker-cli
Section: admin
Priority: optional
Homepage: https://%s
Description: containers in a light virtual machine
 Berth boots a small Linux virtual machine and runs containers in it as if they
 were native. Docker's commands are built in, and other Docker clients find the
 machine by the docker context "berth".
 .
 It runs as its user: nothing is started with the system, and no rights are asked
 for.
`, s.version, p.arch, size, hypervisors[p.arch], module)
}

// prerm removes what berth itself writes beside its image when root runs it.
const prerm = `#!/bin/sh
set -e
image=$DPKG_ROOT/usr/lib/berth/image
rm -f "$image"/.verified "$image"/.verified-*
`

// trayDesktop puts the icon among a desktop's applications.
const trayDesktop = `[Desktop Entry]
Type=Application
Name=Berth
Comment=Containers in a light virtual machine
Exec=/usr/lib/berth/berth-tray
Icon=berth
Terminal=false
Categories=System;
`

// deb makes Debian's package, without Debian's tools: it is an ar archive of two
// tar archives, see deb(5).
func (s settings) deb(p platform, programs, work string) error {
	bill, err := s.bill(p, programs, work, p.arch)
	if err != nil {
		return err
	}
	t, err := s.debFiles(p, programs, work, bill)
	if err != nil {
		return err
	}
	size, md5sums, err := digest(t)
	if err != nil {
		return err
	}
	var control tree
	control.add(entry{name: "control", text: []byte(s.control(p, size))})
	control.add(entry{name: "md5sums", text: md5sums})
	control.add(entry{name: "prerm", text: []byte(prerm), exec: true})
	var first, second bytes.Buffer
	if err := control.tarball(&first, "./", s.when); err != nil {
		return err
	}
	if err := t.tarball(&second, "./", s.when); err != nil {
		return err
	}
	return write(filepath.Join(s.out, fmt.Sprintf("berth_%s_%s.deb", s.version, p.arch)), func(w io.Writer) error {
		return ar(w, s.when, []member{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", first.Bytes()}, {"data.tar.gz", second.Bytes()}})
	})
}

func (s settings) debFiles(p platform, programs, work string, bill []byte) (tree, error) {
	var t tree
	for _, program := range hostPrograms {
		t.add(entry{name: debLib + "/" + program, file: filepath.Join(programs, program), exec: true})
	}
	t.add(entry{name: "usr/bin/berth", link: "../lib/berth/berth"})
	if err := t.addDir(debLib+"/image", filepath.Join(work, "image-"+p.arch)); err != nil {
		return nil, err
	}
	for shell, name := range map[string]string{"bash": "bash-completion/completions/berth", "zsh": "zsh/vendor-completions/_berth",
		"fish": "fish/vendor_completions.d/berth.fish"} {
		t.add(entry{name: "usr/share/" + name, file: filepath.Join(work, "completions", shells[shell])})
	}
	t.add(entry{name: "usr/share/applications/berth-tray.desktop", text: []byte(trayDesktop)})
	for _, size := range []int{48, 128} {
		t.add(entry{name: fmt.Sprintf("usr/share/icons/hicolor/%dx%d/apps/berth.png", size, size), text: icon(size)})
	}
	t.add(entry{name: "usr/share/doc/berth/copyright", file: "LICENSE"})
	t.add(entry{name: "usr/share/doc/berth/README.md", file: "README.md"})
	t.add(entry{name: "usr/share/doc/berth/sbom.cdx.json", text: bill})
	return t, nil
}

// digest sums up the files' sizes in KiB, and lists their MD5 sums as dpkg wants it.
func digest(t tree) (size int64, sums []byte, err error) {
	var list strings.Builder
	for _, e := range t.sorted() {
		if strings.HasSuffix(e.name, "/") || e.link != "" {
			continue
		}
		r, n, err := e.content()
		if err != nil {
			return 0, nil, err
		}
		h := md5.New()
		_, err = io.Copy(h, r)
		r.Close()
		if err != nil {
			return 0, nil, err
		}
		size += (n + 1023) / 1024
		fmt.Fprintf(&list, "%s  %s\n", hex.EncodeToString(h.Sum(nil)), e.name)
	}
	return size, []byte(list.String()), nil
}

// member is one of an ar archive.
type member struct {
	name string
	body []byte
}

// ar writes the common format of ar(5).
func ar(w io.Writer, when time.Time, members []member) error {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range members {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, when.Unix(), 0, 0, "100644", len(m.body))
		b.Write(m.body)
		if len(m.body)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
