package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// buildPrograms compiles the guest's programs, static and reproducible, and
// returns their paths by name.
func buildPrograms(ctx context.Context, s settings, work string) (map[string]string, error) {
	dir := filepath.Join(work, "programs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	programs := map[string]string{}
	for _, name := range []string{"berth-init", "berth-guest", "berth-exec", "berth-git"} {
		if name == "berth-guest" && s.engine != "" {
			programs[name] = s.engine
			continue
		}
		note("compiling %s", name)
		programs[name] = filepath.Join(dir, name)
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
			"-ldflags", "-s -w -buildid= -X main.version="+s.version, "-o", programs[name], "./cmd/"+name)
		cmd.Dir = s.module
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+s.arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("compile cmd/%s: %w", name, err)
		}
	}
	return programs, nil
}
