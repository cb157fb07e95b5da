package mountspec

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/berthvm/berth/guest/engine/record"
)

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// Parse reads what a user asked for with -v, --mount and --tmpfs, and joins with it
// what other containers lend (--volumes-from) and the volumes that cfg names, each
// in the places that are free. Errors are errdefs.ErrInvalidArgument.
func Parse(cfg *apicontainer.Config, h *apicontainer.HostConfig, lent []record.Mount) ([]record.Mount, error) {
	all, err := requested(h)
	if err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	for _, m := range all {
		if taken[m.Destination] {
			return nil, invalid("Duplicate mount point: %s", m.Destination)
		}
		taken[m.Destination] = true
	}
	add := func(m record.Mount) {
		if !taken[m.Destination] {
			taken[m.Destination] = true
			all = append(all, m)
		}
	}
	for _, m := range lent {
		add(m)
	}
	for dir := range cfg.Volumes {
		dest := path.Clean(dir)
		if !path.IsAbs(dest) || dest == "/" {
			return nil, invalid("invalid volume specification: '%s'", dir)
		}
		add(record.Mount{Anon: true, MountPoint: apicontainer.MountPoint{Type: mount.TypeVolume, Destination: dest, RW: true}})
	}
	return all, nil
}

// requested reads -v, --mount and --tmpfs.
func requested(h *apicontainer.HostConfig) ([]record.Mount, error) {
	var all []record.Mount
	for _, spec := range h.Binds {
		m, err := parseBind(spec)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	for _, spec := range h.Mounts {
		m, err := parseMount(spec)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	for dest, opts := range h.Tmpfs {
		if !path.IsAbs(dest) {
			return nil, invalid("invalid mount path: '%s' mount path must be absolute", dest)
		}
		m := record.Mount{MountPoint: apicontainer.MountPoint{Type: mount.TypeTmpfs, Destination: path.Clean(dest), RW: true}}
		if opts != "" {
			m.Options = strings.Split(opts, ",")
		}
		all = append(all, m)
	}
	return all, nil
}

// parseBind reads docker's -v: [source:]destination[:modes].
func parseBind(spec string) (record.Mount, error) {
	bad := invalid("invalid volume specification: '%s'", spec)
	parts := strings.Split(spec, ":")
	m := record.Mount{MountPoint: apicontainer.MountPoint{RW: true}}
	source := ""
	switch len(parts) {
	case 1:
		m.Destination = parts[0]
	case 2:
		source, m.Destination = parts[0], parts[1]
	case 3:
		source, m.Destination, m.Mode = parts[0], parts[1], parts[2]
	default:
		return m, bad
	}
	if !path.IsAbs(m.Destination) {
		return m, invalid("invalid volume specification: '%s': invalid mount config for type \"volume\": "+
			"invalid mount path: '%s' mount path must be absolute", spec, m.Destination)
	}
	if m.Destination = path.Clean(m.Destination); m.Destination == "/" || len(parts) > 1 && source == "" {
		return m, invalid("invalid volume specification: '%s': invalid specification: destination can't be '/'", spec)
	}
	if path.IsAbs(source) {
		m.Type, m.Source, m.FromBind, m.Propagation = mount.TypeBind, path.Clean(source), true, mount.PropagationRPrivate
	} else {
		m.Type, m.Name, m.Anon = mount.TypeVolume, source, source == ""
		if source != "" && !namePattern.MatchString(source) {
			return m, invalid("create %s: %q includes invalid characters for a local volume name, only "+
				"\"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", source, source)
		}
	}
	return m, bindModes(&m)
}

func bindModes(m *record.Mount) error {
	if m.Mode == "" {
		return nil
	}
	for mode := range strings.SplitSeq(m.Mode, ",") {
		switch {
		case mode == "ro":
			m.RW = false
		case mode == "rw", mode == "z", mode == "Z", mode == "consistent", mode == "cached", mode == "delegated":
		case mode == "nocopy" && m.Type == mount.TypeVolume:
			m.NoCopy = true
		case slices.Contains(mount.Propagations, mount.Propagation(mode)) && m.Type == mount.TypeBind:
			m.Propagation = mount.Propagation(mode)
		default:
			return invalid("invalid mode: %s", m.Mode)
		}
	}
	return nil
}

// parseMount reads one --mount.
func parseMount(in mount.Mount) (record.Mount, error) {
	bad := func(format string, args ...any) (record.Mount, error) {
		return record.Mount{}, invalid("invalid mount config for type %q: %s", in.Type, fmt.Sprintf(format, args...))
	}
	m := record.Mount{MountPoint: apicontainer.MountPoint{Type: in.Type, Destination: path.Clean(in.Target), RW: !in.ReadOnly}}
	switch {
	case in.Target == "":
		return bad("field Target must not be empty")
	case !path.IsAbs(in.Target):
		return bad("invalid mount path: '%s' mount path must be absolute", in.Target)
	case m.Destination == "/":
		return bad("invalid specification: destination can't be '/'")
	}
	switch in.Type {
	case mount.TypeBind:
		if !path.IsAbs(in.Source) {
			return bad("invalid mount path: '%s' mount path must be absolute", in.Source)
		}
		m.Source, m.Propagation = path.Clean(in.Source), mount.PropagationRPrivate
		if o := in.BindOptions; o != nil {
			m.Flat, m.FromBind = o.NonRecursive, o.CreateMountpoint
			if o.Propagation != "" {
				if !slices.Contains(mount.Propagations, o.Propagation) {
					return bad("invalid propagation mode: %s", o.Propagation)
				}
				m.Propagation = o.Propagation
			}
		}
	case mount.TypeVolume:
		m.Name, m.Anon = in.Source, in.Source == ""
		if in.Source != "" && !namePattern.MatchString(in.Source) {
			return bad("%q includes invalid characters for a local volume name", in.Source)
		}
		if o := in.VolumeOptions; o != nil {
			m.NoCopy, m.Subpath = o.NoCopy, o.Subpath
			if o.DriverConfig != nil {
				m.Driver = o.DriverConfig.Name
			}
		}
	case mount.TypeTmpfs:
		if in.Source != "" {
			return bad("field Source must not be specified")
		}
		m.Options = tmpfsOptions(in.TmpfsOptions)
	default:
		return record.Mount{}, invalid("mount type unknown: %q", in.Type)
	}
	return m, nil
}

func tmpfsOptions(o *mount.TmpfsOptions) []string {
	if o == nil {
		return nil
	}
	var out []string
	if o.SizeBytes > 0 {
		out = append(out, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	if o.Mode != 0 {
		out = append(out, fmt.Sprintf("mode=%o", o.Mode))
	}
	for _, kv := range o.Options {
		out = append(out, strings.Join(kv, "="))
	}
	return out
}
