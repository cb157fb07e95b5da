//go:build linux

package e2e

import (
	"bytes"
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
// QEMU's own 9p in the same VM, with virtiofsd where there is one, with the VM's own
// disk, and with Berth's 9P, as hosts without vhost-user have it, in a VM beside.
func BenchmarkShare(b *testing.B) {
	needVM(b)
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	withDevices(b, dir, startVirtiofsd(b, dir))
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
	c.ok(b, "ssh", "--", "mkdir -p /tmp/9p /tmp/virtiofsd /var/lib/berth/bench && cp "+share+"/work /tmp/work-bin && "+
		"mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 ninep /tmp/9p")
	type place struct {
		name, dir string
		in        cli
	}
	places := []place{{"share", share + "/a", c}, {"9p", "/tmp/9p/b", c}, {"disk", "/var/lib/berth/bench", c}}
	if c.exec("ssh", "--", "mount -t virtiofs virtiofsd /tmp/virtiofsd").code == 0 {
		places = append(places, place{"virtiofsd", "/tmp/virtiofsd/c", c})
	} else {
		fmt.Println("no virtiofsd to compare with")
	}
	beside := ownHome(b)
	beside.bootWith(b, "streams: serial\n")
	serial := beside.berth()
	serial.ok(b, "run", "--rm", "-v", dir+":/x", "hello", "true")
	serial.ok(b, "ssh", "--", "cp "+share+"/work /tmp/work-bin")
	places = append(places, place{"Berth's 9P", share + "/d", serial})
	times := map[string]map[string][]time.Duration{}
	var works []string
	for range 3 {
		for _, place := range places {
			for line := range strings.Lines(place.in.ok(b, "ssh", "--", "/tmp/work-bin "+place.dir)) {
				work, ns, _ := strings.Cut(strings.TrimSpace(line), " ")
				n, err := strconv.ParseInt(ns, 10, 64)
				if err != nil {
					b.Fatalf("%s: %s", place.name, line)
				}
				if times[work] == nil {
					times[work] = map[string][]time.Duration{}
					works = append(works, work)
				}
				times[work][place.name] = append(times[work][place.name], time.Duration(n))
			}
		}
	}
	for _, work := range works {
		ours := ms(median(times[work]["share"]))
		fmt.Printf("%-10s Berth %8.1f ms", work, ours)
		b.ReportMetric(ours, work+"-ms")
		for _, place := range places[1:] {
			theirs := ms(median(times[work][place.name]))
			fmt.Printf(", %s %8.1f ms (%.2f)", place.name, theirs, theirs/ours)
			b.ReportMetric(theirs/ours, work+"-"+strings.ReplaceAll(place.name, " ", "-")+"/share")
		}
		fmt.Println()
	}
	b.ReportMetric(0, "ns/op")
}

// devicesScript is a QEMU with a 9p device, and with virtiofsd's if its socket is
// given. It leaves off the sandbox, which forbids what the former does.
const devicesScript = `#!/bin/sh
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
	set -- "$@" -fsdev local,id=ninep,path='%[1]s',security_model=mapped-xattr -device virtio-9p-pci,fsdev=ninep,mount_tag=ninep
	[ -z '%[2]s' ] || set -- "$@" -chardev socket,id=virtiofsd,path='%[2]s' -device vhost-user-fs-pci,chardev=virtiofsd,tag=virtiofsd,queue-size=1024 ;;
esac
exec '%[3]s' "$@"
`

// withDevices makes the QEMU of machines that are started from now on share dir
// as 9p, and what virtiofsd serves at socket, if it is not empty.
func withDevices(b *testing.B, dir, socket string) {
	b.Helper()
	const name = "qemu-system-x86_64"
	qemu, err := exec.LookPath(name)
	if err != nil {
		b.Skip(err)
	}
	wrapper := b.TempDir()
	if err := os.WriteFile(filepath.Join(wrapper, name), fmt.Appendf(nil, devicesScript, dir, socket, qemu), 0o755); err != nil {
		b.Fatal(err)
	}
	b.Setenv("PATH", wrapper+":"+os.Getenv("PATH"))
}

// startVirtiofsd shares dir by the virtiofsd that comes with QEMU, for one
// machine, and returns its socket; "" where there is none, or it does not run.
func startVirtiofsd(b *testing.B, dir string) string {
	b.Helper()
	for _, program := range []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"} {
		if _, err := os.Stat(program); err != nil {
			continue
		}
		socket := filepath.Join(b.TempDir(), "virtiofsd.sock")
		args := []string{"--socket-path=" + socket, "-o", "source=" + dir, "-o", "cache=auto", "-f"}
		if program == "/usr/libexec/virtiofsd" { // the later one, in Rust
			args = []string{"--socket-path=" + socket, "--shared-dir=" + dir, "--cache=auto"}
		}
		var said bytes.Buffer
		cmd := exec.Command(program, args...)
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		for range 100 {
			if _, err := os.Stat(socket); err == nil {
				return socket
			}
			time.Sleep(50 * time.Millisecond)
		}
		cmd.Process.Kill()
		cmd.Wait()
		b.Fatalf("%s does not listen: %s", program, said.String())
	}
	return ""
}
