//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// shareWork is what BenchmarkShare runs in the VM: it prints the time of each
// kind of work in one directory, in nanoseconds. Caches are dropped in between.
const shareWork = `package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	files = 500
	big   = 64 << 20
)

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func main() {
	dir := filepath.Join(os.Args[1], "work")
	must(os.MkdirAll(dir, 0o755))
	name := func(i int) string { return fmt.Sprintf("%s/%d/%d", dir, i%10, i) }
	small, chunk := make([]byte, 4096), make([]byte, 1<<20)
	each := func(do func(string) error) func() error {
		return func() error {
			for i := range files {
				if err := do(name(i)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	for i := range 10 {
		must(os.MkdirAll(fmt.Sprintf("%s/%d", dir, i), 0o755))
	}
	for _, work := range []struct {
		name string
		do   func() error
	}{
		{"create", each(func(f string) error { return os.WriteFile(f, small, 0o644) })},
		{"stat", each(func(f string) error { _, err := os.Stat(f); return err })},
		{"read", each(func(f string) error { _, err := os.ReadFile(f); return err })},
		{"walk", func() error {
			return filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
				if err == nil {
					_, err = d.Info()
				}
				return err
			})
		}},
		{"remove", each(os.Remove)},
		{"seq-write", func() error {
			f, err := os.Create(dir + "/big")
			must(err)
			for range big / len(chunk) {
				_, err := f.Write(chunk)
				must(err)
			}
			must(f.Sync())
			return f.Close()
		}},
		{"seq-read", func() error {
			f, err := os.Open(dir + "/big")
			must(err)
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, chunk)
			if n != big {
				fmt.Println("short read")
				os.Exit(1)
			}
			return err
		}},
	} {
		must(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		begin := time.Now()
		must(work.do())
		fmt.Println(work.name, time.Since(begin).Nanoseconds())
	}
	must(os.RemoveAll(dir))
}
`

// BenchmarkShare compares small files and sequential IO on a host folder with
// QEMU's own 9p in the same VM, and with the VM's own disk.
func BenchmarkShare(b *testing.B) {
	needVM(b)
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	withNinep(b, dir)
	h := ownHome(b)
	if err := h.boot(); err != nil {
		b.Fatal(err)
	}
	c := h.berth()
	c.ok(b, "run", "--rm", "-v", dir+":/x", "hello", "true") // waits for the shares
	bin := filepath.Join(dir, "work")
	if err := os.WriteFile(bin+".go", []byte(shareWork), 0o600); err != nil {
		b.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", bin, bin+".go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	share := c.ok(b, "ssh", "--", "ls -d /run/berth/share/host*"+strings.TrimPrefix(dir, os.TempDir()))
	c.ok(b, "ssh", "--", "mkdir -p /tmp/9p /var/lib/berth/bench && cp "+share+"/work /tmp/work-bin && "+
		"mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 ninep /tmp/9p")
	times := map[string]map[string][]time.Duration{}
	for range 3 {
		for fs, where := range map[string]string{"share": share + "/a", "9p": "/tmp/9p/b", "disk": "/var/lib/berth/bench"} {
			for _, line := range strings.Split(c.ok(b, "ssh", "--", "/tmp/work-bin "+where), "\n") {
				work, ns, _ := strings.Cut(line, " ")
				n, err := strconv.ParseInt(ns, 10, 64)
				if err != nil {
					b.Fatalf("%s: %s", fs, line)
				}
				if times[work] == nil {
					times[work] = map[string][]time.Duration{}
				}
				times[work][fs] = append(times[work][fs], time.Duration(n))
			}
		}
	}
	for work, t := range times {
		b.ReportMetric(ms(median(t["share"])), work+"-ms")
		b.ReportMetric(ms(median(t["9p"]))/ms(median(t["share"])), work+"-9p/share")
		b.ReportMetric(ms(median(t["share"]))/ms(median(t["disk"])), work+"-share/disk")
	}
	b.ReportMetric(0, "ns/op")
}

// ninepScript is a QEMU with a 9p device. It leaves off the sandbox, which forbids
// what the device does.
const ninepScript = `#!/bin/sh
n=$#
while [ $n -gt 0 ]; do
	arg=$1
	shift
	n=$((n - 1))
	if [ "$arg" = -sandbox ]; then
		shift
		n=$((n - 1))
	else
		set -- "$@" "$arg"
	fi
done
case "$*" in
*vhost-user-vsock*)
	set -- "$@" -fsdev local,id=ninep,path='%s',security_model=mapped-xattr -device virtio-9p-pci,fsdev=ninep,mount_tag=ninep ;;
esac
exec '%s' "$@"
`

// withNinep makes the QEMU of machines that are started from now on share dir as
// 9p, too.
func withNinep(b *testing.B, dir string) {
	b.Helper()
	const name = "qemu-system-x86_64"
	qemu, err := exec.LookPath(name)
	if err != nil {
		b.Skip(err)
	}
	wrapper := b.TempDir()
	if err := os.WriteFile(filepath.Join(wrapper, name), fmt.Appendf(nil, ninepScript, dir, qemu), 0o755); err != nil {
		b.Fatal(err)
	}
	b.Setenv("PATH", wrapper+":"+os.Getenv("PATH"))
}
