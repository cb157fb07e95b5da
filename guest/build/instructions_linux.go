package build

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// Instruction is one of a Dockerfile that is being built.
type Instruction struct {
	Text  string   // as it stands there, without what its heredocs hold
	Stage int      // the stage's place among all of the Dockerfile; -1: an ARG before them
	From  bool     // it begins its stage
	Steps []string // digests of the vertices that carry it out; none: it needs nothing done
}

// plannedClient tells plan of the instructions that a frontend has built.
type plannedClient struct {
	client.Client
	plan func([]Instruction)
}

// Solve implements client.Client.
func (c *plannedClient) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	if list := planned(req.Definition, c.BuildOpts().Opts["target"]); len(list) > 0 {
		c.plan(list)
	}
	return c.Client.Solve(ctx, req)
}

// planned returns the instructions of the Dockerfile that a definition was made from, in
// its order, or nil if it was made from none. Of stages, those are left out of which
// nothing is needed for the target.
func planned(def *pb.Definition, target string) []Instruction {
	source := def.GetSource()
	file := slices.IndexFunc(source.GetInfos(), func(i *pb.SourceInfo) bool { return i.Language == "Dockerfile" })
	if file < 0 {
		return nil
	}
	parsed, err := parser.Parse(bytes.NewReader(source.Infos[file].Data))
	if err != nil {
		return nil
	}
	stages, args, err := instructions.Parse(parsed.AST, nil)
	if err != nil || len(stages) == 0 {
		return nil
	}
	lines := map[int32][]string{}
	for _, op := range def.Def {
		step := digest.FromBytes(op).String()
		for _, l := range source.Locations[step].GetLocations() {
			for _, r := range l.Ranges {
				if l.SourceIndex == int32(file) && r.Start != nil {
					lines[r.Start.Line] = append(lines[r.Start.Line], step)
				}
			}
		}
	}
	var list []Instruction
	add := func(text any, stage int, from bool, where []parser.Range) {
		in := Instruction{Text: fmt.Sprint(text), Stage: stage, From: from}
		for _, r := range where {
			for l := r.Start.Line; l <= r.End.Line; l++ {
				for _, step := range lines[int32(l)] {
					if !slices.Contains(in.Steps, step) {
						in.Steps = append(in.Steps, step)
					}
				}
			}
		}
		list = append(list, in)
	}
	for i := range args {
		add(&args[i], -1, false, nil)
	}
	for i, s := range stages {
		add(s.SourceCode, i, true, s.Location)
		for _, c := range s.Commands {
			add(c, i, false, c.Location())
		}
	}
	needed := neededStages(stages, list, target)
	return slices.DeleteFunc(list, func(in Instruction) bool { return in.Stage >= 0 && !needed[in.Stage] })
}

// neededStages says which stages are built: the target, those that have steps, and those
// that such a stage begins with by name.
func neededStages(stages []instructions.Stage, list []Instruction, target string) map[int]bool {
	last := len(stages) - 1
	if i, ok := instructions.HasStage(stages, target); ok && target != "" {
		last = i
	}
	needed := map[int]bool{last: true}
	for _, in := range list {
		if len(in.Steps) > 0 {
			needed[in.Stage] = true
		}
	}
	for i := last; i >= 0; i-- {
		for base := i - 1; needed[i] && base >= 0; base-- {
			if stages[base].Name == stages[i].BaseName {
				needed[base] = true
				break
			}
		}
	}
	return needed
}
