package runspec

import (
	"fmt"
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
}

// ParseSecurity reads --security-opt. Labels and AppArmor profiles are accepted
// where they ask for nothing and refused otherwise.
func ParseSecurity(opts []string) (Security, error) {
	var s Security
	for _, opt := range opts {
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			key, value, ok = strings.Cut(opt, ":")
		}
		bad := errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid --security-opt: %q", opt))
		switch key {
		case "no-new-privileges":
			if ok && value != "true" && value != "false" {
				return s, bad
			}
			s.NoNewPrivileges = value != "false"
		case "seccomp":
			s.Profile = value
			s.Unconfined = value == "unconfined"
			if value == "builtin" || s.Unconfined {
				s.Profile = ""
			}
		case "systempaths":
			if value != "unconfined" {
				return s, bad
			}
			s.ClearPaths = true
		case "apparmor":
			if value != "unconfined" && value != "" {
				return s, errdefs.ErrInvalidArgument.WithMessage(
					fmt.Sprintf("invalid --security-opt %q: AppArmor is not enabled in the machine", opt))
			}
		case "label": // no SELinux in the machine: there is nothing to label
		default:
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
