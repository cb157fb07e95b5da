package main

import (
	"context"
	"log/slog"
	"os"
	"strings"

	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/forward"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/images"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/qemu"
)

// hooks runs what this program is when a driver has started it as its child.
func hooks() { qemu.RunProbeChild() }

// production is the real thing.
func production() wiring {
	return wiring{
		in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv,
		driver:  newDriver,
		image:   openImage,
		builder: findBuilder,
		system:  systemParts(),
		guest:   reachGuest,
	}
}

// newQEMU is the driver of hosts without a better one.
func newQEMU(m machine.Machine, c machine.Config, log *slog.Logger) vm.Driver {
	o := qemu.Options{CacheDir: m.CacheDir, Serial: c.Streams == machine.StreamsSerial, Log: log}
	if c.Acceleration == machine.AccelerationNone {
		o.Acceleration = qemu.TCG
	}
	return qemu.New(o)
}

func openImage(_ context.Context, dir string) (daemon.Image, error) {
	image, err := images.Open(dir)
	if err != nil {
		return daemon.Image{}, err
	}
	var sums strings.Builder
	for _, f := range image.Manifest.Files {
		sums.WriteString(f.SHA256)
	}
	return daemon.Image{
		ID:      sums.String(),
		Version: image.Manifest.Version,
		Arch:    image.Manifest.Arch,
		Kernel:  kernelOf(image),
		Initrd:  image.Initrd,
		Cmdline: image.Cmdline,
		Root:    image.Root,
	}, nil
}

// reachGuest fills in how the daemon reaches the guest, and the guest the world.
func reachGuest(o *daemon.Options) {
	o.Network = newNetwork(o.Config, o.Log)
	o.Listen = forward.Listen
	o.Forward = forward.Serve
	o.Loopback = forward.Loopback{Log: o.Log}.Serve
	o.Publish = &forward.Ports{Log: o.Log}
	o.Folders = openFolders(o.Machine, o.Config, o.Log)
	o.Streams = serveFolders(o.Log)
}
