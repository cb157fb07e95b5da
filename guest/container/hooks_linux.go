package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthvm/berth/guest/container/order"
)

// hooks checks all hooks. Those that run inside are part of the order; their state
// is filled in when the process's number is known.
func (p *plan) hooks() error {
	h := p.spec.Hooks
	if h == nil {
		return nil
	}
	//lint:ignore SA1019 bundles still use prestart hooks
	prestart := h.Prestart
	for _, list := range []struct {
		name  string
		hooks []specs.Hook
		out   *[]order.Hook
	}{
		{"prestart", prestart, nil}, {"createRuntime", h.CreateRuntime, nil},
		{"createContainer", h.CreateContainer, &p.order.CreateHooks},
		{"startContainer", h.StartContainer, &p.order.StartHooks},
		{"poststart", h.Poststart, nil}, {"poststop", h.Poststop, nil},
	} {
		for i, hook := range list.hooks {
			if err := checkHook(hook); err != nil {
				return badf("hooks.%s[%d]: %w", list.name, i, err)
			}
			if list.out == nil {
				continue
			}
			oh := order.Hook{Path: hook.Path, Args: hookArgs(hook), Env: hook.Env}
			if hook.Timeout != nil {
				oh.TimeoutMS = *hook.Timeout * 1000
			}
			*list.out = append(*list.out, oh)
		}
	}
	p.order.ParentHooks = len(prestart)+len(h.CreateRuntime) > 0
	return nil
}

func checkHook(h specs.Hook) error {
	switch {
	case !path.IsAbs(h.Path) || strings.ContainsRune(h.Path, 0):
		return fmt.Errorf("path: %q is not an absolute path", h.Path)
	case h.Timeout != nil && (*h.Timeout <= 0 || *h.Timeout > 1<<20):
		return fmt.Errorf("timeout: %d seconds", *h.Timeout)
	}
	for _, s := range append(h.Args[:len(h.Args):len(h.Args)], h.Env...) {
		if strings.ContainsRune(s, 0) {
			return errors.New("args, env: a NUL byte")
		}
	}
	return nil
}

func hookArgs(h specs.Hook) []string {
	if len(h.Args) == 0 {
		return []string{h.Path}
	}
	return h.Args
}

// stateFor is the state that a hook gets on its standard input.
func stateFor(state specs.State, status specs.ContainerState) []byte {
	state.Status = status
	b, err := json.Marshal(state)
	if err != nil {
		panic(err) // a State holds only strings and a number
	}
	return b
}

// runHooks runs hooks in the caller's own namespaces, one after the other.
func runHooks(ctx context.Context, name string, hooks []specs.Hook, state []byte) error {
	for i, h := range hooks {
		if err := runHook(ctx, h, state); err != nil {
			return fmt.Errorf("hooks.%s[%d]: %s: %w", name, i, h.Path, err)
		}
	}
	return nil
}

// runLateHooks runs all hooks, also after one has failed: what they follow has
// happened already. Its error wraps ErrHook.
func runLateHooks(ctx context.Context, name string, hooks []specs.Hook, state []byte) error {
	var failed []string
	for i := range hooks {
		if err := runHooks(ctx, name, hooks[i:i+1], state); err != nil {
			failed = append(failed, err.Error())
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrHook, strings.Join(failed, "; "))
}

func runHook(ctx context.Context, h specs.Hook, state []byte) error {
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, h.Path)
	cmd.Args, cmd.Env = hookArgs(h), h.Env
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(state), &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return errors.New("did not end within its timeout")
	case err != nil && out.Len() > 0:
		return fmt.Errorf("%w: %s", err, tail(out.Bytes()))
	}
	return err
}

// tail is the last line of a failed hook's output.
func tail(b []byte) []byte {
	b = bytes.TrimSpace(b)
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		b = b[i+1:]
	}
	return b[max(0, len(b)-500):]
}
