package container

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// mountOption is what one option of a mount sets or clears.
type mountOption struct {
	set, clear uint64 // MOUNT_ATTR_*
	recursive  bool
}

var mountOptions = map[string]mountOption{
	"ro": {set: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid": {set: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev": {set: unix.MOUNT_ATTR_NODEV}, "dev": {clear: unix.MOUNT_ATTR_NODEV},
	"noexec": {set: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: unix.MOUNT_ATTR_NOEXEC},
	"noatime": {set: unix.MOUNT_ATTR_NOATIME}, "strictatime": {set: unix.MOUNT_ATTR_STRICTATIME},
	"atime": {clear: unix.MOUNT_ATTR_NOATIME}, "relatime": {clear: unix.MOUNT_ATTR__ATIME},
	"norelatime": {}, "nostrictatime": {},
	"nodiratime": {set: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "unbindable": unix.MS_UNBINDABLE,
}

// optionOf looks an option up, also in its recursive form ("rro").
func optionOf(name string) (mountOption, bool) {
	if o, ok := mountOptions[name]; ok {
		return o, true
	}
	o, ok := mountOptions[strings.TrimPrefix(name, "r")]
	o.recursive = true
	return o, ok && strings.HasPrefix(name, "r")
}

// planMounts converts the specification's mounts. bases holds the directory that
// relative sources of bind mounts are meant from.
func (p *plan) planMounts() error {
	for i := range p.spec.Mounts {
		m := &p.spec.Mounts[i]
		om, err := p.planMount(m)
		if err != nil {
			return badf("mounts[%d] (%s): %w", i, m.Destination, err)
		}
		p.order.Mounts = append(p.order.Mounts, om)
	}
	return nil
}

func (p *plan) planMount(m *specs.Mount) (order.Mount, error) {
	om := order.Mount{Dest: path.Clean(m.Destination), Tree: order.None}
	switch {
	case !path.IsAbs(m.Destination):
		return om, fmt.Errorf("destination %q is not an absolute path", m.Destination)
	case om.Dest == "/":
		return om, fmt.Errorf("destination: mounting over the root is not supported")
	case strings.ContainsRune(m.Destination+m.Source, 0):
		return om, fmt.Errorf("a path holds a NUL byte")
	}
	data, idmap, err := parseOptions(&om, m.Options)
	if err != nil {
		return om, err
	}
	bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
	switch {
	case om.Remount:
		return om, nil
	case bind:
		// The kernel ignores a bind mount's data, and so specifications have some. A
		// bare word is more likely a mistake.
		for _, d := range data {
			if d.Value == "" {
				return om, fmt.Errorf("options: unknown option %q for a bind mount", d.Key)
			}
		}
		return om, p.planBind(&om, m, idmap)
	case m.Type == "":
		return om, fmt.Errorf("type: missing")
	case idmap || len(m.UIDMappings)+len(m.GIDMappings) > 0:
		return om, fmt.Errorf("uidMappings: only bind mounts can be mapped")
	case strings.ContainsAny(m.Type, "/ \x00"):
		return om, fmt.Errorf("type: %q is not a file system", m.Type)
	}
	om.Type, om.Source, om.Params = m.Type, m.Source, data
	if om.Type == "cgroup" || om.Type == "cgroup2" {
		return om, p.planCgroupMount(&om)
	}
	if om.Type != "tmpfs" {
		om.CopyUp = false
	}
	// A mount's read-only attribute alone would leave the file system writable
	// underneath, which it must be when others write to it: only ours is meant.
	return om, nil
}

// parseOptions sorts options into attributes of the mount, its propagation, and
// parameters of the file system.
func parseOptions(om *order.Mount, options []string) (data []order.Pair, idmap bool, err error) {
	for _, opt := range options {
		if o, ok := optionOf(opt); ok {
			set, clear := &om.Attrs, &om.Clear
			if o.recursive {
				set, clear = &om.RecAttrs, &om.RecClear
			}
			*set, *clear = *set&^o.clear|o.set, *clear&^o.set|o.clear
			continue
		}
		if prop, ok := propagations[opt]; ok {
			om.Propagation, om.RecProp = prop, false
			continue
		}
		if prop, ok := propagations[strings.TrimPrefix(opt, "r")]; ok {
			om.Propagation, om.RecProp = prop, true
			continue
		}
		switch opt {
		case "bind", "defaults", "":
		case "rbind":
			om.Recursive = true
		case "remount":
			om.Remount = true
		case "tmpcopyup":
			om.CopyUp = true
		case "idmap", "ridmap":
			idmap = true
		default:
			if strings.ContainsAny(opt, "\x00,") {
				return nil, false, fmt.Errorf("options: invalid option %q", opt)
			}
			key, value, _ := strings.Cut(opt, "=")
			data = append(data, order.Pair{Key: key, Value: value})
		}
	}
	return data, idmap, nil
}

// planBind also decides who opens the source: the first process, or, where that
// would lack the rights or where the source is a descriptor of this one, this one.
func (p *plan) planBind(om *order.Mount, m *specs.Mount, idmap bool) error {
	if m.Source == "" {
		return fmt.Errorf("source: missing")
	}
	om.Source = m.Source
	if !path.IsAbs(om.Source) {
		if p.cfg.Bundle == "" {
			return fmt.Errorf("source %q is not an absolute path", m.Source)
		}
		om.Source = path.Join(p.cfg.Bundle, m.Source)
	}
	if len(m.UIDMappings) != 0 != (len(m.GIDMappings) != 0) {
		return fmt.Errorf("uidMappings and gidMappings belong together")
	}
	uids, gids := m.UIDMappings, m.GIDMappings
	if idmap && len(uids) == 0 {
		if !p.newUser {
			return fmt.Errorf("options: idmap needs mappings or a new user namespace")
		}
		uids, gids = p.spec.Linux.UIDMappings, p.spec.Linux.GIDMappings
	}
	if err := checkMappings(uids); err != nil {
		return fmt.Errorf("uidMappings: %w", err)
	}
	if err := checkMappings(gids); err != nil {
		return fmt.Errorf("gidMappings: %w", err)
	}
	p.binds = append(p.binds, bind{
		mount: len(p.order.Mounts), source: om.Source, recursive: om.Recursive,
		mapRecursive: slices.Contains(m.Options, "ridmap"), uids: uids, gids: gids,
		needsTree: p.newUser || len(uids) > 0 || strings.HasPrefix(om.Source, "/proc/self/"),
	})
	return nil
}

// planCgroupMount shows the container its own cgroup: by its cgroup namespace, or
// else by binding it.
func (p *plan) planCgroupMount(om *order.Mount) error {
	if p.flags&unix.CLONE_NEWCGROUP != 0 || p.joinsType(specs.CgroupNamespace) {
		om.Type, om.Source, om.Params = "cgroup2", "cgroup", nil
		return nil
	}
	if p.group == nil {
		return fmt.Errorf("cgroup: the container has no cgroup of its own")
	}
	om.Type, om.Source, om.Params, om.Recursive = "", p.group.Dir(), nil, true
	return nil
}

func checkMappings(maps []specs.LinuxIDMapping) error {
	for _, m := range maps {
		if m.Size == 0 {
			return fmt.Errorf("a mapping of size 0")
		}
		if uint64(m.ContainerID)+uint64(m.Size) > 1<<32 || uint64(m.HostID)+uint64(m.Size) > 1<<32 {
			return fmt.Errorf("%d %d %d goes beyond 32 bits", m.ContainerID, m.HostID, m.Size)
		}
	}
	if len(maps) > 340 {
		return fmt.Errorf("%d mappings: the kernel takes 340", len(maps))
	}
	return nil
}
