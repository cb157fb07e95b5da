package container

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/seccomp"
)

// BenchmarkRun compares a container's whole life around /bin/true with a bare
// clone and exec of the same program. BERTH_EXEC should name the real berth-exec:
// the test binary takes longer to start.
func BenchmarkRun(b *testing.B) {
	needRoot(b)
	root := rootfs(b)
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			cmd := exec.Command("/bin/busybox", "true")
			cmd.Path = root + "/bin/busybox"
			cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
	filter, err := seccomp.Default(dockerCaps)
	if err != nil {
		b.Fatal(err)
	}
	for _, test := range []struct {
		name string
		edit func(*Config)
	}{
		{"container", func(*Config) {}},
		{"container with seccomp", func(c *Config) { c.Seccomp = filter }},
		{"container without network", func(c *Config) {
			c.Spec.Linux.Namespaces = c.Spec.Linux.Namespaces[:2]
			c.Spec.Hostname = ""
		}},
	} {
		b.Run(test.name, func(b *testing.B) {
			cfg := testConfig(b, testSpec(root, "/bin/true"))
			test.edit(&cfg)
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer null.Close()
			cfg.Stdout, cfg.Stderr = null, null
			ctx := b.Context()
			for b.Loop() {
				c, err := Create(ctx, cfg)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.Start(ctx); err != nil {
					b.Fatal(err)
				}
				if ws, err := c.Wait(ctx); err != nil || ws != 0 {
					b.Fatal(ws, err)
				}
				if err := c.Delete(ctx); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}
