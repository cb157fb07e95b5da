package mountspec

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/berthvm/berth/guest/engine/hostpath"
	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/ident"
)

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
	for _, m := range slices.Backward(lent) { // the last to name a place has it
		add(m)
	}
	for dir := range cfg.Volumes {
		dest := path.Clean(dir)
		if !path.IsAbs(dest) || dest == "/" {
			return nil, invalid("invalid volume specification: '%s'", dir)
		}
		add(record.Mount{Anon: true, MountPoint: apicontainer.MountPoint{Type: mount.TypeVolume, Driver: h.VolumeDriver, Destination: dest, RW: true}})
	}
	return all, nil
}

// requested reads -v, --mount and --tmpfs.
func requested(h *apicontainer.HostConfig) ([]record.Mount, error) {
	var all []record.Mount
	for _, spec := range h.Binds {
		m, err := parseBind(spec, h.VolumeDriver)
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
		if err := checkTarget(dest); err != nil {
			return nil, err
		}
		m := record.Mount{Hidden: true, MountPoint: apicontainer.MountPoint{Type: mount.TypeTmpfs, Destination: path.Clean(dest), RW: true}}
		if opts != "" {
			m.Options = strings.Split(opts, ",")
		}
		all = append(all, m)
	}
	return all, nil
}

// checkTarget refuses places in a container where nothing can be mounted.
func checkTarget(dest string) error {
	switch {
	case path.Clean(dest) == "/":
		return invalid("invalid specification: destination can't be '/'")
	case !path.IsAbs(dest):
		return invalid("invalid mount path: '%s' mount path must be absolute", dest)
	}
	return nil
}

// parseBind reads docker's -v: [source:]destination[:modes]. driver is the one of
// volumes.
func parseBind(spec, driver string) (record.Mount, error) {
	bad := invalid("invalid volume specification: '%s'", spec)
	parts := hostpath.SplitSpec(spec)
	m := record.Mount{MountPoint: apicontainer.MountPoint{RW: true}}
	source := ""
	switch {
	case parts[0] == "" || len(parts) > 3 || len(parts) == 2 && validModes(parts[1]):
		return m, bad
	case len(parts) == 1:
		m.Destination = parts[0]
	default:
		source, m.Destination = parts[0], parts[1]
	}
	if len(parts) == 3 {
		m.Mode = parts[2]
	}
	if !validModes(m.Mode) {
		return m, invalid("invalid mode: %s", m.Mode)
	}
	m.Type = mount.TypeVolume
	_, drive := hostpath.FromDrive(source)
	if drive || path.IsAbs(source) {
		m.Type = mount.TypeBind
	}
	var err error
	if m.Destination == "" {
		err = errors.New("field Target must not be empty")
	} else {
		err = checkTarget(m.Destination)
	}
	if err != nil {
		return m, invalid("invalid volume specification: '%s': invalid mount config for type %q: %v", spec, m.Type, err)
	}
	m.Destination = path.Clean(m.Destination)
	if m.Type == mount.TypeBind {
		if !drive {
			source = path.Clean(source)
		}
		m.Source, m.FromBind, m.Propagation = source, true, mount.PropagationRPrivate
	} else {
		m.Name, m.Anon, m.Driver = source, source == "", driver
		if err := checkName(source); err != nil {
			return m, err
		}
	}
	return m, bindModes(&m, spec)
}

// checkName refuses what no volume is called; anonymous ones have no name yet.
func checkName(name string) error {
	if name != "" && !ident.Name(name, 2, len(name)) {
		return invalid("create %s: %q includes invalid characters for a local volume name, only "+
			"\"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", name, name)
	}
	return nil
}

// modeKinds sorts the words that may follow a bind's destination: of each kind
// there may be one.
var modeKinds = map[string]string{
	"rw": "access", "ro": "access",
	"z": "label", "Z": "label",
	"nocopy":     "copy",
	"consistent": "consistency", "cached": "consistency", "delegated": "consistency",
	"rprivate": "propagation", "private": "propagation", "rshared": "propagation", "shared": "propagation",
	"rslave": "propagation", "slave": "propagation",
}

func validModes(modes string) bool {
	if modes == "" {
		return true
	}
	seen := map[string]bool{}
	for mode := range strings.SplitSeq(modes, ",") {
		kind := modeKinds[mode]
		if kind == "" || seen[kind] {
			return false
		}
		seen[kind] = true
	}
	return true
}

// bindModes takes up modes that are valid. Labels and consistency mean nothing
// here.
func bindModes(m *record.Mount, spec string) error {
	for mode := range strings.SplitSeq(m.Mode, ",") {
		exclusive := ""
		switch kind := modeKinds[mode]; {
		case mode == "ro":
			m.RW = false
		case kind == "copy" && m.Type == mount.TypeVolume:
			m.NoCopy = true
		case kind == "copy":
			exclusive = "VolumeOptions"
		case kind == "propagation" && m.Type == mount.TypeBind:
			m.Propagation = mount.Propagation(mode)
		case kind == "propagation":
			exclusive = "BindOptions"
		}
		if exclusive != "" {
			return invalid("invalid volume specification: '%s': invalid mount config for type %q: field %s must not be specified",
				spec, m.Type, exclusive)
		}
	}
	if m.Mode == "" && m.Type == mount.TypeVolume {
		m.Mode = "z" // what docker's inspect shows
	}
	return nil
}

// ParseVolumesFrom reads docker's --volumes-from: container[:modes].
func ParseVolumesFrom(spec string) (name string, readOnly bool, err error) {
	if spec == "" {
		return "", false, invalid("volumes-from specification cannot be an empty string")
	}
	name, modes, _ := strings.Cut(spec, ":")
	ok := validModes(modes)
	for mode := range strings.SplitSeq(modes, ",") {
		kind := modeKinds[mode]
		ok = ok && kind != "propagation" && kind != "copy"
		readOnly = readOnly || mode == "ro"
	}
	if !ok {
		return "", false, invalid("invalid mode: %s", modes)
	}
	return name, readOnly, nil
}

// parseMount reads one --mount.
func parseMount(in mount.Mount) (record.Mount, error) {
	m := record.Mount{MountPoint: apicontainer.MountPoint{Type: in.Type, Destination: path.Clean(in.Target), RW: !in.ReadOnly}}
	err := checkOptions(in)
	if err == nil && in.Target == "" {
		err = errors.New("field Target must not be empty")
	}
	if err == nil {
		err = checkTarget(in.Target)
	}
	if err == nil {
		switch in.Type {
		case mount.TypeBind:
			err = parseBindMount(&m, in)
		case mount.TypeVolume:
			err = parseVolumeMount(&m, in)
		case mount.TypeTmpfs:
			err = parseTmpfsMount(&m, in)
		case mount.TypeImage:
			err = parseImageMount(&m, in)
		default:
			err = errors.New("mount type unknown")
		}
	}
	if err != nil {
		return m, invalid("invalid mount config for type %q: %v", in.Type, err)
	}
	return m, nil
}

// checkOptions refuses the options of another type.
func checkOptions(in mount.Mount) error {
	for _, o := range []struct {
		name string
		kind mount.Type
		set  bool
	}{
		{"BindOptions", mount.TypeBind, in.BindOptions != nil},
		{"VolumeOptions", mount.TypeVolume, in.VolumeOptions != nil},
		{"ImageOptions", mount.TypeImage, in.ImageOptions != nil},
		{"TmpfsOptions", mount.TypeTmpfs, in.TmpfsOptions != nil},
		{"ClusterOptions", mount.TypeCluster, in.ClusterOptions != nil},
	} {
		if o.set && o.kind != in.Type {
			return fmt.Errorf("field %s must not be specified", o.name)
		}
	}
	return nil
}

var errNoSource = errors.New("field Source must not be empty")

func parseBindMount(m *record.Mount, in mount.Mount) error {
	if in.Source == "" {
		return errNoSource
	}
	_, drive := hostpath.FromDrive(in.Source)
	m.Source, m.Propagation = in.Source, mount.PropagationRPrivate
	if !drive {
		m.Source = path.Clean(in.Source)
	}
	if o := in.BindOptions; o != nil {
		if o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation) {
			return fmt.Errorf("invalid propagation mode: %s", o.Propagation)
		}
		m.Flat, m.FromBind, m.Propagation = o.NonRecursive, o.CreateMountpoint, cmp.Or(o.Propagation, m.Propagation)
		switch {
		case o.ReadOnlyNonRecursive && o.ReadOnlyForceRecursive:
			return errors.New("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
		case o.ReadOnlyNonRecursive:
			m.ReadOnly = record.ReadOnlyTop
		}
	}
	if !drive && !path.IsAbs(in.Source) {
		return fmt.Errorf("invalid mount path: '%s' mount path must be absolute", in.Source)
	}
	return nil
}

func parseVolumeMount(m *record.Mount, in mount.Mount) error {
	m.Name, m.Anon, m.Mode = in.Source, in.Source == "", "z"
	if o := in.VolumeOptions; o != nil {
		m.NoCopy, m.Subpath = o.NoCopy, o.Subpath
		if o.DriverConfig != nil {
			m.Driver = o.DriverConfig.Name
		}
	}
	if m.Subpath != "" && m.Anon {
		return errors.New("must not set Subpath when using anonymous volumes")
	}
	if err := checkName(in.Source); err != nil {
		return err
	}
	return checkSubpath(m.Subpath)
}

func checkSubpath(sub string) error {
	if sub != "" && !filepath.IsLocal(sub) {
		return errors.New("subpath must be a relative path within the volume")
	}
	return nil
}

func parseImageMount(m *record.Mount, in mount.Mount) error {
	if in.Source == "" {
		return errNoSource
	}
	m.Name, m.RW, m.Propagation = in.Source, false, mount.PropagationRPrivate
	if in.ImageOptions != nil {
		m.Subpath = in.ImageOptions.Subpath
	}
	return checkSubpath(m.Subpath)
}

func parseTmpfsMount(m *record.Mount, in mount.Mount) error {
	if in.Source != "" {
		return errors.New("field Source must not be specified")
	}
	o := in.TmpfsOptions
	if o == nil {
		return nil
	}
	if o.Mode != 0 {
		m.Options = append(m.Options, fmt.Sprintf("mode=%o", o.Mode))
	}
	if o.SizeBytes != 0 {
		m.Options = append(m.Options, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	for _, kv := range o.Options {
		switch {
		case len(kv) < 1 || len(kv) > 2:
			return errors.New("invalid option array length")
		case kv[0] != "exec" && kv[0] != "noexec":
			return errors.New("invalid option: " + kv[0])
		}
		m.Options = append(m.Options, strings.Join(kv, "="))
	}
	return nil
}
