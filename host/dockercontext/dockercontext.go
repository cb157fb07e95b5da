// Package dockercontext keeps a machine's context in docker's own
// configuration, so that other clients find the machine by name. It never takes
// the place of a context that works, and never touches one it did not make.
package dockercontext

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/context/docker"
	"github.com/docker/cli/cli/context/store"

	"github.com/berthvm/berth/host/machine"
)

// markKey is the field of a context's metadata that says which machine's it is.
const markKey = "berth"

// ErrTaken is wrapped when the context's name belongs to something else.
var ErrTaken = errors.New("the name is taken")

// Contexts is docker's context store.
type Contexts struct {
	store *store.ContextStore
	// defaultHost is the endpoint of a docker without configuration.
	defaultHost string
}

// Open opens the store that the docker client uses, by DOCKER_CONFIG or HOME.
func Open() *Contexts {
	return &Contexts{store.New(config.ContextStoreDir(), command.DefaultContextStoreConfig()), defaultDockerHost}
}

// Ensure makes the machine's context point at it, and makes it the current one
// when the user has no current one that works.
func (c *Contexts) Ensure(m machine.Machine) error {
	name, host := m.ContextName(), m.DockerHost()
	old, err := c.store.GetMetadata(name)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return fmt.Errorf("cannot read the docker context %q: %w", name, err)
	case !c.ours(old, m):
		return fmt.Errorf("the docker context %q was not made by this machine and still works: %w: "+
			"remove it with \"docker context rm %s\", or use DOCKER_HOST=%s", name, ErrTaken, name, host)
	case hostOf(old) == host:
		return c.use(name)
	}
	err = c.store.CreateOrUpdate(store.Metadata{
		Name:      name,
		Endpoints: map[string]any{docker.DockerEndpoint: docker.EndpointMeta{Host: host}},
		Metadata: command.DockerContext{
			Description:      fmt.Sprintf("Berth machine %q", m.Name),
			AdditionalFields: map[string]any{markKey: m.DataDir},
		},
	})
	if err != nil {
		return fmt.Errorf("cannot write the docker context %q: %w", name, err)
	}
	return c.use(name)
}

// use makes the context current, unless the current one works. What DOCKER_HOST
// and DOCKER_CONTEXT say is for a shell and decides nothing here.
func (c *Contexts) use(name string) error {
	file, err := config.Load(config.Dir())
	if err != nil {
		return nil // a configuration that docker cannot read is not ours to mend
	}
	if file.CurrentContext == name || c.works(file.CurrentContext) {
		return nil
	}
	file.CurrentContext = name
	if err := file.Save(); err != nil {
		return fmt.Errorf("cannot make the docker context %q the current one: %w", name, err)
	}
	return nil
}

// works reports whether something listens where the context points. Remote
// hosts count as working: they are not asked.
func (c *Contexts) works(name string) bool {
	if name == "" || name == command.DefaultContextName {
		return listens(c.defaultHost)
	}
	meta, err := c.store.GetMetadata(name)
	return err == nil && listens(hostOf(meta))
}

// Remove removes the machine's context. If it was the current one, docker goes
// back to its default.
func (c *Contexts) Remove(m machine.Machine) error {
	name := m.ContextName()
	meta, err := c.store.GetMetadata(name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the docker context %q: %w", name, err)
	}
	if markOf(meta) != m.DataDir {
		return nil
	}
	return c.remove(name)
}

// Below lists the contexts that the machines of a home have made whose data is below
// a directory, also of machines that are gone, in order.
func (c *Contexts) Below(data string) []string {
	var names []string
	all, err := c.store.List()
	if err != nil {
		return nil // as docker: what it cannot read is not there
	}
	for _, meta := range all {
		if mark := markOf(meta); mark != "" && filepath.Dir(mark) == data {
			names = append(names, meta.Name)
		}
	}
	slices.Sort(names)
	return names
}

// RemoveBelow removes those.
func (c *Contexts) RemoveBelow(data string) error {
	var errs []error
	for _, name := range c.Below(data) {
		errs = append(errs, c.remove(name))
	}
	return errors.Join(errs...)
}

func (c *Contexts) remove(name string) error {
	if file, err := config.Load(config.Dir()); err == nil && file.CurrentContext == name {
		file.CurrentContext = ""
		if err := file.Save(); err != nil {
			return fmt.Errorf("cannot leave the docker context %q: %w", name, err)
		}
	}
	if err := c.store.Remove(name); err != nil {
		return fmt.Errorf("cannot remove the docker context %q: %w", name, err)
	}
	return nil
}

// ours reports whether the context may be overwritten: the machine made it, or
// another Berth did (BERTH_HOME) whose machine does not run.
func (c *Contexts) ours(meta store.Metadata, m machine.Machine) bool {
	mark := markOf(meta)
	return mark == m.DataDir || mark != "" && !listens(hostOf(meta))
}

func markOf(meta store.Metadata) string {
	dc, err := command.GetDockerContext(meta)
	if err != nil {
		return ""
	}
	mark, _ := dc.AdditionalFields[markKey].(string)
	return mark
}

func hostOf(meta store.Metadata) string {
	ep, err := docker.EndpointFromContext(meta)
	if err != nil {
		return ""
	}
	return ep.Host
}

// listens tries local endpoints.
func listens(host string) bool {
	path, local := strings.CutPrefix(host, "unix://")
	if !local {
		if pipe, isPipe := strings.CutPrefix(host, "npipe://"); isPipe {
			_, err := os.Stat(strings.ReplaceAll(pipe, "/", `\`))
			return err == nil
		}
		return host != ""
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
