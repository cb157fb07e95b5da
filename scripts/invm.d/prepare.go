// Prepare builds what scripts/invm boots: a kernel and an initramfs with
// busybox and modules, from unpacked Debian packages.
//
//	go run ./scripts/invm.d UNPACKED OUT
package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthvm/berth/images/cpio"
	"github.com/berthvm/berth/images/kernel"
)

// core is loaded before a program runs, the rest when the kernel asks for it.
var core = []string{
	"virtio_mmio", "virtio_blk", "ext4", "overlay", "9p", "9pnet_virtio",
	"veth", "bridge", "br_netfilter", "nf_tables", "nft_chain_nat", "nft_masq", "nft_ct", "nft_nat", "nft_redir",
}

var onDemand = []string{
	"nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_reject_bridge",
	"nft_log", "nft_limit", "nft_numgen", "nft_hash", "nft_compat", "nft_quota", "nft_connlimit", "nft_tproxy", "nft_socket", "nft_meta_bridge",
	"nf_conntrack_netlink", "xt_MASQUERADE", "xt_conntrack", "xt_addrtype", "iptable_nat", "iptable_filter", "ip6table_nat", "ip6table_filter",
	"tun", "dummy", "8021q", "macvlan", "ipvlan", "vxlan", "erofs", "loop", "binfmt_misc", "xfs", "btrfs", "fuse",
	"vsock", "vsock_loopback", "vmw_vsock_virtio_transport", "virtio_net", "virtio_balloon", "virtio_rng", "sch_netem", "sch_tbf",
	"button", "evdev", "nf_log_syslog", "tls", "af_packet", "unix_diag", "inet_diag", "tcp_diag", "udp_diag", "netlink_diag", "vsock_diag",
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: prepare UNPACKED OUT")
		os.Exit(2)
	}
	if err := prepare(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		os.Exit(1)
	}
}

//go:embed init
var initScript []byte

func prepare(unpacked, out string) error {
	images, err := filepath.Glob(filepath.Join(unpacked, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("want one kernel in %s, found %d", unpacked, len(images))
	}
	bzImage, err := os.ReadFile(images[0])
	if err != nil {
		return err
	}
	vmlinux, err := kernel.Vmlinux(bzImage)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "vmlinux"), vmlinux, 0o644); err != nil {
		return err
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	tree, err := kernel.OpenTree(filepath.Join(unpacked, "lib/modules", version))
	if err != nil {
		return err
	}
	modules := filepath.Join(out, "modules", version) // the machine sees it as /lib/modules/VERSION
	if err := os.MkdirAll(modules, 0o755); err != nil {
		return err
	}
	if err := tree.Install(modules, slices.Concat(core, onDemand)...); err != nil {
		return err
	}
	busybox, err := os.ReadFile(filepath.Join(unpacked, "bin/busybox"))
	if err != nil {
		return err
	}
	initramfs, err := buildInitramfs(tree, busybox)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "initramfs"), initramfs, 0o644)
}

func buildInitramfs(tree *kernel.Tree, busybox []byte) ([]byte, error) {
	first, err := tree.Resolve(core...)
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	for _, dir := range []string{"bin", "dev", "proc", "sys", "new", "modules"} {
		if err := w.Dir(dir); err != nil {
			return nil, err
		}
	}
	for i, m := range first {
		if err := w.File(fmt.Sprintf("modules/%02d-%s.ko", i, m.Name), 0o644, m.ELF); err != nil {
			return nil, err
		}
	}
	err = errors.Join(
		w.Add(cpio.Header{Name: "dev/console", Mode: cpio.TypeChar | 0o600, Major: 5, Minor: 1}, nil),
		w.File("bin/busybox", 0o755, busybox),
		w.File("init", 0o755, initScript),
		w.Close())
	return archive.Bytes(), err
}
