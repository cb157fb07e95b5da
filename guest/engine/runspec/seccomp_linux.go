package runspec

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Security is what --security-opt says.
type Security struct {
	NoNewPrivileges bool
	Unconfined      bool   // no system-call filter
	Profile         string // a filter as JSON; empty: docker's default
	ClearPaths      bool   // systempaths=unconfined
	WritableCgroups *bool  // nil: as privileged has it
}

// ParseSecurity reads --security-opt. Labels and AppArmor profiles ask for nothing:
// the machine has neither SELinux nor AppArmor, and docker ignores them then.
func ParseSecurity(opts []string) (Security, error) {
	var s Security
	for _, opt := range opts {
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			key, value, ok = strings.Cut(opt, ":")
		}
		bad := errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid --security-opt 2: %q", opt))
		switch {
		case !ok && (key == "no-new-privileges" || key == "writable-cgroups"):
			value = "true"
		case !ok && key == "disable":
			continue
		case !ok:
			return s, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid --security-opt 1: %q", opt))
		}
		var err error
		switch key {
		case "no-new-privileges":
			s.NoNewPrivileges, err = strconv.ParseBool(value)
		case "writable-cgroups":
			var yes bool
			yes, err = strconv.ParseBool(value)
			s.WritableCgroups = &yes
		case "seccomp":
			s.Profile, s.Unconfined = value, value == "unconfined"
			if value == "builtin" || s.Unconfined {
				s.Profile = ""
			}
		case "systempaths":
			if s.ClearPaths = value == "unconfined"; !s.ClearPaths {
				return s, bad
			}
		case "apparmor", "label":
		default:
			return s, bad
		}
		if err != nil {
			return s, bad
		}
	}
	return s, nil
}

// Seccomp reads a filter that the user gave as JSON, for the spec's capabilities.
func Seccomp(profile string, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	filter, err := seccomp.LoadProfile(profile, spec)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid seccomp profile: %v", err))
	}
	return filter, nil
}
