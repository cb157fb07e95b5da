package container

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/seccomp"
)

// BenchmarkRun compares a container's whole life around /bin/true with a bare
// clone and exec of the same program, in interleaved rounds, and gives the median
// of each. BERTH_EXEC should name the real berth-exec: the test binary takes longer
// to start. The container is as docker run makes it, with its network namespace
// prepared; "warm" has a pool, which is refilled between the rounds.
func BenchmarkRun(b *testing.B) {
	needRoot(b)
	root := rootfs(b)
	filter, err := seccomp.Default(dockerCaps)
	if err != nil {
		b.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	config := func(id string) Config {
		cfg := testConfig(b, testSpec(root, "/bin/true"))
		cfg.ID = id
		cfg.CgroupPath = filepath.Join("/berth-test", id)
		cfg.Stdout, cfg.Stderr = null, null
		cfg.Spec.Linux.Namespaces = slices.DeleteFunc(cfg.Spec.Linux.Namespaces,
			func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace })
		return cfg
	}
	plain, filtered, warm := config("plain"), config("filtered"), config("warm")
	filtered.Seccomp, warm.Seccomp = filter, filter
	warm.Pool = filledPool(b, warm)

	times := make(map[string][]time.Duration)
	measure := func(name string, f func()) {
		begin := time.Now()
		f()
		times[name] = append(times[name], time.Since(begin))
	}
	container := func(cfg Config) func() { return func() { runOnce(b, cfg) } }
	for b.Loop() {
		measure("bare", func() {
			cmd := exec.Command(root+"/bin/busybox", "true")
			cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
		})
		measure("plain", container(plain))
		measure("seccomp", container(filtered))
		warm.Pool.fill()
		time.Sleep(50 * time.Millisecond) // its runtime starts meanwhile
		measure("warm+seccomp", container(warm))
	}
	for _, t := range times {
		slices.Sort(t)
	}
	bare := times["bare"][len(times["bare"])/2]
	for name, t := range times {
		b.ReportMetric(float64(t[len(t)/2].Microseconds())/1000, name+"-ms")
		b.ReportMetric(float64(t[0].Microseconds())/1000, name+"-min-ms")
		b.ReportMetric(float64(t[len(t)/2])/float64(bare), name+"-ratio")
	}
}

func runOnce(b *testing.B, cfg Config) {
	ctx := b.Context()
	c, err := Create(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := c.Start(ctx); err != nil {
		b.Fatal(err)
	}
	if ws, err := c.Wait(ctx); err != nil || ws != 0 {
		b.Fatal(ws, err)
	}
	if err := c.Delete(ctx); err != nil {
		b.Fatal(err)
	}
}
