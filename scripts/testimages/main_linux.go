// Command testimages builds the images that the long tests run, from Debian's
// packages, and copies them where they are wanted.
//
//	testimages [-push HOST:PORT] [-archive DIR] [IMAGE...]
//
// The images are kept in an OCI layout in .cache/testimages/oci; one that is there
// and whose recipe has not changed is not built again, so that all but the first
// run need no network. With -push each goes to a registry that speaks plain HTTP,
// as NAME:latest. With -archive each is written to DIR/NAME.tar, for "docker load".
// Without a name, all of them are meant. Two runs wait for each other.
//
// It makes roots with debootstrap and runs apt-get in them by chroot, so it must be
// run by root. Packages come from where this host's come from.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	push := flag.String("push", "", "push to the registry at `HOST:PORT`")
	archive := flag.String("archive", "", "write archives to the folder `DIR`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, *push, *archive, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "testimages:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, push, archive string, names []string) error {
	if len(names) == 0 {
		for _, r := range recipes {
			names = append(names, r.name)
		}
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	w := workshop{module: root, dir: filepath.Join(root, ".cache", "testimages")}
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(w.dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	for _, name := range names {
		image, err := w.image(ctx, name)
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		if push != "" {
			if err := image.push(ctx, push); err != nil {
				return fmt.Errorf("cannot push %s to %s: %w", name, push, err)
			}
		}
		if archive != "" {
			if err := image.archive(filepath.Join(archive, name+".tar")); err != nil {
				return err
			}
		}
	}
	return nil
}

// moduleRoot is the folder of go.mod, wherever the command is run.
func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if file == "" || file == os.DevNull {
		return "", errors.New("run it inside of the module")
	}
	return filepath.Dir(file), nil
}

// lock waits until no other process has the file locked.
func lock(file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", file, err)
	}
	return func() { f.Close() }, nil
}

func find(name string) (recipe, error) {
	i := slices.IndexFunc(recipes, func(r recipe) bool { return r.name == name })
	if i < 0 {
		return recipe{}, errors.New("there is no recipe for it")
	}
	return recipes[i], nil
}
