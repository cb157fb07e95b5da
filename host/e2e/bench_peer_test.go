//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// rawAPI speaks the Engine API over a unix socket, in a version that dockerd
// 20.10 has too, with no library's work in between. It keeps its connections, and
// is patient: 20 containers at once take dockerd minutes on a busy machine.
type rawAPI struct{ http *http.Client }

func newRawAPI(socket string) rawAPI {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return rawAPI{&http.Client{Timeout: 15 * time.Minute, Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 20}}}
}

// do sends body as JSON, nil for none, and decodes the answer into answer unless
// that is nil.
func (a rawAPI) do(method, path string, body, answer any) error {
	return a.doUntil(context.Background(), method, path, body, answer)
}

// doUntil is do, until ctx ends.
func (a rawAPI) doUntil(ctx context.Context, method, path string, body, answer any) error {
	var send io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://engine/v1.41"+path, send)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 400 {
		return fmt.Errorf("%s %s: %s: %s (%v)", method, path, resp.Status, text, err)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// start creates and starts a container, and returns its ID.
func (a rawAPI) start(command ...string) (string, error) {
	var c struct{ ID string }
	if err := a.do("POST", "/containers/create", map[string]any{"Image": "hello", "Cmd": command}, &c); err != nil {
		return "", err
	}
	return c.ID, a.do("POST", "/containers/"+c.ID+"/start", nil, nil)
}

func (a rawAPI) remove(id string) error {
	return a.do("DELETE", "/containers/"+id+"?force=1", nil, nil)
}

// exec runs a command in a container and returns when it has ended.
func (a rawAPI) exec(id string, command ...string) error {
	var e struct{ ID string }
	if err := a.do("POST", "/containers/"+id+"/exec", map[string]any{"AttachStdout": true, "Cmd": command}, &e); err != nil {
		return err
	}
	return a.do("POST", "/exec/"+e.ID+"/start", map[string]any{}, nil)
}

// lifecycle runs a container that ends at once, and removes it. It gives up waiting
// for the end when ctx ends, and leaves the container then.
func (a rawAPI) lifecycle(ctx context.Context) error {
	id, err := a.start("true")
	if err != nil {
		return err
	}
	if err := a.doUntil(ctx, "POST", "/containers/"+id+"/wait", nil, nil); err != nil {
		return err
	}
	return a.remove(id)
}

// lifecycles runs so many containers at once, and returns how long the last took that
// ended. The peer loses an end now and then, and says of the container for ever that
// it runs: when nothing has ended for a minute, those are lost.
func (a rawAPI) lifecycles(count int) (took time.Duration, lost int, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	begin, ends := time.Now(), make(chan error, count)
	for range count {
		go func() { ends <- a.lifecycle(ctx) }()
	}
	idle := time.AfterFunc(patience, cancel)
	defer idle.Stop()
	for range count {
		switch end := <-ends; {
		case errors.Is(end, context.Canceled):
			lost++
		case end != nil:
			err = end
		default:
			took = time.Since(begin)
			idle.Reset(time.Minute)
		}
	}
	return took, lost, err
}

// side is one of the two engines that are compared.
type side struct {
	docker cli
	api    rawAPI
	shell  func(script string) string // as root, in the machine
	pids   []int                      // of the host's processes that are the machine
}

// measured is what a work took: by the clock, which a neighbour's load stretches,
// and of the host's CPUs.
type measured struct {
	took []time.Duration
	cpu  time.Duration
}

// run adds one repetition of do, which may return what is to be done unmeasured, and
// how much of its time is not to be counted.
func (m *measured) run(b *testing.B, s side, do func() (cleanup func(), idle time.Duration)) {
	b.Helper()
	before := cpuTicks(b, s.pids)
	var cleanup func()
	var idle time.Duration
	took := timed(func() { cleanup, idle = do() })
	m.took = append(m.took, took-idle)
	m.cpu += time.Duration(cpuTicks(b, s.pids)-before) * time.Second / 100
	if cleanup != nil {
		cleanup()
	}
}

// named returns the processes among pids that have a name.
func named(b *testing.B, pids []int, name string) (found []int) {
	b.Helper()
	for _, pid := range pids {
		if n, _ := rss(b, pid); n == name {
			found = append(found, pid)
		}
	}
	return found
}

// BenchmarkDockerd compares what users wait for, and the memory of what idles,
// with Debian's dockerd in a machine like Berth's.
func BenchmarkDockerd(b *testing.B) {
	h := ownHome(b)
	if err := h.boot(); err != nil {
		b.Fatal(err)
	}
	p := peer(b, h)
	defer p.close()
	p.load(b, h, "hello")
	st := h.status(b)
	sides := []side{
		{h.docker(), newRawAPI(st.DockerSocket), func(s string) string { return h.berth().ok(b, "ssh", "--", s) }, append(children(st.PID), st.PID)},
		{p.docker(), newRawAPI(p.socket()), func(s string) string { return p.shell(b, s) }, named(b, children(os.Getpid()), "berth-peer")},
	}
	must := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	var running []string
	for _, s := range sides {
		s.docker.ok(b, "run", "--rm", "hello", "true")
	}
	time.Sleep(20 * time.Second) // to be idle
	compareMemory(b, sides)
	for _, s := range sides {
		id, err := s.api.start("sleep", "1000000")
		must(err)
		running = append(running, id)
	}
	works := []struct {
		name  string
		times int
		do    func(i int) (cleanup func(), idle time.Duration)
	}{
		{"run --rm", 7, func(i int) (func(), time.Duration) {
			sides[i].docker.ok(b, "run", "--rm", "hello", "true")
			return nil, 0
		}},
		{"create+start", 7, func(i int) (func(), time.Duration) {
			id, err := sides[i].api.start("true")
			must(err)
			return func() { must(sides[i].api.remove(id)) }, 0
		}},
		{"exec", 11, func(i int) (func(), time.Duration) {
			must(sides[i].api.exec(running[i], "true"))
			return nil, 0
		}},
		{"20 in parallel", 2, func(i int) (func(), time.Duration) {
			begin := time.Now()
			took, lost, err := sides[i].api.lifecycles(20)
			must(err)
			if lost > 0 {
				fmt.Printf("  the ends of %d containers are lost by %s\n", lost, []string{"Berth", "the peer"}[i])
			}
			if i == 0 && lost > 0 {
				b.Fail()
			}
			return nil, time.Since(begin) - took
		}},
	}
	for _, w := range works {
		m := make([]measured, len(sides))
		for range w.times {
			for i, s := range sides {
				m[i].run(b, s, func() (func(), time.Duration) { return w.do(i) })
			}
		}
		report(b, w.name, "ms", ms(median(m[0].took)), ms(median(m[1].took)), 10)
		fmt.Printf("  of the host's CPU: Berth %.0f ms, peer %.0f ms each: %.1f times less\n",
			ms(m[0].cpu)/float64(w.times), ms(m[1].cpu)/float64(w.times), float64(m[1].cpu)/float64(max(m[0].cpu, 1)))
	}
	b.ReportMetric(0, "ns/op")
}

// report prints ours beside the peer's, of which less is better, with how many
// times less ours is and what is aimed for.
func report(b *testing.B, name, unit string, ours, theirs, aim float64) {
	verdict := "reached"
	if theirs/ours < aim {
		verdict = "MISSED"
	}
	fmt.Printf("%-20s Berth %8.1f %s, peer %8.1f %s: %5.1f times less, aim %g: %s\n", name, ours, unit, theirs, unit, theirs/ours, aim, verdict)
	b.ReportMetric(theirs/ours, strings.ReplaceAll(name, " ", "-")+"-ratio")
}

// compareMemory reports what the guest's processes keep in memory that cannot be
// dropped, without what the tests themselves run there.
func compareMemory(b *testing.B, sides []side) {
	b.Helper()
	var sums []float64
	for i, s := range sides {
		sum := 0.0
		for name, mib := range anonymous(b, s.shell) {
			if name != "relay" {
				sum += mib
				fmt.Printf("  %s: %s %.1f MiB\n", []string{"Berth", "peer"}[i], name, mib)
			}
		}
		sums = append(sums, sum)
		fmt.Printf("  %s\n", strings.ReplaceAll(s.shell("grep -E 'MemAvailable|AnonPages|Slab' /proc/meminfo"), "\n", ", "))
	}
	report(b, "idle memory", "MiB", sums[0], sums[1], 5)
}

// anonymous returns the MiB of anonymous and shared memory of a guest's programs,
// by name. shell runs a script there.
func anonymous(b *testing.B, shell func(script string) string) map[string]float64 {
	b.Helper()
	const script = `for p in /proc/[0-9]*; do [ -r $p/smaps_rollup ] && a=$(awk '/^(Anonymous|Shmem).*:/{s+=$2}END{print s+0}' $p/smaps_rollup 2>/dev/null) && [ "$a" -gt 0 ] && echo $(cat $p/comm) $a; done; true`
	found := map[string]float64{}
	for line := range strings.Lines(shell(script)) {
		name, kib, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(kib)
		if err != nil || name == "sh" || name == "awk" {
			continue
		}
		found[name] += float64(n) / 1024
	}
	if len(found) == 0 {
		b.Fatal("no process was found in the guest")
	}
	return found
}
