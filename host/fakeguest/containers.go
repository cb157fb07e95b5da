package fakeguest

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Containers is what a fake engine runs. It is safe for concurrent use.
type Containers struct {
	mu      sync.Mutex // guards all below
	all     []Container
	changed chan struct{} // closed and replaced when all changes
}

// Container is one of docker's list. Its name is its ID too.
type Container struct {
	Name  string
	Image string
	TCP   map[uint16]uint16 // published ports: the host's to the container's
}

// Set replaces them all.
func (c *Containers) Set(all ...Container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = all
	if c.changed != nil {
		close(c.changed)
	}
	c.changed = make(chan struct{})
}

// get returns what there is, and what is closed when that changes.
func (c *Containers) get() ([]Container, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return slices.Clone(c.all), c.changed
}

// serve answers a request if it is about containers.
func (c *Containers) serve(rw http.ResponseWriter, r *http.Request) bool {
	if c == nil {
		return false
	}
	all, changed := c.get()
	id, stop := strings.CutSuffix(r.URL.Path, "/stop")
	id = id[strings.LastIndex(id, "/")+1:]
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/containers/json"):
		list := []any{}
		for _, one := range all {
			ports := []any{}
			for host, inner := range one.TCP {
				for _, ip := range []string{"0.0.0.0", "::"} {
					ports = append(ports, map[string]any{"IP": ip, "PrivatePort": inner, "PublicPort": host, "Type": "tcp"})
				}
			}
			list = append(list, map[string]any{"Id": one.Name, "Names": []string{"/" + one.Name}, "Image": one.Image, "State": "running", "Ports": ports})
		}
		answer(list)(rw, r)
	case strings.HasSuffix(path, "/events"):
		for http.NewResponseController(rw).Flush() == nil {
			select {
			case <-r.Context().Done():
				return true
			case <-changed:
			}
			_, changed = c.get()
			io.WriteString(rw, `{"Type":"container","Action":"start"}`+"\n")
		}
	case stop:
		left := slices.DeleteFunc(all, func(one Container) bool { return one.Name == id })
		if len(left) == len(all) && !slices.ContainsFunc(all, func(one Container) bool { return one.Name == id }) {
			rw.WriteHeader(http.StatusNotFound)
			answer(map[string]string{"message": "No such container: " + id})(rw, r)
			return true
		}
		c.Set(left...)
		rw.WriteHeader(http.StatusNoContent)
	default:
		return false
	}
	return true
}
