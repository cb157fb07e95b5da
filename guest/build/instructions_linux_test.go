package build

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
)

// anyImage is a registry that has every image, with a trigger for the next build.
type anyImage struct{}

// ResolveImageConfig implements llb.ImageMetaResolver.
func (anyImage) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return ref, "", []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]},` +
		`"config":{"OnBuild":["RUN trigger"]}}`), nil
}

// definition is what the frontend makes of a Dockerfile.
func definition(t testing.TB, dockerfile, target string) *pb.Definition {
	t.Helper()
	context := llb.Local("context")
	result, err := dockerfile2llb.Dockerfile2LLB(t.Context(), []byte(dockerfile), dockerfile2llb.ConvertOpt{
		Config: dockerui.Config{Target: target}, MetaResolver: anyImage{}, MainContext: &context,
		SourceMap: llb.NewSourceMap(&context, "Dockerfile", "Dockerfile", []byte(dockerfile)),
	})
	if err != nil {
		t.Fatal(err)
	}
	def, err := result.State.Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}

// TestPlanned: the instructions of the stages that are built are known in their order,
// and by which steps each is carried out.
func TestPlanned(t *testing.T) {
	const dockerfile = `# escape=\
ARG BASE=hello
FROM ${BASE} AS first
ARG WORD=none
RUN <<END
echo ${WORD}
END
FROM scratch AS never
COPY a /
FROM first as Second
LABEL a=b \
      c=d
from second as third
env A=$WORD
COPY --from=first a b
WORKDIR /
WORKDIR /x
CMD ["x"]
FROM first AS last
RUN last
`
	first := []string{
		"-1 ARG BASE=hello: ", "0 FROM ${BASE} AS first: FROM docker.io/library/hello:latest, ONBUILD RUN trigger", "0 ARG WORD=none: ", "0 RUN <<END: RUN <<END (echo none)",
	}
	for target, want := range map[string][]string{
		"last": append(first[:len(first):len(first)],
			"4 FROM first AS last: ", "4 RUN last: RUN last"),
		"second": append(first[:len(first):len(first)],
			"2 FROM first as Second: ", "2 LABEL a=b       c=d: "),
		"third": append(first[:len(first):len(first)],
			"2 FROM first as Second: ", "2 LABEL a=b       c=d: ", "3 from second as third: ", "3 env A=$WORD: ",
			"3 COPY --from=first a b: COPY --from=first a b", "3 WORKDIR /: ", "3 WORKDIR /x: WORKDIR /x", `3 CMD ["x"]: `),
	} {
		def := definition(t, dockerfile, target)
		names := map[string]string{}
		for d, m := range def.Metadata {
			names[d] = m.Description["llb.customname"]
		}
		var got []string
		for _, in := range planned(def, target) {
			var steps []string
			for _, s := range in.Steps {
				_, name, _ := strings.Cut(names[s], "] ")
				steps = append(steps, name)
			}
			got = append(got, fmt.Sprintf("%d %s: %s", in.Stage, in.Text, strings.Join(steps, ", ")))
			if from := strings.HasPrefix(strings.ToUpper(in.Text), "FROM "); in.From != from {
				t.Errorf("%s begins a stage: %v", in.Text, in.From)
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("for %s the instructions are\n%s\nwant\n%s", target, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// FuzzPlanned: whatever a definition says of its Dockerfile, each of its steps belongs to
// an instruction of it, or to none.
func FuzzPlanned(f *testing.F) {
	seed, err := proto.Marshal(definition(f, "FROM hello\nENV A=b\nRUN x\n", ""))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, "")
	f.Add([]byte(nil), "target")
	f.Fuzz(func(t *testing.T, raw []byte, target string) {
		var def pb.Definition
		if proto.Unmarshal(raw, &def) != nil {
			return
		}
		known := map[string]bool{}
		for _, op := range def.Def {
			known[digest.FromBytes(op).String()] = true
		}
		list := planned(&def, target)
		for i, in := range list {
			if in.Text == "" || i > 0 && in.Stage < list[i-1].Stage {
				t.Errorf("instruction %d of %+v", i, list)
			}
			for _, s := range in.Steps {
				if !known[s] {
					t.Errorf("%s has an unknown step %s", in.Text, s)
				}
			}
		}
	})
}
