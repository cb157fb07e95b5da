//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// leftovers runs in the VM, as root, and prints what containers could leave
// behind: "name count" lines. Memory is in KiB, counted after the kernel has
// given back what it can.
const leftovers = `package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/nftables"
)

func main() {
	syscall.Sync()
	os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	nft()
	count("mounts", lines("/proc/1/mounts"))
	cgroups := 0
	filepath.WalkDir("/sys/fs/cgroup", func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			cgroups++
		}
		return nil
	})
	count("cgroups", cgroups)
	count("dying cgroups", field("/sys/fs/cgroup/cgroup.stat", "nr_dying_descendants"))
	count("network interfaces", entries("/sys/class/net"))
	count("network namespaces", entries("/run/berth/netns"))
	count("temporary files", entries("/tmp")+entries("/var/lib/berth/tmp"))
	programs()
	memory := 0
	for _, name := range []string{"SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"} {
		memory += field("/proc/meminfo", name)
	}
	count("KiB of the kernel", memory)
}

func count(name string, n int) { fmt.Println(name, n) }

func nft() {
	conn, err := nftables.New()
	must(err)
	chains, err := conn.ListChains()
	must(err)
	rules, elements, sets := 0, 0, 0
	seen := map[string]bool{}
	for _, c := range chains {
		r, err := conn.GetRules(c.Table, c)
		must(err)
		rules += len(r)
		if id := fmt.Sprint(c.Table.Family, c.Table.Name); !seen[id] {
			seen[id] = true
			list, err := conn.GetSets(c.Table)
			must(err)
			sets += len(list)
			for _, s := range list {
				e, err := conn.GetSetElements(s)
				must(err)
				elements += len(e)
			}
		}
	}
	count("nft chains", len(chains))
	count("nft rules", rules)
	count("nft sets", sets)
	count("nft elements", elements)
}

// programs counts processes that are no kernel threads, and what the two that
// stay have open and hold.
func programs() {
	found, _ := filepath.Glob("/proc/[0-9]*")
	n := 0
	for _, p := range found {
		if _, err := os.Readlink(p + "/exe"); err != nil {
			continue
		}
		n++
		name, _ := os.ReadFile(p + "/comm")
		role := map[string]string{"init": "PID 1", "berth-guest": "the engine"}[strings.TrimSpace(string(name))]
		if role == "" {
			continue
		}
		count("descriptors of "+role, entries(p+"/fd"))
		count("KiB of "+role, field(p+"/smaps_rollup", "Anonymous:"))
	}
	count("processes", n)
}

func entries(dir string) int {
	list, _ := os.ReadDir(dir)
	return len(list)
}

func lines(file string) int {
	data, err := os.ReadFile(file)
	must(err)
	return strings.Count(string(data), "\n")
}

func field(file, name string) int {
	f, err := os.Open(file)
	must(err)
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		n := 0
		if rest, ok := strings.CutPrefix(s.Text(), name); ok {
			fmt.Sscan(rest, &n)
			return n
		}
	}
	return 0
}

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
`

// soakTolerance is how much more of what 500 containers may leave; memory is in KiB.
// A page for each would be 2000. What remains is not the containers': allocators keep
// partly filled pages and spans, the more the more there was at once, and Go keeps
// the stacks and structures of threads and goroutines for the next. The engine keeps
// up to four pipes to look at output through, as many as it has needed at once. Of
// everything else nothing may be left.
var soakTolerance = map[string]int{
	"KiB of the kernel":         1500,
	"KiB of the engine":         1500,
	"KiB of PID 1":              1000,
	"KiB of the daemon":         4000,
	"descriptors of the engine": 6,
}

// TestSoak makes and removes 500 containers, 50 at a time, with ports, volumes
// and networks, and looks at what is left in the VM and in the daemon.
func TestSoak(t *testing.T) {
	needFull(t)
	h := ownHome(t)
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c := h.docker()
	c.ok(t, "network", "create", "soak")
	program, err := os.ReadFile(buildProgram(t, leftovers))
	if err != nil {
		t.Fatal(err)
	}
	if r := h.berth().execIn(string(program), "ssh", "--", "cat >/run/leftovers && chmod +x /run/leftovers"); r.code != 0 {
		t.Fatal(r)
	}
	soak(t, c, 300, 50)          // caches, pools and arenas are as large then as they get
	time.Sleep(30 * time.Second) // and what they do not need any more is given back
	before := leftoversOf(t, h)
	soak(t, c, 500, 50)
	if left := c.ok(t, "ps", "-aq") + c.ok(t, "volume", "ls", "-q"); left != "" {
		t.Errorf("containers or volumes left: %s", left)
	}
	var after map[string]int
	more := func() (names []string) {
		after = leftoversOf(t, h)
		for name, n := range after {
			if n > before[name]+soakTolerance[name] {
				names = append(names, fmt.Sprintf("%s: %d before, %d after", name, before[name], n))
			}
		}
		return names
	}
	names := more()
	for deadline := time.Now().Add(90 * time.Second); len(names) > 0 && time.Now().Before(deadline); names = more() {
		time.Sleep(5 * time.Second)
	}
	for _, name := range names {
		t.Error(name)
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		t.Logf("%-28s %6d before, %6d after", name, before[name], after[name])
	}
}

// soak runs n containers of several kinds, atOnce of them at a time.
func soak(t *testing.T, c cli, n, atOnce int) {
	t.Helper()
	var wait sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range n {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			args := []string{"run", "--rm"}
			switch i % 5 {
			case 0:
				args = append(args, "-p", "127.0.0.1:0:80", "-p", "127.0.0.1:0:53/udp")
			case 1:
				args = append(args, "-v", "/data", "-v", os.TempDir()+":/host:ro")
			case 2:
				args = append(args, "--network", "soak", "-p", "127.0.0.1:0:80")
			case 3:
				args = append(args, "--network", "none", "--memory", "32m", "--tmpfs", "/scratch")
			}
			want := fmt.Sprintf("container %d", i)
			if r := c.exec(append(args, "hello", "echo", want)...); r.code != 0 || strings.TrimSpace(r.out) != want {
				t.Errorf("%s", r)
			}
		})
	}
	wait.Wait()
}

// leftoversOf counts in the VM and in the daemon on the host.
func leftoversOf(t *testing.T, h *home) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for line := range strings.Lines(h.berth().ok(t, "ssh", "--", "/run/leftovers")) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		n, err := strconv.Atoi(line[at+1:])
		if at < 0 || err != nil {
			t.Fatalf("counting in the VM: %s", line)
		}
		counts[line[:at]] = n
	}
	pid := h.status(t).PID
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	counts["descriptors of the daemon"] = len(open)
	rollup, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(rollup)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Anonymous:" {
			counts["KiB of the daemon"], _ = strconv.Atoi(f[1])
		}
	}
	return counts
}
