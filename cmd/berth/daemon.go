package main

import (
	"context"
	"encoding/json"
	stdlog "log"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthvm/berth/guest/heap"
	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/launch"
	"github.com/berthvm/berth/host/logfile"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/version"
)

const (
	// daemonMemory is what the Go runtime of a daemon may take before it collects
	// harder, in bytes. It is no limit: a busy daemon may have more.
	daemonMemory = 48 << 20

	// returnDelay is how long after work a daemon gives memory back.
	returnDelay = 10 * time.Second
)

// daemonCommand is the machine's daemon. "berth start" runs it, detached.
func (a *app) daemonCommand() *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use:    "daemon",
		Short:  "Run the machine in this process (berth start does it)",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			debug.SetMemoryLimit(daemonMemory)
			heap.Return(returnDelay, 1<<20)
			told := false
			tell := func(h launch.Hello) {
				if !told {
					told = true
					json.NewEncoder(a.out).Encode(h)
					closeOutput(a.out)
				}
			}
			err := a.runDaemon(cmd.Context(), timeout, func() { tell(launch.Hello{}) })
			if err != nil {
				tell(launch.Hello{Error: err.Error(), Kind: daemon.KindOf(err)})
			}
			return err
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 0, "Start timeout")
	return c
}

// closeOutput lets go of the pipe to whoever started the daemon.
func closeOutput(out any) {
	if f, ok := out.(*os.File); ok {
		f.Close()
	}
}

func (a *app) runDaemon(ctx context.Context, timeout time.Duration, listening func()) error {
	m, err := a.machine()
	if err != nil {
		return err
	}
	if err := m.Check(); err != nil {
		return err
	}
	config, err := m.LoadConfig()
	if err != nil {
		return err
	}
	file, err := logfile.Open(m.DaemonLog(), 0)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(file, &slog.HandlerOptions{Level: logLevel(a.getenv("BERTH_LOG"))}))
	// Libraries that log by themselves do so about what a guest sends them: that
	// must not fill the disk with a crash log.
	stdlog.SetFlags(0)
	stdlog.SetOutput(slog.NewLogLogger(log.Handler(), slog.LevelDebug).Writer())
	log.Info("berth daemon", "version", version.String(), "machine", m.Name, "pid", os.Getpid())
	o := daemon.Options{
		Machine: m, Config: config, Version: version.String(), Log: log, DaemonLog: file,
		Driver:       a.driver(m, config, log),
		Image:        func(ctx context.Context) (daemon.Image, error) { return a.image(ctx, a.imageDir()) },
		Proxy:        hostProxy(a.getenv),
		Listening:    listening,
		StartTimeout: timeout,
		KeepLock:     true,
	}
	a.guest(&o)
	err = daemon.Run(ctx, o)
	log.Info("berth daemon ends", "error", err)
	return err
}

func logLevel(name string) slog.Level {
	var l slog.Level
	if l.UnmarshalText([]byte(name)) != nil {
		return slog.LevelInfo
	}
	return l
}

// imageDir is where the guest's image is: where BERTH_IMAGE says, or where this
// program was installed.
func (a *app) imageDir() string {
	if dir := a.getenv("BERTH_IMAGE"); dir != "" {
		return dir
	}
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "image"
	}
	return findImage(filepath.Dir(self), runtime.GOARCH)
}

// findImage looks for an image beside the programs, as the Makefile and the
// packages leave it, and where prefixes such as /usr/local have it. One directory
// may serve two architectures.
func findImage(bin, arch string) string {
	prefix := filepath.Dir(bin)
	for _, dir := range []string{bin, filepath.Join(prefix, "share", "berth"), filepath.Join(prefix, "lib", "berth")} {
		for _, name := range []string{"image-" + arch, "image"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				return filepath.Join(dir, name)
			}
		}
	}
	return filepath.Join(bin, "image") // the error says that nothing is there
}

// hostProxy reads the usual variables.
func hostProxy(getenv func(string) string) machine.Proxy {
	either := func(upper, lower string) string {
		if v := getenv(lower); v != "" {
			return v
		}
		return getenv(upper)
	}
	return machine.Proxy{HTTP: either("HTTP_PROXY", "http_proxy"), HTTPS: either("HTTPS_PROXY", "https_proxy"), No: either("NO_PROXY", "no_proxy")}
}
