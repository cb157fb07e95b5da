package step

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/sys/user"
)

// Tool is a program of the machine's that a build needs, and that meets what is
// hostile: it runs in a container like a step, with less.
type Tool struct {
	Root           string // directory with its root file system, which it cannot write
	Args, Env      []string
	Binds          []Bind
	Scratch        []string // directories of its own, empty and gone afterwards; Binds may lie in them
	Network        bool
	Stdout, Stderr io.Writer
}

// Bind is a file or a directory of the machine that a Tool sees.
type Bind struct {
	Source, Dest string
	Readonly     bool
}

// RunTool runs t to its end and returns its exit code. When ctx ends, the program
// is killed, and its container with it.
func (e *Executor) RunTool(ctx context.Context, t Tool) (exit int, err error) {
	var mounts []executor.Mount
	for _, dir := range t.Scratch {
		mounts = append(mounts, executor.Mount{Src: machineFile{Type: "tmpfs", Options: []string{"mode=0755"}}, Dest: dir})
	}
	for _, b := range t.Binds {
		mounts = append(mounts, executor.Mount{Src: machineFile{Type: "bind", Source: b.Source}, Dest: b.Dest, Readonly: b.Readonly})
	}
	meta := executor.Meta{Args: t.Args, Env: t.Env, Cwd: "/", ReadonlyRootFS: true, NetMode: pb.NetMode_NONE}
	if t.Network {
		meta.NetMode = pb.NetMode_UNSET
	}
	process := executor.ProcessInfo{Meta: meta, Stdout: unclosed{t.Stdout}, Stderr: unclosed{t.Stderr}}
	root := executor.Mount{Src: machineFile{Type: "bind", Source: t.Root, Options: []string{"rbind", "ro"}}}
	err = e.run(ctx, &building{e: e, id: newID(), meta: meta, tool: true}, root, mounts, process, nil)
	var code *gateway.ExitError
	if errors.As(err, &code) && ctx.Err() == nil {
		return int(code.ExitCode), nil
	}
	return 0, err
}

// unclosed is a stream that its owner closes.
type unclosed struct{ io.Writer }

// Close implements io.Closer.
func (unclosed) Close() error { return nil }

// machineFile is a mount that is there as long as the machine.
type machineFile mount.Mount

// Mount implements executor.Mountable.
func (m machineFile) Mount(context.Context, bool) (executor.MountableRef, error) {
	return machineMount{m}, nil
}

type machineMount struct{ machineFile }

// Mount implements executor.MountableRef.
func (m machineMount) Mount() ([]mount.Mount, func() error, error) {
	return []mount.Mount{mount.Mount(m.machineFile)}, nil, nil
}

// IdentityMapping implements executor.MountableRef.
func (machineMount) IdentityMapping() *user.IdentityMapping { return nil }
