package images

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	apicontainer "github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"
)

// Change applies Dockerfile instructions, as commit and import take them, to a
// configuration.
func Change(c *apicontainer.Config, changes []string) error {
	if len(changes) == 0 {
		return nil
	}
	file, err := parser.Parse(strings.NewReader(strings.Join(changes, "\n")))
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	for _, node := range file.AST.Children {
		name, rest, _ := strings.Cut(strings.TrimSpace(node.Original), " ")
		name = strings.ToUpper(name)
		if name == "HEALTHCHECK" {
			err = changeHealth(c, node)
		} else {
			err = change(c, name, strings.TrimSpace(rest))
		}
		if err != nil {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid change %q: %v", node.Original, err))
		}
	}
	return nil
}

func changeHealth(c *apicontainer.Config, node *parser.Node) error {
	parsed, err := instructions.ParseInstruction(node)
	if err != nil {
		return err
	}
	if check, ok := parsed.(*instructions.HealthCheckCommand); ok {
		c.Healthcheck = check.Health
	}
	return nil
}

func change(c *apicontainer.Config, name, rest string) error {
	if rest == "" {
		return fmt.Errorf("%s requires arguments", name)
	}
	switch name {
	case "USER", "STOPSIGNAL", "WORKDIR", "ENV", "LABEL", "EXPOSE", "VOLUME":
		rest = expand(rest, c.Env)
	}
	switch name {
	case "CMD":
		c.Cmd = command(rest, c.Shell)
	case "ENTRYPOINT":
		c.Entrypoint = command(rest, c.Shell)
	case "USER":
		c.User = rest
	case "STOPSIGNAL":
		c.StopSignal = rest
	case "WORKDIR":
		if !path.IsAbs(rest) {
			rest = path.Join("/", c.WorkingDir, rest)
		}
		c.WorkingDir = rest
	case "ONBUILD":
		c.OnBuild = append(c.OnBuild, rest)
	case "ENV", "LABEL":
		return setPairs(c, name, rest)
	case "EXPOSE":
		return expose(c, rest)
	case "VOLUME":
		for _, v := range list(rest) {
			if c.Volumes == nil {
				c.Volumes = map[string]struct{}{}
			}
			c.Volumes[v] = struct{}{}
		}
	default:
		return fmt.Errorf("%s is not a valid change command", name)
	}
	return nil
}

// setEnv sets a variable in an environment of the caller's own: in the place that it
// has, or at the end.
func setEnv(env []string, name, kv string) []string {
	is := func(v string) bool { return v == name || strings.HasPrefix(v, name+"=") }
	i := slices.IndexFunc(env, is)
	if i < 0 {
		return append(env, kv)
	}
	env[i] = kv
	return append(env[:i+1], slices.DeleteFunc(env[i+1:], is)...)
}

// setPairs applies ENV and LABEL.
func setPairs(c *apicontainer.Config, name, rest string) error {
	list, err := pairs(name, rest)
	if err != nil {
		return err
	}
	for _, kv := range list {
		if name == "ENV" {
			c.Env = setEnv(c.Env, kv[0], kv[0]+"="+kv[1])
			continue
		}
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[kv[0]] = kv[1]
	}
	return nil
}

func expose(c *apicontainer.Config, rest string) error {
	for _, f := range strings.Fields(rest) {
		p, err := apinet.ParsePort(f)
		if err != nil {
			return err
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = apinet.PortSet{}
		}
		c.ExposedPorts[p] = struct{}{}
	}
	return nil
}

// command reads the exec form, a JSON list, or the shell form.
func command(s string, shell []string) []string {
	var args []string
	if json.Unmarshal([]byte(s), &args) == nil && strings.HasPrefix(s, "[") {
		return args
	}
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), s)
}

func list(s string) []string {
	var items []string
	if json.Unmarshal([]byte(s), &items) == nil {
		return items
	}
	return strings.Fields(s)
}

// pairs reads the arguments of an instruction: key=value ..., whose values may be
// quoted, or "key value".
func pairs(instruction, s string) ([][2]string, error) {
	if key, value, ok := strings.Cut(s, " "); ok && !strings.Contains(key, "=") {
		return [][2]string{{key, strings.TrimSpace(value)}}, nil
	}
	var out [][2]string
	for _, w := range words(s) {
		key, value, ok := strings.Cut(w, "=")
		switch {
		case !ok:
			return nil, fmt.Errorf("syntax error - can't find = in %q. Must be of the form: name=value", w)
		case key == "":
			return nil, fmt.Errorf("%s names can not be blank", instruction)
		}
		out = append(out, [2]string{key, value})
	}
	return out, nil
}

// words splits at spaces that are neither quoted nor escaped.
func words(s string) []string {
	var out []string
	var word strings.Builder
	quote := rune(0)
	flush := func() {
		if word.Len() == 0 {
			return
		}
		out = append(out, word.String())
		word.Reset()
	}
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote = r
		case quote == 0 && r == ' ':
			flush()
		default:
			word.WriteRune(r)
		}
	}
	flush()
	return out
}
