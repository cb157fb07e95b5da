// Command berth-guest is the engine inside the machine. PID 1 starts it without
// arguments. It serves the Docker API, a control API and SSH to the host over
// vsock, and the Docker API to the machine on a Unix socket.
//
// "berth-guest oci" is the command line of an OCI runtime on the same code.
//
// On a Linux machine of one's own it runs as root, without a PID 1 of Berth's:
//
//	berth-guest -native -root DIR -run DIR
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/berthvm/berth/guest/hostlink"
	"github.com/berthvm/berth/guest/monitor"
	"github.com/berthvm/berth/guest/oci"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "oci" {
		os.Exit(oci.Main(os.Args[2:]))
	}
	cfg := config{}
	flag.BoolVar(&cfg.native, "native", false, "run without Berth's PID 1 and without vsock")
	flag.StringVar(&cfg.root, "root", "/var/lib/berth", "directory for what lasts")
	flag.StringVar(&cfg.run, "run", "/run/berth", "directory for what goes with the machine")
	flag.StringVar(&cfg.welcome, "welcome", "/run/berth/welcome.json", "the machine's configuration")
	flag.StringVar(&cfg.execPath, "exec", "", "the program berth-exec; by default where the image has it")
	flag.StringVar(&cfg.initPath, "init", "/sbin/berth-init", "the program behind docker's --init")
	flag.StringVar(&cfg.builtin, "images", "/usr/share/berth/images", "directory of built-in images")
	verbose := flag.Bool("v", false, "log more")
	flag.Parse()

	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	cfg.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: errorText}))
	slog.SetDefault(cfg.log) // for the libraries

	paceHeap()
	runtime.MemProfileRate = 0 // nobody asks for a profile, whose samples are kept for ever

	if err := monitor.Relax(); err != nil {
		cfg.log.Warn("containers will start slower", "error", err)
	}

	if !cfg.native {
		cmdline, err := os.ReadFile("/proc/cmdline")
		if err != nil {
			fmt.Fprintf(os.Stderr, "berth-guest: %v\n", err)
			os.Exit(1)
		}
		cfg.way = hostlink.Of(string(cmdline))
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, cfg); err != nil {
		fmt.Fprintf(os.Stderr, "berth-guest: %v\n", err)
		os.Exit(1)
	}
}

// errorText has errors logged as what they say. Those of some libraries print their
// stack besides.
func errorText(_ []string, a slog.Attr) slog.Attr {
	if err, ok := a.Value.Any().(error); ok {
		a.Value = slog.StringValue(err.Error())
	}
	return a
}
