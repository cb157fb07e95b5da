package dockerapi_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// TestMessages: the status codes and the words of refusals are docker's.
func TestMessages(t *testing.T) {
	c, socket, _ := server(t)
	id := create(t, c, "idle", nil, false, "sleep")
	up := create(t, c, "up", &apicontainer.HostConfig{Resources: apicontainer.Resources{NanoCPUs: 1e8}}, false, "sleep")
	if _, err := c.ContainerStart(ctx, up, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	frozen := create(t, c, "frozen", nil, false, "sleep")
	if _, err := c.ContainerStart(ctx, frozen, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ContainerPause(ctx, frozen, client.ContainerPauseOptions{}); err != nil {
		t.Fatal(err)
	}
	create(t, c, "pids", &apicontainer.HostConfig{PidMode: "container:idle"}, false, "sleep")
	create(t, c, "ipc", &apicontainer.HostConfig{IpcMode: "container:up"}, false, "sleep")
	create(t, c, "net", &apicontainer.HostConfig{NetworkMode: "container:idle"}, false, "sleep")
	create(t, c, "nonet", &apicontainer.HostConfig{NetworkMode: "container:nobody"}, false, "sleep")
	create(t, c, "gpu", &apicontainer.HostConfig{Resources: apicontainer.Resources{
		DeviceRequests: []apicontainer.DeviceRequest{{Count: -1, Capabilities: [][]string{{"gpu"}}}}}}, false, "sleep")
	create(t, c, "selfish", &apicontainer.HostConfig{NetworkMode: "container:selfish"}, false, "sleep")
	create(t, c, "gone", &apicontainer.HostConfig{AutoRemove: true}, false, "sleep")
	x, err := c.ExecCreate(ctx, up, client.ExecCreateOptions{Cmd: []string{"sleep"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []struct {
		call, body string
		code       int
		message    string
	}{
		{"POST /containers/create", "", 400, "invalid JSON: EOF"},
		{"POST /containers/create", `{"Image":"img","HostConfig":{"PidMode":"container:nobody"}}`, 400, "No such container: nobody"},
		{"POST /containers/create", `{"Image":"img","HostConfig":{"IpcMode":"container:nobody"}}`, 400, "No such container: nobody"},
		{"POST /containers/create", `{"Image":"img","HostConfig":{"VolumesFrom":["nobody"]}}`, 400, "No such container: nobody"},
		{"POST /containers/create?name=up", `{"Image":"img"}`, 409, `Conflict. The container name "/up" is already in use by container "` + up +
			`". You have to remove (or rename) that container to be able to reuse that name.`},
		{"POST /containers/create?name=a/b", `{"Image":"img"}`, 400, "Invalid container name (a/b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"},
		{"POST /containers/idle/start?checkpoint=xx", "", 400, "checkpoint is only supported in experimental mode"},
		{"POST /containers/idle/start?checkpoint=../x", "", 400, `invalid checkpoint ID "../x", only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed`},
		{"POST /containers/idle/start", `{"Binds":[]}`, 400, "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"},
		{"POST /containers/up/start", "", 304, ""},
		{"POST /containers/idle/stop", "", 304, ""},
		{"POST /containers/frozen/start", "", 409, "cannot start a paused container, try unpause instead"},
		{"POST /containers/pids/start", "", 500, "failed to join PID namespace: container " + id + " is not running"},
		{"POST /containers/ipc/start", "", 500, "failed to join IPC namespace: container " + up +
			": non-shareable IPC (hint: use IpcMode:shareable for the donor container)"},
		{"POST /containers/net/start", "", 409, "cannot join network namespace of a non running container: container " + id + " is not running"},
		{"POST /containers/selfish/start", "", 500, "cannot join own network namespace"},
		{"POST /containers/nonet/start", "", 500, "joining network namespace of container: No such container: nobody"},
		{"POST /containers/gpu/start", "", 500, `could not select device driver "" with capabilities: [[gpu]]`},
		{"POST /containers/up/stop?signal=NOPE", "", 400, "cannot stop container: up: invalid signal: NOPE"},
		{"POST /containers/idle/kill", "", 409, "cannot kill container: idle: container " + id + " is not running"},
		{"POST /containers/idle/kill?signal=NOPE", "", 400, "invalid signal: NOPE"},
		{"POST /containers/idle/pause", "", 409, "container " + id + " is not running"},
		{"POST /containers/frozen/pause", "", 409, "container " + frozen + " is already paused"},
		{"POST /containers/up/unpause", "", 500, "Container " + up + " is not paused"},
		{"POST /containers/idle/rename?name=", "", 400, "Neither old nor new names may be empty"},
		{"POST /containers/idle/rename?name=idle", "", 400, "Renaming a container with the same name as its current name"},
		{"POST /containers/idle/rename?name=a%20b", "", 400, "Error when allocating new name: Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"},
		{"POST /containers/idle/rename?name=up", "", 409, `Error when allocating new name: Conflict. The container name "/up" is already in use by container "` + up +
			`". You have to remove (or rename) that container to be able to reuse that name.`},
		{"DELETE /containers/up", "", 409, `cannot remove container "up": container is running: stop the container before removing or force remove`},
		{"DELETE /containers/frozen", "", 409, `cannot remove container "frozen": container is paused and must be unpaused first`},
		{"DELETE /containers/nobody", "", 404, "No such container: nobody"},
		{"POST /containers/up/wait?condition=x", "", 400, `invalid condition: "x"`},
		{"GET /containers/up/logs", "", 400, "must specify at least one of 'stdout' or 'stderr'"},
		{"POST /containers/idle/resize?h=1&w=1", "", 409, "container " + id + " is not running"},
		{"POST /containers/up/resize?h=-1&w=1", "", 400, `invalid resize height "-1": value out of range`},
		{"POST /containers/up/resize?h=1", "", 400, `invalid resize width "": invalid syntax`},
		{"POST /containers/frozen/attach?stream=1", "", 409, "container frozen is paused, unpause the container before attach"},
		{"GET /containers/up/top?ps_args=-z", "", 500, `ps: unsupported option "-z": Berth knows -ef, aux, -o with columns and --sort`},
		{"POST /containers/up/attach?detachKeys=ctrl-A,a", "", 400, "Invalid detach keys (ctrl-A,a) provided"},
		{"POST /containers/up/exec", `{}`, 400, "No exec command specified"},
		{"POST /containers/up/exec", `{"Cmd":["a"],"User":"nobody-here"}`, 400, "unable to find user nobody-here: no matching entries in passwd file"},
		{"POST /containers/idle/exec", `{"Cmd":["a"]}`, 409, "container " + id + " is not running"},
		{"POST /containers/frozen/exec", `{"Cmd":["a"]}`, 409, "Container frozen is paused, unpause the container before exec"},
		{"POST /exec/nobody/start", `{}`, 404, "No such exec instance: nobody"},
		{"GET /exec/nobody/json", "", 404, "No such exec instance: nobody"},
		{"POST /exec/" + x.ID + "/resize?h=x&w=1", "", 400, `invalid resize height "x": invalid syntax`},
		{"POST /containers/up/update", `{"CpuPeriod":100000}`, 409, "Cannot update container " + up +
			": Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set"},
		{"POST /containers/up/update", `{"Memory":1}`, 400, "Minimum memory limit allowed is 6MB"},
		{"POST /containers/up/update", `{"Memory":10000000}`, 409, "Cannot update container " + up +
			": Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"},
		{"POST /containers/gone/update", `{"RestartPolicy":{"Name":"always"}}`, 409, "Restart policy cannot be updated because AutoRemove is enabled for the container"},
		{"GET /containers/json?filters=%7B%22publish%22%3A%5B%221%3A2%22%5D%7D", "", 400, "filter for 'publish' should not contain ':': 1:2"},
		{"GET /containers/json?filters=%7B%22exited%22%3A%5B%22x%22%5D%7D", "", 400, `invalid filter 'exited=x': strconv.Atoi: parsing "x": invalid syntax`},
		{"GET /containers/json?filters=%7B%22nope%22%3A%5B%22x%22%5D%7D", "", 400, "invalid filter 'nope'"},
		{"DELETE /images/%20", "", 400, "image name cannot be blank"},
		{"GET /containers/up/archive?path=", "", 400, "bad parameter: path cannot be empty"},
	} {
		method, path, _ := strings.Cut(m.call, " ")
		head := ""
		if m.body != "" || method == "POST" && strings.HasPrefix(path, "/containers/create") {
			head = "Content-Type: application/json\r\n"
		}
		code, answer := raw(t, socket, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: d\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s",
			method, path, head, len(m.body), m.body))
		var e struct{ Message string }
		_ = json.Unmarshal([]byte(answer), &e)
		if code != m.code || !strings.HasSuffix(e.Message, m.message) || m.message == "" && e.Message != "" {
			t.Errorf("%s %s: %d %q, want %d %q", m.call, m.body, code, e.Message, m.code, m.message)
		}
	}
}
