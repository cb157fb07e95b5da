package dockerapi

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/moby/moby/api/types/image"
)

// oldImageConfig are the fields that an image's configuration always had before API
// 1.52, and further ones before 1.50.
var (
	oldImageConfig = map[string]any{"Cmd": nil, "Entrypoint": nil, "Env": nil, "Labels": nil, "OnBuild": nil, "User": "", "Volumes": nil, "WorkingDir": ""}
	olderConfig    = map[string]any{"AttachStderr": false, "AttachStdin": false, "AttachStdout": false, "Domainname": "", "Hostname": "",
		"Image": "", "OpenStdin": false, "StdinOnce": false, "Tty": false}
)

// imageShape is an image as a version of the API describes it.
func (c *call) imageShape(info *image.InspectResponse) (any, error) {
	if c.version < 53 {
		info.Identity = nil
	}
	if c.version >= 52 {
		return info, nil
	}
	if c.version < 48 {
		info.Descriptor = nil
	}
	out, err := fields(info)
	if err != nil {
		return nil, err
	}
	add(out, map[string]any{"Parent": "", "Comment": "", "DockerVersion": "", "Author": "",
		"GraphDriver": map[string]any{"Name": "overlayfs", "Data": nil}})
	config, _ := out["Config"].(map[string]any)
	if config == nil {
		config = map[string]any{}
		out["Config"] = config
	}
	add(config, oldImageConfig)
	if c.version < 50 {
		add(config, olderConfig)
	}
	if c.version < 45 {
		add(out, map[string]any{"Container": "", "ContainerConfig": add(map[string]any{}, oldImageConfig)})
	}
	if c.version < 44 {
		out["VirtualSize"] = info.Size
		add(out, map[string]any{"Created": time.Time{}.Format(time.RFC3339Nano)})
	}
	return out, nil
}

// imageListShape is a list of images as a version of the API has it.
func (c *call) imageListShape(list []*image.Summary) (any, error) {
	if c.version >= 51 {
		return list, nil
	}
	out := make([]map[string]any, 0, len(list))
	for _, img := range list {
		img.Containers = -1
		if c.version < 48 {
			img.Descriptor = nil
		}
		if c.version < 43 && len(img.RepoTags)+len(img.RepoDigests) == 0 {
			img.RepoTags, img.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
		m, err := fields(img)
		if err != nil {
			return nil, err
		}
		if c.version < 44 {
			m["VirtualSize"] = img.Size
		}
		out = append(out, m)
	}
	return out, nil
}

// fields is a value as the members of its JSON object.
func fields(v any) (map[string]any, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber() // sizes are larger than what a float holds
	var out map[string]any
	err = dec.Decode(&out)
	return out, err
}

// add puts what is missing into m.
func add(m, more map[string]any) map[string]any {
	for k, v := range more {
		if _, ok := m[k]; !ok {
			m[k] = v
		}
	}
	return m
}
