//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BenchmarkBuild compares builds with those of Debian's docker.io engine in a
// machine like Berth's: by the same client, with BuildKit on both sides.
func BenchmarkBuild(b *testing.B) {
	h := ownHome(b)
	if err := h.boot(); err != nil {
		b.Fatal(err)
	}
	p := peer(b, h)
	defer p.close()
	p.load(b, h, "hello")
	kit := func(c cli) cli {
		c.env, c.patience = append(c.env, "DOCKER_BUILDKIT=1"), long
		return c
	}
	sides := []cli{kit(h.docker()), kit(p.docker())}
	dir := buildContext(b, map[string]string{
		"Dockerfile": "FROM hello\nARG ROUND\nRUN : $ROUND; mkdir /data && for i in $(seq 400); do echo $i > /data/$i; done\n" +
			"RUN head -c 20000000 /dev/urandom > /data/big\nCOPY f /data/f\nRUN cat /data/f > /data/g\nFROM hello\nCOPY --from=0 /data /data\n",
		"f": "0",
	})
	round := 0
	compare(b, "cold build", sides, 1, func(c cli) {
		round++
		c.ok(b, "build", "--no-cache", "-q", "-t", "bench", dir)
	})
	compare(b, "warm build, nothing changed", sides, 3, func(c cli) { c.ok(b, "build", "-q", "-t", "bench", dir) })
	compare(b, "one line changed", sides, 1, func(c cli) {
		round++
		if err := os.WriteFile(filepath.Join(dir, "f"), fmt.Append(nil, round), 0o644); err != nil {
			b.Fatal(err)
		}
		c.ok(b, "build", "-q", "-t", "bench", dir)
	})
	compareSteps(b, sides)
	large := buildContext(b, map[string]string{"Dockerfile": "FROM hello\nCOPY big /big\n"})
	noise := make([]byte, 100<<20)
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	if err := os.WriteFile(filepath.Join(large, "big"), noise, 0o644); err != nil {
		b.Fatal(err)
	}
	compare(b, "context of 100 MB", sides, 1, func(c cli) { c.ok(b, "build", "-q", large) })
	many := map[string]string{"Dockerfile": "FROM hello\nCOPY d /d\n"}
	for i := range 10000 {
		many[fmt.Sprintf("d/%d/%d", i/100, i)] = fmt.Sprint(i)
	}
	files := buildContext(b, many)
	compare(b, "context of 10,000 files", sides, 1, func(c cli) { c.ok(b, "build", "-q", files) })
	b.ReportMetric(0, "ns/op")
}

// compareSteps reports what a RUN takes that does nothing, beside the peer's and beside
// a container by run --rm: what ten more take in a build, by ten.
func compareSteps(b *testing.B, sides []cli) {
	b.Helper()
	const more = 10
	steps := func(n int) string {
		return buildIn(b, "FROM hello\n"+strings.Repeat("RUN true\n", n))
	}
	few, many := steps(1), steps(1+more)
	step, run := make([][]time.Duration, len(sides)), make([][]time.Duration, len(sides))
	for range 3 {
		for i, c := range sides {
			build := func(dir string) time.Duration {
				return timed(func() { c.ok(b, "build", "--no-cache", "-q", dir) })
			}
			step[i] = append(step[i], (build(many)-build(few))/more)
			run[i] = append(run[i], timed(func() { c.ok(b, "run", "--rm", "hello", "true") }))
		}
	}
	report(b, "RUN true", "ms", ms(median(step[0])), ms(median(step[1])), 3)
	ours := ms(median(run[0])) / ms(median(step[0]))
	fmt.Printf("RUN beside run --rm: Berth %.1f ms beside %.1f ms, peer %.1f ms beside %.1f ms\n",
		ms(median(step[0])), ms(median(run[0])), ms(median(step[1])), ms(median(run[1])))
	b.ReportMetric(ours, "RUN-beside-run-ratio")
}

// compare runs do for each side by turns and prints the medians, ours first.
func compare(b *testing.B, what string, sides []cli, times int, do func(cli)) {
	b.Helper()
	took := make([][]time.Duration, len(sides))
	for range times {
		for i, c := range sides {
			took[i] = append(took[i], timed(func() { do(c) }))
		}
	}
	aim := 1.0
	if times > 1 {
		aim = 3
	}
	report(b, what, "ms", ms(median(took[0])), ms(median(took[1])), aim)
}
