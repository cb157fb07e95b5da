package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthvm/berth/host/tray"
	"github.com/berthvm/berth/images"
)

// The bill of materials is CycloneDX 1.5 JSON: the Go modules that the programs
// were linked from, as they tell themselves, and the Debian packages whose files
// are in the guest's images.
type bom struct {
	Format     string      `json:"bomFormat"`
	Spec       string      `json:"specVersion"`
	Version    int         `json:"version"`
	Metadata   metadata    `json:"metadata"`
	Components []component `json:"components"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type    string `json:"type"`
	Ref     string `json:"bom-ref,omitempty"`
	Name    string `json:"name"`
	Version string `json:"version"`
	PURL    string `json:"purl,omitempty"`
	Hashes  []hash `json:"hashes,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

// bill makes the bill of materials of a platform's programs and some of the guest's
// images.
func (s settings) bill(p platform, programs, work string, guests ...string) ([]byte, error) {
	found := map[string]component{}
	for _, program := range hostPrograms {
		if p.arch == "universal" { // the halves are alike, and this reads only one file at a time
			programs = filepath.Join(work, "half-arm64")
		}
		info, err := buildinfo.ReadFile(filepath.Join(programs, program+p.exe()))
		if err != nil {
			return nil, err
		}
		found["go"] = component{Type: "platform", Name: "go", Version: strings.TrimPrefix(info.GoVersion, "go")}
		for _, dep := range info.Deps {
			if dep.Replace != nil {
				dep = dep.Replace
			}
			purl := "pkg:golang/" + dep.Path + "@" + dep.Version
			found[purl] = component{Type: "library", Ref: purl, Name: dep.Path, Version: dep.Version, PURL: purl}
		}
	}
	for _, arch := range guests {
		image, err := images.Open(filepath.Join(work, "image-"+arch))
		if err != nil {
			return nil, err
		}
		for _, d := range image.Manifest.Packages {
			purl := fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", url.PathEscape(d.Name), url.QueryEscape(d.Version), arch)
			found[purl] = component{Type: "library", Ref: purl, Name: d.Name, Version: d.Version, PURL: purl, Hashes: []hash{{"SHA-256", d.SHA256}}}
		}
	}
	b := bom{Format: "CycloneDX", Spec: "1.5", Version: 1, Metadata: metadata{
		Timestamp: s.when.Format("2006-01-02T15:04:05Z"),
		Component: component{Type: "application", Name: "berth", Version: s.version, PURL: "pkg:golang/" + module + "@v" + s.version},
	}}
	for _, c := range found {
		b.Components = append(b.Components, c)
	}
	slices.SortFunc(b.Components, func(a, b component) int { return strings.Compare(a.Name+a.PURL, b.Name+b.PURL) })
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(b)
	return out.Bytes(), err
}

// icon is Berth's, as a PNG file.
func icon(size int) []byte { return tray.PNG(tray.LookRunning, size) }
