package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	module  = "github.com/berthvm/berth"
	compose = "github.com/docker/compose/v5"
)

// hostPrograms are what is installed on a host.
var hostPrograms = []string{"berth", "berth-build", "berth-tray"}

// ldflags stamp a program as the Makefile does.
func (s settings) ldflags(ctx context.Context, p platform, program string) (string, error) {
	flags := "-s -w -X " + module + "/host/version.Version=" + s.version
	switch {
	case program == "berth-build":
		out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", compose).Output()
		if err != nil {
			return "", fmt.Errorf("the version of compose: %w", err)
		}
		flags += " -X " + compose + "/internal.Version=" + strings.TrimSpace(string(out))
	case program == "berth-tray" && p.os == "windows":
		flags += " -H=windowsgui" // else a login opens a console with it
	}
	return flags, nil
}

// programs builds what is installed on a host of that platform into dir.
func (s settings) programs(ctx context.Context, p platform, dir string) error {
	for _, program := range hostPrograms {
		out := filepath.Join(dir, program+p.exe())
		if p.arch != "universal" {
			if err := s.compile(ctx, p, program, out, "0"); err != nil {
				return err
			}
			continue
		}
		halves := []string{"lipo", "-create", "-output", out}
		for _, arch := range guests {
			half := filepath.Join(filepath.Dir(dir), "half-"+arch, program)
			if err := s.compile(ctx, platform{os: p.os, arch: arch}, program, half, "1"); err != nil {
				return err
			}
			halves = append(halves, half)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := command(ctx, nil, halves...); err != nil {
			return err
		}
	}
	if p.arch == "universal" {
		return command(ctx, nil, "codesign", "--force", "--sign", "-", "--entitlements", "cmd/berth/vz.entitlements", filepath.Join(dir, "berth"))
	}
	return nil
}

func (s settings) compile(ctx context.Context, p platform, program, out, cgo string) error {
	flags, err := s.ldflags(ctx, p, program)
	if err != nil {
		return err
	}
	return command(ctx, []string{"GOOS=" + p.os, "GOARCH=" + p.arch, "CGO_ENABLED=" + cgo},
		"go", "build", "-trimpath", "-ldflags", flags, "-o", out, "./cmd/"+program)
}

// shells are the completions' files, by shell.
var shells = map[string]string{"bash": "berth.bash", "zsh": "_berth", "fish": "berth.fish", "powershell": "berth.ps1"}

// completions writes the shells' completions into dir.
func completions(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for shell, name := range shells {
		cmd := exec.CommandContext(ctx, "go", "run", "./cmd/berth", "completion", shell)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("completion for %s: %w", shell, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), out, 0o644); err != nil {
			return err
		}
	}
	return nil
}
