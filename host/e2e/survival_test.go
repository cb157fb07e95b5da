//go:build linux

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestEngineKilledOften kills the engine again and again while containers write,
// end and are restarted. Afterwards no line of a log, exit status or event is
// lost, and every container that had not ended is the process it was.
func TestEngineKilledOften(t *testing.T) {
	needFull(t)
	h := ownHome(t)
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c := h.docker()
	const writers, kills = 8, 12
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s", c.exec("ps", "-a"), c.exec("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}} {{json .State}}", "failing"))
		}
	})
	name := func(i int) string { return "writer" + strconv.Itoa(i) }
	begin := c.ok(t, "info", "--format", "{{.SystemTime}}")
	// Each writes numbered lines to both of its streams, and ends with a status of
	// its own, most of them while the engine is being killed.
	for i := range writers {
		script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i; echo line $i >&2; usleep 20000; done; exit %d", 100+150*i, 10+i)
		c.ok(t, "run", "-d", "--name", name(i), "hello", "sh", "-c", script)
	}
	c.ok(t, "run", "-dt", "--name", "terminal", "hello", "sh", "-c",
		"i=0; while [ $i -lt 1500 ]; do i=$((i+1)); echo line $i; usleep 20000; done; exit 77")
	c.ok(t, "run", "-d", "--name", "survivor", "-v", "kept:/data", "hello", "sh", "-c", "echo $$ >/data/pid; exec sleep 100000")
	c.ok(t, "run", "-d", "--name", "failing", "--restart", "on-failure:3", "hello", "sh", "-c", "echo try; sleep 1; exit 9")
	before := c.ok(t, "inspect", "--format", "{{.State.Pid}} {{.State.StartedAt}}", "survivor")
	for n := range kills {
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
		h.berth().exec("ssh", "--", "kill -9 $(pidof berth-guest)")
		if n%3 == 0 {
			eventually(t, "the engine answers again", func() bool { return c.exec("version").code == 0 })
		}
	}
	eventually(t, "the engine answers again", func() bool { return c.exec("version").code == 0 })
	if after := c.ok(t, "inspect", "--format", "{{.State.Pid}} {{.State.StartedAt}}", "survivor"); after != before {
		t.Errorf("the survivor was %q, is %q", before, after)
	}
	for i := range writers {
		if got, want := c.ok(t, "wait", name(i)), strconv.Itoa(10+i); got != want {
			t.Errorf("%s ended with %s, want %s", name(i), got, want)
		}
		r := c.exec("logs", name(i))
		checkLines(t, name(i)+"'s output", r.out, 100+150*i)
		checkLines(t, name(i)+"'s errors", r.err, 100+150*i)
	}
	if got := c.ok(t, "wait", "terminal"); got != "77" {
		t.Errorf("the program on a terminal ended with %s, want 77", got)
	}
	checkTerminal(t, c.exec("logs", "terminal").out, 1500, kills)
	eventually(t, "the policy gives up", func() bool {
		return c.ok(t, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", "failing") == "exited 9 3"
	})
	if tries := strings.Count(c.ok(t, "logs", "failing"), "try"); tries < 4 || tries > 5 { // a batch may be there twice
		t.Errorf("the failing container ran %d times, want 4", tries)
	}
	events := strings.Split(c.ok(t, "events", "--since", begin, "--until", c.ok(t, "info", "--format", "{{.SystemTime}}"), "--filter", "type=container", "--format", `{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}`), "\n")
	for i := range writers {
		for _, want := range []string{"create " + name(i), "start " + name(i), fmt.Sprintf("die %s %d", name(i), 10+i)} {
			n := 0
			for _, e := range events {
				if strings.HasPrefix(e+" ", want+" ") {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%d events %q, want one", n, want)
			}
		}
	}
	if n := len(slices.DeleteFunc(slices.Clone(events), func(e string) bool { return e != "die failing 9" })); n != 4 {
		t.Errorf("%d events tell that the failing container died, want 4", n)
	}
	if t.Failed() {
		t.Logf("events:\n%s", strings.Join(events, "\n"))
	}
}

// checkLines: the log holds line 1 to line last, in order; what was being written
// when the engine died may be there twice.
func checkLines(t *testing.T, what, log string, last int) {
	t.Helper()
	next := 1
	for line := range strings.Lines(log) {
		n, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "line "))
		if err != nil || n > next {
			t.Errorf("%s: %q where line %d should be", what, line, next)
			return
		}
		next = n + 1
	}
	if next != last+1 {
		t.Errorf("%s ends with line %d, want %d", what, next-1, last)
	}
}

// checkTerminal: the log holds line 1 to line last, in order, but for at most one
// read of the terminal for each time that the engine was killed.
func checkTerminal(t *testing.T, log string, last, kills int) {
	t.Helper()
	const read = 4096 // the most that the kernel gives of a terminal's output at once, in bytes
	next, gaps := 1, 0
	for line := range strings.Lines(log) {
		var n int
		if _, err := fmt.Sscanf(line, "line %d\r\n", &n); err != nil || !strings.HasSuffix(line, "\r\n") {
			continue // cut in two: a gap follows
		}
		if n < next || n > last {
			t.Errorf("the terminal: line %d where line %d should be", n, next)
			return
		}
		if n > next {
			gaps++
		}
		if lost := (n - next) * len(line); lost > read+2*len(line) {
			t.Errorf("the terminal: lines %d to %d are lost, more than a read", next, n-1)
		}
		next = n + 1
	}
	if next != last+1 || gaps > kills {
		t.Errorf("the terminal's output ends with line %d of %d, and has %d gaps from %d kills", next-1, last, gaps, kills)
	}
	t.Logf("of a terminal's output %d pieces were lost", gaps)
}

// TestPowerCuts cuts the machine's power at random moments, with what had not been
// flushed lost by chance, while images are pulled and removed, containers are
// made and a volume is written to. After each cut the store opens, every blob and
// every file of every image has the hash it should, containers are in a true
// state, restart policies are applied, and the volume holds what was acknowledged.
func TestPowerCuts(t *testing.T) {
	needFull(t)
	const rounds = 8
	refs := []string{sealedImage(t, "sealed:1"), sealedImage(t, "sealed:2")}
	disk := withVolatileDisk(t)
	h := ownHome(t)
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c := h.docker()
	// The volume's number grows, and is told only once it is on the disk.
	c.ok(t, "run", "-d", "--name", "keeper", "--restart", "always", "-v", "kept:/data", "hello", "sh", "-c",
		"i=$(cat /data/n 2>/dev/null || echo 0); while :; do i=$((i+1)); echo $i >/data/new && sync /data/new && mv /data/new /data/n && sync /data && echo $i; done")
	for round := range rounds {
		acknowledged := h.cutWhileBusy(t, refs, round)
		if err := h.boot(); err != nil {
			t.Fatal(err)
		}
		checkAfterCut(t, h, refs, acknowledged)
		if t.Failed() {
			break
		}
	}
	disk.mu.Lock()
	defer disk.mu.Unlock()
	t.Logf("of the blocks not flushed at the cuts %d were lost, %d survived", disk.lost, disk.kept)
	if disk.lost == 0 {
		t.Error("no cut lost anything: they proved nothing")
	}
}

// sealedImage pushes an image with files of its own and their hashes in /sums.
func sealedImage(t *testing.T, name string) string {
	t.Helper()
	c := machine(t).docker()
	ref := suite.registry.image(name)
	defer c.exec("rmi", "-f", ref)
	defer c.exec("rm", "-f", "sealer")
	c.ok(t, "run", "--name", "sealer", "hello", "sh", "-c",
		"mkdir /sealed; for i in $(seq 60); do head -c $((i*3000)) /dev/urandom >/sealed/$i; done; sha256sum /sealed/* >/sums")
	c.ok(t, "commit", "sealer", ref)
	c.ok(t, "push", ref)
	return ref
}

// cutWhileBusy keeps the machine busy, cuts its power at a random moment, and
// returns the last number that the keeper has told.
func (h *home) cutWhileBusy(t *testing.T, refs []string, round int) int {
	t.Helper()
	c := h.docker()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var busy sync.WaitGroup
	loop := func(steps ...[]string) {
		busy.Go(func() {
			for ctx.Err() == nil {
				for _, args := range steps {
					_ = c.command(ctx, args...).Run()
				}
			}
		})
	}
	loop([]string{"pull", refs[0]}, []string{"rmi", "-f", refs[0]})
	loop([]string{"pull", refs[1]}, []string{"commit", "keeper", "committed:1"}, []string{"rmi", "-f", refs[1]})
	once := fmt.Sprintf("once%d", round)
	loop([]string{"run", "-d", "--name", once, "hello", "sleep", "100000"}, []string{"run", "--rm", "-v", "/scratch", "hello", "true"})
	told := c.command(ctx, "logs", "-f", "--tail", "1", "keeper")
	out, err := told.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := told.Start(); err != nil {
		t.Fatal(err)
	}
	last := 0
	busy.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			last, _ = strconv.Atoi(lines.Text())
		}
		_ = told.Wait()
	})
	time.Sleep(500*time.Millisecond + time.Duration(rand.IntN(8000))*time.Millisecond)
	if err := syscall.Kill(h.status(t).PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is left", func() bool { return len(h.qemus()) == 0 })
	cancel()
	busy.Wait()
	return last
}

// qemus lists the home's machines that run.
func (h *home) qemus() []string {
	return slices.DeleteFunc(h.processes(), func(p string) bool { return !strings.Contains(p, "qemu-system") })
}

func checkAfterCut(t *testing.T, h *home, refs []string, acknowledged int) {
	t.Helper()
	c := h.docker()
	// What is collected meanwhile is not there any more: it is no blob then.
	const blobs = `bad=0; n=0; for f in $(find /var/lib/berth -path '*/blobs/sha256/*' -type f); do n=$((n+1)); sum=$(sha256sum $f 2>/dev/null | cut -c1-64); [ "$sum" = ${f##*/} ] || [ ! -e $f ] || { echo $f; bad=1; }; done; echo $n; exit $bad`
	if r := h.berth().exec("ssh", "--", blobs); r.code != 0 || strings.TrimSpace(r.out) == "0" {
		t.Errorf("blobs that are not what they should be: %s", r)
	}
	if out := h.berth().ok(t, "ssh", "--", "dmesg | grep -E 'EXT4-fs (error|warning)|JBD2: .*(error|corrupt)' || true"); out != "" {
		t.Errorf("the file system has suffered: %s", out)
	}
	for _, ref := range refs {
		if c.exec("image", "inspect", ref).code != 0 {
			c.ok(t, "pull", ref)
		}
		if out := c.ok(t, "run", "--rm", ref, "sh", "-c", "sha256sum -c /sums | grep -c OK$"); out != "60" {
			t.Errorf("%s: %s of 60 files are what they should be", ref, out)
		}
	}
	eventually(t, "the keeper runs again", func() bool {
		return c.ok(t, "inspect", "--format", "{{.State.Status}}", "keeper") == "running"
	})
	n, err := strconv.Atoi(c.ok(t, "exec", "keeper", "cat", "/data/n"))
	if err != nil || n < acknowledged {
		t.Errorf("the volume holds %d, %v; acknowledged was %d", n, err, acknowledged)
	}
	for _, name := range strings.Fields(c.ok(t, "ps", "-a", "--filter", "name=once", "--format", "{{.Names}}")) {
		if state := c.ok(t, "inspect", "--format", "{{.State.Running}} {{.State.Pid}}", name); state != "false 0" {
			t.Errorf("%s, which nobody restarts, is %s", name, state)
		}
		c.ok(t, "start", name)
		c.ok(t, "rm", "-f", name)
	}
}
