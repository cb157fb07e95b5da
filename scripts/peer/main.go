// Peer makes a machine to measure Berth against, from Debian's packages alone:
// the engine of docker.io (dockerd, containerd, runc) on Berth's guest kernel,
// with busybox as its init in place of systemd, and nothing else that runs.
//
//	go run ./scripts/peer [-o .cache/peer]
//
// It writes kernel, initramfs and root.erofs, once for each set of packages and
// version of this program. Whoever boots them gives the machine, besides what
// Berth's own has:
//
//	/dev/vda  root.erofs, read-only
//	/dev/vdb  an empty ext4 for /var/lib, with dockerd's data
//	eth0      192.168.127.2/24, gateway and DNS server 192.168.127.1
//	vsock     the ports of package main in ./relay
//
// Registries in the machine's own network are spoken to over plain HTTP, too.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/berthvm/berth/images/cpio"
	"github.com/berthvm/berth/images/debian"
	"github.com/berthvm/berth/images/kernel"
)

// packages are docker.io and what its programs load or run.
var packages = []string{
	"linux-image-6.12-" + runtime.GOARCH,
	"docker.io", "containerd", "runc", "tini", "iptables", "netbase", "busybox-static",
	"libc6", "libgcc-s1", "libseccomp2", "libdevmapper1.02.1", "libudev1", "libselinux1", "libpcre2-8-0", "libsystemd0", "libcap2",
	"libgcrypt20", "libgpg-error0", "liblz4-1", "liblzma5", "libzstd1",
	"libip4tc2", "libip6tc2", "libxtables12", "libmnl0", "libnetfilter-conntrack3", "libnfnetlink0", "libnftnl11",
}

// early is loaded from the initramfs, the rest when something asks for it.
var early = []string{
	"crc32c_generic", "virtio_blk", "erofs", "ext4", "overlay", "virtio_net", "vmw_vsock_virtio_transport", "virtio_balloon", "virtio_rng", "button", "evdev",
	"bridge", "br_netfilter", "veth", "nf_tables", "nft_chain_nat", "nft_compat", "xt_conntrack", "xt_MASQUERADE", "xt_addrtype",
}

var onDemand = []string{"9p", "9pnet_virtio", "virtiofs", "tun", "dummy", "macvlan", "ipvlan", "vxlan", "loop", "binfmt_misc"}

// links of the root, by name: where dockerd would write to a read-only place, and
// the alternatives that Debian chooses.
var links = map[string]string{
	"etc/docker": "/run/etc-docker", "opt": "/run/opt", "var/run": "/run", "sbin/modprobe": "/bin/busybox",
	"usr/sbin/iptables": "iptables-nft", "usr/sbin/iptables-restore": "iptables-nft-restore", "usr/sbin/iptables-save": "iptables-nft-save",
	"usr/sbin/ip6tables": "ip6tables-nft", "usr/sbin/ip6tables-restore": "ip6tables-nft-restore", "usr/sbin/ip6tables-save": "ip6tables-nft-save",
}

// texts are the files of the root that are written here.
var texts = map[string]string{
	"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\n",
	"etc/group":         "root:x:0:\ntty:x:5:\ndocker:x:100:\n",
	"etc/resolv.conf":   "nameserver 192.168.127.1\n",
	"etc/hosts":         "127.0.0.1 localhost peer\n::1 localhost\n",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}

//go:embed guest
var guest embed.FS

func main() {
	out := flag.String("o", filepath.Join(".cache", "peer"), "write the machine to this `directory`")
	cache := flag.String("cache", filepath.Join(".cache", "image"), "keep downloads in this `directory`, the guest image's by default")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := run(ctx, *out, *cache); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func note(format string, a ...any) { fmt.Fprintf(os.Stderr, "  "+format+"\n", a...) }

func run(ctx context.Context, out, cache string) error {
	key, err := ownKey()
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(filepath.Join(out, "key")); err == nil && string(have) == key {
		return nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	lock, err := os.Open("images/debian.lock")
	if err != nil {
		return fmt.Errorf("%w: run this at the top of Berth's source", err)
	}
	defer lock.Close()
	pins, err := debian.ParseLock(lock)
	if err != nil {
		return err
	}
	f := debian.Fetcher{Arch: runtime.GOARCH, Cache: cache, Note: note}
	_, paths, err := f.Fetch(ctx, packages, pins)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(out), "peer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	made := filepath.Join(work, "made")
	if err := os.Mkdir(made, 0o755); err != nil {
		return err
	}
	if err := assemble(ctx, filepath.Join(work, "root"), made, paths); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(made, "key"), []byte(key), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	return os.Rename(made, out)
}

// ownKey identifies what this program makes: it is the hash of the program, with
// the lists and scripts in it, of the relay, and of the kernel's pin.
func ownKey() (string, error) {
	hash := sha256.New()
	for _, name := range []string{"scripts/peer/main.go", "scripts/peer/relay/main.go", "images/debian.lock"} {
		data, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("%w: run this at the top of Berth's source", err)
		}
		fmt.Fprintf(hash, "%s %d %s", name, len(data), data)
	}
	err := fs.WalkDir(guest, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := guest.ReadFile(name)
		fmt.Fprintf(hash, "%s %d %s", name, len(data), data)
		return err
	})
	return hex.EncodeToString(hash.Sum(nil)), err
}

// assemble writes the machine's three files to out, with root as the staging
// directory of its root file system.
func assemble(ctx context.Context, root, out string, debs []string) error {
	note("unpacking %d packages", len(debs))
	if err := debian.Unpack(ctx, root, debs); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("want one kernel in %s, found %d", root, len(found))
	}
	version := strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-")
	if err := writeKernel(found[0], filepath.Join(out, "kernel")); err != nil {
		return err
	}
	modules := filepath.Join(root, "lib/modules")
	tree, err := kernel.OpenTree(filepath.Join(modules, version))
	if err != nil {
		return err
	}
	if err := writeInitramfs(tree, filepath.Join(root, "bin/busybox"), filepath.Join(out, "initramfs")); err != nil {
		return err
	}
	small := filepath.Join(filepath.Dir(root), "modules")
	if err := os.Mkdir(small, 0o755); err != nil {
		return err
	}
	names := append([]string{}, early...)
	for _, dir := range []string{"kernel/net/netfilter/", "kernel/net/ipv4/netfilter/", "kernel/net/ipv6/netfilter/", "kernel/net/bridge/"} {
		names = append(names, tree.Names(dir)...)
	}
	if err := tree.Install(small, append(names, onDemand...)...); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(modules), os.RemoveAll(filepath.Join(root, "boot")), os.MkdirAll(modules, 0o755)); err != nil {
		return err
	}
	if err := os.Rename(small, filepath.Join(modules, version)); err != nil {
		return err
	}
	if err := fillRoot(ctx, root); err != nil {
		return err
	}
	note("making root.erofs")
	mkfs := exec.CommandContext(ctx, "mkfs.erofs", "--quiet", "-x-1", "-T0", "--all-root", filepath.Join(out, "root.erofs"), root)
	if text, err := mkfs.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, bytes.TrimSpace(text))
	}
	return nil
}

// writeKernel writes the form that Berth boots.
func writeKernel(source, path string) error {
	data, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	if runtime.GOARCH == "amd64" {
		if data, err = kernel.Vmlinux(data); err != nil {
			return err
		}
	}
	return os.WriteFile(path, data, 0o644)
}

func writeInitramfs(tree *kernel.Tree, busyboxPath, path string) error {
	busybox, err := os.ReadFile(busyboxPath)
	if err != nil {
		return err
	}
	script, err := guest.ReadFile("guest/init")
	if err != nil {
		return err
	}
	modules, err := tree.Resolve(early...)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	err = errors.Join(
		w.Dir("bin"), w.Dir("dev"), w.Dir("modules"), w.Dir("proc"), w.Dir("root"),
		w.Add(cpio.Header{Name: "dev/console", Mode: cpio.TypeChar | 0o600, Major: 5, Minor: 1}, nil),
		w.File("bin/busybox", 0o755, busybox),
		w.File("init", 0o755, script))
	if err != nil {
		return err
	}
	for i, m := range modules {
		if err := w.File(fmt.Sprintf("modules/%02d-%s.ko", i, m.Name), 0o644, m.ELF); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, archive.Bytes(), 0o644)
}

// fillRoot adds to the unpacked packages what their installation would have
// made, and what stands in for systemd.
func fillRoot(ctx context.Context, root string) error {
	for _, dir := range []string{"dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for name, target := range links {
		path := filepath.Join(root, name)
		if err := errors.Join(os.RemoveAll(path), os.Symlink(target, path)); err != nil {
			return err
		}
	}
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"inittab", "rc"} {
		data, err := guest.ReadFile("guest/" + name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "etc", name), data, 0o755); err != nil {
			return err
		}
	}
	if err := applets(ctx, root); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(root, "usr/bin/relay"), "./scripts/peer/relay")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	build.Stderr = os.Stderr
	return build.Run()
}

// applets links those of busybox that no package has a program for.
func applets(ctx context.Context, root string) error {
	list, err := exec.CommandContext(ctx, filepath.Join(root, "bin/busybox"), "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	for _, applet := range strings.Fields(string(list)) {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}
