//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/images"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/qemu"
)

// Every figure is the median of several repetitions, interleaved with those of
// what it is compared with, so that a neighbour's load falls on both.

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// BenchmarkStart compares `berth start` until `docker version` answers with the
// same QEMU, kernel and settings booting a busybox that prints a line.
func BenchmarkStart(b *testing.B) {
	h := ownHome(b)
	if err := h.boot(); err != nil { // first boot: data disk, keys
		b.Fatal(err)
	}
	h.berth().ok(b, "stop")
	var ours, bare []time.Duration
	for range 5 {
		begin := time.Now()
		h.berth().ok(b, "start")
		h.docker().ok(b, "version")
		ours = append(ours, time.Since(begin))
		if len(ours) == 5 {
			logPhases(b, h)
		}
		h.berth().ok(b, "stop")
		bare = append(bare, bareBoot(b))
	}
	b.ReportMetric(ms(median(ours)), "start-ms")
	b.ReportMetric(ms(median(bare)), "bare-boot-ms")
	b.ReportMetric(ms(median(ours))/ms(median(bare)), "start/bare")
	b.ReportMetric(0, "ns/op")
}

// bareBoot boots the guest's kernel on the same driver with busybox as its init,
// and returns the time from QEMU's start to the line it prints.
func bareBoot(b *testing.B) time.Duration {
	b.Helper()
	img, err := images.Open(filepath.Join(root, "bin", "image"))
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	initrd := filepath.Join(dir, "initrd")
	busyboxInitrd(b, initrd)
	seen := make(chan struct{})
	console := &lineWatch{want: "busybox is up", seen: seen}
	// A short path: the driver keeps sockets here.
	run, err := os.MkdirTemp("", "bb-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(run)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	driver := qemu.New(qemu.Options{})
	m, err := driver.New(ctx, vm.Config{
		Name: "bare", CPUs: 1, MemoryMiB: 2048, Kernel: img.Kernel, Initrd: initrd,
		Cmdline: img.Cmdline, Console: console,
	}, run)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	begin := time.Now()
	if err := m.Start(ctx); err != nil {
		b.Fatal(err)
	}
	select {
	case <-seen:
	case <-ctx.Done():
		b.Fatalf("busybox never came up:\n%s", console.text.String())
	}
	return time.Since(begin)
}

type lineWatch struct {
	want string
	seen chan struct{}
	text bytes.Buffer
}

func (l *lineWatch) Write(p []byte) (int, error) {
	had := strings.Contains(l.text.String(), l.want)
	l.text.Write(p)
	if !had && strings.Contains(l.text.String(), l.want) {
		close(l.seen)
	}
	return len(p), nil
}

func busyboxInitrd(b *testing.B, file string) {
	b.Helper()
	dir := b.TempDir()
	script := "#!/bin/sh\n/bin/busybox mount -t devtmpfs dev /dev\necho busybox is up >/dev/console\nexec /bin/busybox sleep 1000000\n"
	for name, content := range map[string]string{"init": script, "bin/sh": ""} {
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if content != "" {
			if err := os.WriteFile(p, []byte(content), 0o755); err != nil {
				b.Fatal(err)
			}
		}
	}
	os.MkdirAll(filepath.Join(dir, "dev"), 0o755)
	os.Symlink("busybox", filepath.Join(dir, "bin", "sh"))
	cmd := exec.Command("sh", "-ec", `cp /bin/busybox bin/busybox; find . | cpio -o -H newc --quiet >"$1"`, "sh", file)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
}

// bareExec is the program that `docker run` is measured against: it forks and
// execs the container's binary in the VM, and waits.
const bareExec = `package main

import (
	"fmt"
	"os"
	"os/exec"
	"time"
)

func main() {
	for range 15 {
		begin := time.Now()
		if err := exec.Command("/bin/busybox", "true").Run(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(time.Since(begin).Nanoseconds())
	}
}
`

// BenchmarkRun compares a warm `docker run --rm hello true` through docker.sock
// with a bare clone and exec of the same binary in the VM. What the client needs
// to start, on the host, is shown beside it: `docker run --help` asks no engine.
func BenchmarkRun(b *testing.B) {
	h := machine(b)
	program, err := os.ReadFile(buildProgram(b, bareExec))
	if err != nil {
		b.Fatal(err)
	}
	if r := h.berth().execIn(string(program), "ssh", "--", "cat >/tmp/bare && chmod +x /tmp/bare"); r.code != 0 {
		b.Fatal(r)
	}
	defer h.berth().exec("ssh", "--", "rm -f /tmp/bare")
	var stock, embedded, bare, client []time.Duration
	h.docker().ok(b, "run", "--rm", "hello", "true")
	for range 5 {
		for range 4 {
			stock = append(stock, timed(func() { h.docker().ok(b, "run", "--rm", "hello", "true") }))
			client = append(client, timed(func() { h.docker().ok(b, "run", "--help") }))
			embedded = append(embedded, timed(func() { h.berth().ok(b, "run", "--rm", "hello", "true") }))
		}
		for _, line := range strings.Fields(h.berth().ok(b, "ssh", "--", "/tmp/bare")) {
			n, err := strconv.ParseInt(line, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			bare = append(bare, time.Duration(n))
		}
	}
	b.ReportMetric(ms(median(client)), "docker-client-ms")
	b.ReportMetric(ms(median(stock)), "docker-run-ms")
	b.ReportMetric(ms(median(embedded)), "berth-run-ms")
	b.ReportMetric(ms(median(bare)), "bare-exec-ms")
	b.ReportMetric(ms(median(stock))/ms(median(bare)), "run/bare")
	b.ReportMetric((ms(median(stock))-ms(median(client)))/ms(median(bare)), "(run-client)/bare")
	b.ReportMetric(0, "ns/op")
	logSpans(b, h)
}

// logPhases shows where the time of the last start went. Phases of the guest
// overlap.
func logPhases(b *testing.B, h *home) {
	b.Helper()
	var s struct {
		Start []struct {
			Name        string
			Guest       bool
			Begin, Took time.Duration
		}
	}
	if err := json.Unmarshal([]byte(h.berth().ok(b, "status", "--format", "json")), &s); err != nil {
		b.Fatal(err)
	}
	fmt.Println("phases of the last start:")
	for _, p := range s.Start {
		where := "host"
		if p.Guest {
			where = "guest"
		}
		fmt.Printf("  %-14s %-5s from %5.0f ms, took %5.0f ms\n", p.Name, where, ms(p.Begin), ms(p.Took))
	}
}

// logSpans shows where the engine's time of a run went, the median of each phase.
func logSpans(b *testing.B, h *home) {
	b.Helper()
	socket := filepath.Join(filepath.Dir(h.status(b).DockerSocket), "control.sock")
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Get("http://engine/v1/spans")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	var spans []struct {
		Name string
		Took time.Duration
	}
	if err := json.NewDecoder(resp.Body).Decode(&spans); err != nil {
		b.Fatal(err)
	}
	byName := map[string][]time.Duration{}
	var names []string
	for _, s := range spans {
		if byName[s.Name] == nil {
			names = append(names, s.Name)
		}
		byName[s.Name] = append(byName[s.Name], s.Took)
	}
	fmt.Println("where the engine's time of a run goes, medians (create holds none of the others, start holds mount to exec):")
	for _, name := range names {
		fmt.Printf("  %-14s %7.2f ms\n", name, ms(median(byName[name])))
	}
}

func timed(f func()) time.Duration {
	begin := time.Now()
	f()
	return time.Since(begin)
}

// BenchmarkIdle measures what an idle machine costs: guest memory beyond the
// kernel's, the host processes' memory, and host CPU over a minute.
func BenchmarkIdle(b *testing.B) {
	h := ownHome(b)
	if err := h.boot(); err != nil {
		b.Fatal(err)
	}
	h.berth().ok(b, "run", "--rm", "hello", "true")
	time.Sleep(20 * time.Second)
	s := h.status(b)
	pids := append([]int{s.PID}, children(s.PID)...)
	before := cpuTicks(b, pids)
	const minute = 60 * time.Second
	time.Sleep(minute)
	used := cpuTicks(b, pids) - before
	b.ReportMetric(float64(used)/100/minute.Seconds()*100, "%core")
	for _, pid := range pids {
		name, kib := rss(b, pid)
		b.ReportMetric(float64(kib)/1024, name+"-rss-MiB")
	}
	sum := 0.0
	for name, mib := range anonymous(b, func(script string) string { return h.berth().ok(b, "ssh", "--", script) }) {
		b.ReportMetric(mib, name+"-anon-MiB")
		sum += mib
	}
	b.ReportMetric(sum, "guest-anon-MiB")
	b.ReportMetric(0, "ns/op")
	fmt.Printf("guest memory:\n%s\n", h.berth().ok(b, "ssh", "--", "head -5 /proc/meminfo; grep -E 'AnonPages|Shmem:|Slab|KReclaimable|PageTables|KernelStack' /proc/meminfo"))
}

func children(pid int) []int {
	var found []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range stats {
		f := statFields(p)
		if len(f) > 1 && f[1] == strconv.Itoa(pid) {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			found = append(found, n)
		}
	}
	return found
}

// statFields returns the fields of a /proc/PID/stat behind the command's name.
func statFields(file string) []string {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
}

// cpuTicks sums user and system time, in hundredths of a second.
func cpuTicks(b *testing.B, pids []int) (sum int) {
	b.Helper()
	for _, pid := range pids {
		f := statFields(fmt.Sprintf("/proc/%d/stat", pid))
		if len(f) < 13 {
			b.Fatalf("process %d is gone", pid)
		}
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		sum += user + system
	}
	return sum
}

func rss(b testing.TB, pid int) (name string, kib int) {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "Name":
			name = strings.TrimSpace(value)
		case "VmRSS":
			kib, _ = strconv.Atoi(strings.Fields(value)[0])
		}
	}
	return name, kib
}

// BenchmarkPipes measures the docker stream's throughput both ways beside a unix
// socket on the host, and its round trip.
func BenchmarkPipes(b *testing.B) {
	h := machine(b)
	const size = 64 << 20
	c := h.berth()
	down := timed(func() {
		if r := c.exec("ssh", "--", fmt.Sprintf("head -c %d /dev/zero", size)); len(r.out) != size {
			b.Fatalf("got %d bytes: %s", len(r.out), r.err)
		}
	})
	b.ReportMetric(float64(size>>20)/down.Seconds(), "ssh-down-MiB/s")
	var trips []time.Duration
	for range 50 {
		trips = append(trips, timed(func() { dockerPing(b, h) }))
	}
	b.ReportMetric(ms(median(trips)), "ping-ms")
	b.ReportMetric(0, "ns/op")
}

func dockerPing(b *testing.B, h *home) {
	b.Helper()
	conn, err := dialDocker(h)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /_ping HTTP/1.0\r\n\r\n")
	if answer, _ := io.ReadAll(conn); !bytes.HasSuffix(answer, []byte("OK")) {
		b.Fatalf("ping: %q", answer)
	}
}

// socketPath is asked for once: status costs a process.
var socketPath string

func dialDocker(h *home) (io.ReadWriteCloser, error) {
	if socketPath == "" {
		var s status
		if err := json.Unmarshal([]byte(h.berth().exec("status", "--format", "json").out), &s); err != nil {
			return nil, err
		}
		socketPath = s.DockerSocket
	}
	return net.Dial("unix", socketPath)
}
