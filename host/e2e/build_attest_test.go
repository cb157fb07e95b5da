//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// descriptor and manifest are the OCI's, as far as the tests read them.
type descriptor struct {
	MediaType   string
	Digest      string
	Annotations map[string]string
	Platform    struct{ Os, Architecture string }
}

type manifest struct {
	MediaType   string
	Annotations map[string]string
	Manifests   []descriptor
	Layers      []descriptor
}

// manifest reads a manifest or an index in a registry.
func (c cli) manifest(t testing.TB, ref string) (m manifest) {
	t.Helper()
	if err := json.Unmarshal([]byte(c.ok(t, "buildx", "imagetools", "inspect", "--raw", ref)), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// predicates lists the kinds of attestations that an index in a registry has for its
// first image.
func (c cli) predicates(t testing.TB, ref string) (kinds []string) {
	t.Helper()
	index := c.manifest(t, ref)
	for _, d := range index.Manifests[1:] {
		if d.Annotations["vnd.docker.reference.type"] != "attestation-manifest" || d.Annotations["vnd.docker.reference.digest"] != index.Manifests[0].Digest {
			t.Errorf("%s has something else than attestations of its image: %+v", ref, d)
		}
		for _, l := range c.manifest(t, ref+"@"+d.Digest).Layers {
			kinds = append(kinds, l.Annotations["in-toto.io/predicate-type"])
		}
	}
	return kinds
}

// TestBuildAnnotations: annotations are where the build puts them.
func TestBuildAnnotations(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	ref := suite.registry.image("e2e-annotated:1")
	for _, c := range h.buildxes(t) {
		t.Run(c.name, func(t *testing.T) {
			c.ok(t, "buildx", "build", "-q", "--push", "-t", ref, "--annotation", "plain=p", "--annotation", "index:i=x",
				"--annotation", "manifest-descriptor:d=y", "--annotation", "index,manifest[linux/amd64]:both=z", dir)
			index := c.manifest(t, ref)
			if a := index.Annotations; len(a) != 2 || a["i"] != "x" || a["both"] != "z" {
				t.Errorf("the index has %q", a)
			}
			if a := index.Manifests[0].Annotations; len(a) != 1 || a["d"] != "y" {
				t.Errorf("the manifest's descriptor has %q", a)
			}
			if a := c.manifest(t, ref+"@"+index.Manifests[0].Digest).Annotations; len(a) != 2 || a["plain"] != "p" || a["both"] != "z" {
				t.Errorf("the manifest has %q", a)
			}
			c.fails(t, "index annotations not supported for single platform export", "buildx", "build", "--provenance=false", "--push", "-t", ref, "--annotation", "index:i=x", dir)
		})
	}
}

// scanner is a generator of SBOMs, in the form that BuildKit's protocol for them
// asks: https://github.com/moby/buildkit/blob/master/docs/attestations/sbom-protocol.md
const scanner = `package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
)

func main() {
	root := os.Getenv("BUILDKIT_SCAN_SOURCE")
	files := []map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			name, _ := filepath.Rel(root, path)
			files = append(files, map[string]string{"SPDXID": "SPDXRef-" + name, "fileName": name})
		}
		return err
	})
	body, err2 := json.Marshal(map[string]any{
		"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://spdx.dev/Document",
		"predicate": map[string]any{"spdxVersion": "SPDX-2.3", "SPDXID": "SPDXRef-DOCUMENT", "name": "scan", "files": files, "comment": os.Getenv("BUILDKIT_SCAN_WORD")},
	})
	if err != nil || err2 != nil {
		panic(err)
	}
	if err := os.WriteFile(filepath.Join(os.Getenv("BUILDKIT_SCAN_DESTINATION"), "scan.spdx.json"), body, 0o644); err != nil {
		panic(err)
	}
}
`

// TestBuildAttestations: what is attested of an image goes with it to the registry.
func TestBuildAttestations(t *testing.T) {
	h := machine(t)
	// Little is in it, as BuildKit hashes what is scanned.
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM hello AS hello\nARG WORD=none\nFROM scratch\nCOPY --from=hello /bin/busybox /bin/\nCOPY Dockerfile /made\n"})
	tool := buildContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY program /scan\nENTRYPOINT [\"/scan\"]\n"})
	if err := os.Rename(buildProgram(t, scanner), filepath.Join(tool, "program")); err != nil {
		t.Fatal(err)
	}
	const slsa, spdx = "https://slsa.dev/provenance/v1", "https://spdx.dev/Document"
	ref := func(tag string) string { return suite.registry.image("e2e-attested:" + tag) }
	for _, c := range h.buildxes(t) {
		t.Run(c.name, func(t *testing.T) {
			push := func(tag string, args ...string) {
				t.Helper()
				c.ok(t, append(append([]string{"buildx", "build", "-q", "--push", "-t", ref(tag)}, args...), dir)...)
			}
			push("min")
			if got := c.predicates(t, ref("min")); len(got) != 1 || got[0] != slsa {
				t.Errorf("by default, the attestations are %q", got)
			}
			push("max", "--provenance=mode=max", "--build-arg", "WORD=recorded")
			provenance := func(tag string) string {
				return c.ok(t, "buildx", "imagetools", "inspect", "--format", "{{json .Provenance}}", ref(tag))
			}
			if got := provenance("max"); !strings.Contains(got, `"build-arg:WORD": "recorded"`) || !strings.Contains(got, `"v0.34.`) && !strings.Contains(got, "llbDefinition") {
				t.Errorf("the whole provenance is\n%s", got)
			}
			if got := provenance("min"); strings.Contains(got, "llbDefinition") {
				t.Errorf("the short provenance is\n%s", got)
			}
			push("none", "--provenance=false")
			if m := c.manifest(t, ref("none")); len(m.Manifests) != 0 || len(m.Layers) == 0 {
				t.Errorf("without attestations: %+v", m)
			}

			c.ok(t, "buildx", "build", "-q", "--push", "-t", ref("scanner"), tool)
			c.ok(t, "buildx", "prune", "-a", "-f")
			push("sbom", "--attest", "type=sbom,generator="+ref("scanner")+",WORD=passed")
			if got := c.predicates(t, ref("sbom")); len(got) != 2 || !strings.Contains(strings.Join(got, " "), slsa) || !strings.Contains(strings.Join(got, " "), spdx) {
				t.Errorf("with an SBOM, the attestations are %q", got)
			}
			sbom := c.ok(t, "buildx", "imagetools", "inspect", "--format", "{{json .SBOM}}", ref("sbom"))
			for _, want := range []string{`"fileName": "made"`, `"fileName": "bin/busybox"`, `"comment": "passed"`} {
				if !strings.Contains(sbom, want) {
					t.Errorf("the SBOM lacks %s:\n%s", want, tail(sbom, 40))
				}
			}
			c.ok(t, "rmi", "-f", ref("sbom"))
			c.ok(t, "run", "--rm", ref("sbom"), "/bin/busybox", "cat", "/made")
			c.ok(t, "rmi", ref("sbom"))
			c.fails(t, "generator=IMAGE", "buildx", "build", "--sbom=true", dir)
			c.fails(t, "generator=IMAGE", "buildx", "build", "--attest", "type=sbom,generator="+ref("nothing"), dir)
		})
	}
}
