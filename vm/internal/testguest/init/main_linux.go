package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire/muxed"
	"github.com/berthvm/berth/vm/internal/testguest"
)

func main() {
	exit, err := run()
	if err != nil {
		fmt.Println("testguest:", err)
		exit = testguest.PowerOff
	}
	unix.Sync()
	switch exit {
	case testguest.Reboot:
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case testguest.Fault:
		os.Exit(1) // the kernel panics without its PID 1
	default:
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	fmt.Println("testguest: reboot:", err)
	select {}
}

func run() (testguest.Exit, error) {
	for _, m := range []struct{ fs, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		os.MkdirAll(m.dir, 0o755)
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil && err != unix.EBUSY {
			return "", fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(console.Fd()), fd, 0); err != nil && err != unix.EINVAL {
			return "", err
		}
	}
	loadModules()
	transport, err := findTransport()
	if err != nil {
		return "", err
	}
	return testguest.Run(context.Background(), transport, testguest.Hooks{
		Button: button(), Console: os.Stdout, Do: do,
	})
}

// findTransport is the serial port if the kernel's command line says so, else vsock.
func findTransport() (testguest.Transport, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	if muxed.Requested(string(cmdline)) {
		return openSerial()
	}
	return guest{}, nil
}

// loadModules loads what there is; a missing device is the host's affair.
func loadModules() {
	files, _ := filepath.Glob("/modules/*.ko")
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
			fmt.Printf("testguest: module %s: %v\n", filepath.Base(name), err)
		}
		f.Close()
	}
}

// guest is the guest's side of the vsock.
type guest struct{}

// Dial implements testguest.Transport.
func (guest) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return vsock.Dial(vsock.Host, port, nil)
}

// Listen implements testguest.Transport.
func (guest) Listen(port uint32) (net.Listener, error) {
	// The transport's module probes its device after it was loaded.
	for range 100 {
		if _, err := vsock.ContextID(); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return vsock.Listen(port, nil)
}

// The size and fields of struct input_event on 64-bit machines.
const (
	inputEventSize = 24
	evKey          = 1
	keyPower       = 116
)

// button watches every input device for the power key.
func button() <-chan struct{} {
	pressed := make(chan struct{}, 1)
	var files []string
	for range 50 {
		if files, _ = filepath.Glob("/dev/input/event*"); len(files) > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		go func() {
			ev := make([]byte, inputEventSize)
			for {
				if _, err := f.Read(ev); err != nil {
					return
				}
				if ev[16] == evKey && ev[18] == keyPower && ev[20] == 1 {
					select {
					case pressed <- struct{}{}:
					default:
					}
				}
			}
		}()
	}
	return pressed
}

func do(order, args string) (string, error) {
	switch order {
	case "disk":
		return disk(args)
	case "net":
		return ping()
	case "share":
		return share(args)
	case "memory":
		return useMemory(args)
	case "cmdline":
		data, err := os.ReadFile("/proc/cmdline")
		return string(data), err
	case "cpus":
		data, err := os.ReadFile("/proc/stat")
		return fmt.Sprint(strings.Count(string(data), "\ncpu")), err
	}
	return "", fmt.Errorf("unknown order %s", order)
}

// share mounts a folder of the host and reads a file in it.
func share(args string) (string, error) {
	tag, name, _ := strings.Cut(args, " ")
	dir := "/" + tag
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount(tag, dir, "virtiofs", 0, ""); err != nil {
		return "", fmt.Errorf("mount %s: %w", tag, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, name))
	return "read " + string(data), err
}

// useMemory touches so many MiB, and frees them.
func useMemory(args string) (string, error) {
	mib, err := strconv.Atoi(args)
	if err != nil {
		return "", err
	}
	data, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return "", err
	}
	for i := 0; i < len(data); i += os.Getpagesize() {
		data[i] = 1
	}
	return "", unix.Munmap(data)
}

func disk(args string) (string, error) {
	serial, args, _ := strings.Cut(args, " ")
	op, text, _ := strings.Cut(args, " ")
	files, _ := filepath.Glob("/sys/block/*/serial")
	for _, name := range files {
		if data, err := os.ReadFile(name); err != nil || strings.TrimSpace(string(data)) != serial {
			continue
		}
		f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
		if err != nil {
			return "", err
		}
		defer f.Close()
		return diskOp(f, op, text)
	}
	return "", fmt.Errorf("no disk with serial %s among %d", serial, len(files))
}

func diskOp(f *os.File, op, text string) (string, error) {
	switch op {
	case "read":
		block := make([]byte, 512)
		if _, err := f.Read(block); err != nil {
			return "", err
		}
		line, _, _ := strings.Cut(string(block), "\n")
		return "read " + line, nil
	case "write":
		if _, err := f.WriteString(text + "\n"); err != nil {
			return "", err
		}
		return "", f.Sync()
	case "discard":
		size, err := f.Seek(0, 2)
		if err != nil {
			return "", err
		}
		return "", discard(f, uint64(size))
	}
	return "", fmt.Errorf("unknown order %s", op)
}
