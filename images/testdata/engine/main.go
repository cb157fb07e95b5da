//go:build linux

// Engine stands in for berth-guest in the image's boot test: it checks what
// PID 1 has prepared and prints what it finds.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berthvm/berth/guest/keeper"
	"github.com/berthvm/berth/guest/wire"
)

const counter = "/var/lib/berth/starts"

func main() {
	starts := count()
	fmt.Printf("engine: start %d\n", starts)
	if starts == 1 {
		os.Exit(3) // PID 1 has to start it again
	}
	for _, c := range []func() error{welcome, keep, mounts, network, cgroup} {
		if err := c(); err != nil {
			fmt.Println("engine: FAIL:", err)
		}
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	fd, err := strconv.Atoi(os.Getenv("BERTH_READY_FD"))
	if err != nil {
		fmt.Println("engine: FAIL: no BERTH_READY_FD:", err)
	}
	fmt.Println("engine: ready")
	os.NewFile(uintptr(fd), "ready").Write([]byte{1})
	<-term
	fmt.Println("engine: stopped")
}

// count returns which start on this data disk it is.
func count() int {
	text, _ := os.ReadFile(counter)
	n, _ := strconv.Atoi(string(text))
	n++
	file, err := os.Create(counter)
	if err == nil {
		fmt.Fprint(file, n)
		err = file.Sync()
		file.Close()
	}
	if err != nil {
		fmt.Println("engine: FAIL:", err)
	}
	return n
}

func welcome() error {
	const path = "/run/berth/welcome.json"
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm() != 0o600 {
		return fmt.Errorf("%s has mode %v", path, info.Mode())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var w wire.Welcome
	if err := json.Unmarshal(text, &w); err != nil {
		return err
	}
	if d := time.Since(w.Time); d < 0 || d > time.Minute {
		return fmt.Errorf("the clock is %v past the welcome's", d)
	}
	name, err := os.Hostname()
	if name != w.Hostname {
		return fmt.Errorf("hostname %q, want %q (%v)", name, w.Hostname, err)
	}
	for file, want := range map[string]string{"/etc/resolv.conf": "nameserver 192.168.127.1", "/etc/hosts": "192.168.127.254\thost.docker.internal", "/etc/hostname": w.Hostname, "/etc/ssl/certs/ca-certificates.crt": "extra certificate"} {
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), want) {
			return fmt.Errorf("%s lacks %q (%v)", file, want, err)
		}
	}
	return nil
}

// keep deposits a process with PID 1 and sees its exit.
func keep() error {
	c, err := keeper.Dial("/run/berth/keeper.sock")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Put("k", []byte("r"), os.Stdin); err != nil {
		return err
	}
	fd := -1
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "sleep 0.1; exit 5"}, &os.ProcAttr{
		Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_PARENT, PidFD: &fd},
	})
	if err != nil {
		return err
	}
	if err := c.Adopt("k", p.Pid, os.NewFile(uintptr(fd), "pidfd")); err != nil {
		return err
	}
	select {
	case e := <-c.Exits():
		if e.Key != "k" || e.PID != p.Pid || e.Status.ExitStatus() != 5 {
			return fmt.Errorf("exit %+v", e)
		}
	case <-time.After(30 * time.Second):
		return fmt.Errorf("no exit came")
	}
	return c.Delete("k")
}

func mounts() error {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for _, want := range []string{" / erofs ro", " /var/lib/berth ext4 rw", " /sys/fs/cgroup cgroup2 ", " /run tmpfs ", " /tmp tmpfs "} {
		if !strings.Contains(string(text), want) {
			return fmt.Errorf("no mount %q", want)
		}
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs("/var/lib/berth", &fs); err != nil {
		return err
	}
	fmt.Printf("engine: data disk of %d MB\n", int64(fs.Blocks)*fs.Bsize>>20)
	return nil
}

func network() error {
	text, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return err
	}
	if !strings.Contains(string(text), "eth0\t00000000\t017FA8C0\t0003") {
		return fmt.Errorf("no default route by 192.168.127.1 in\n%s", text)
	}
	return nil
}

func cgroup() error {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	if string(own) != "0::/engine\n" {
		return fmt.Errorf("cgroup %q", own)
	}
	enabled, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control")
	for _, want := range []string{"cpuset", "cpu", "io", "memory", "pids"} {
		if !strings.Contains(string(enabled), want) {
			return fmt.Errorf("controller %s is not enabled in %q (%v)", want, enabled, err)
		}
	}
	return nil
}
