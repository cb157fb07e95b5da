package main

// What the image is made of. Everything here is data; the other files act on it.

// packageNames lists the Debian packages, the kernel by its metapackage.
func packageNames(arch string) []string {
	return []string{
		"linux-image-6.12-" + arch,
		"busybox-static",
		"ca-certificates",
		"e2fsprogs", "libext2fs2", "libcom-err2", "libblkid1", "libuuid1", "libc6",
		"qemu-user-static",
		"git", "libpcre2-8-0", "zlib1g",
		"libcurl3-gnutls", "libbrotli1", "libffi8", "libgmp10", "libgnutls30", "libhogweed6", "libidn2-0", "libldap-2.5-0", "libnettle8",
		"libnghttp2-14", "libp11-kit0", "libpsl5", "librtmp1", "libsasl2-2", "libssh2-1", "libssl3", "libtasn1-6", "libunistring2", "libzstd1",
		"openssh-client", "libgssapi-krb5-2", "libk5crypto3", "libkeyutils1", "libkrb5-3", "libkrb5support0", "libselinux1",
	}
}

// emulator is the program of the root that runs programs for the architecture that
// is not arch; package binfmt knows its path.
func emulator(arch string) string {
	return map[string]string{"amd64": "usr/bin/qemu-aarch64-static", "arm64": "usr/bin/qemu-x86_64-static"}[arch]
}

// libraryDirs lists where arch's programs look for shared libraries, in order.
func libraryDirs(arch string) []string {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[arch]
	return []string{"lib/" + triplet, "usr/lib/" + triplet, "lib", "usr/lib"}
}

// tools are the dynamically linked programs that PID 1 runs on the data disk.
var tools = []string{"sbin/mke2fs", "sbin/e2fsck", "sbin/resize2fs"}

// gitRoot is where the root file system of the containers lies in which builds run
// git; package guest/build/git knows the path. It holds git with the programs for
// its protocols, a shell for its scripts, and nothing of the machine's.
const gitRoot = "usr/lib/berth/git"

var gitPrograms = []string{"usr/bin/git", "usr/lib/git-core/git-remote-http", "usr/bin/ssh"}

var gitScripts = []string{"usr/lib/git-core/git-submodule", "usr/lib/git-core/git-sh-setup", "usr/lib/git-core/git-sh-i18n"}

var gitLinks = map[string]string{
	"usr/lib/git-core/git":              "../../bin/git",
	"usr/lib/git-core/git-upload-pack":  "../../bin/git",
	"usr/lib/git-core/git-remote-https": "git-remote-http",
}

// gitText is git's way to word messages: in English. Debian's own needs a program
// of two megabytes for it.
const gitText = "gettext() { printf %s \"$1\"; }\neval_gettext() { eval \"printf %s \\\"$1\\\"\"; }\n"

// gitApplets are the programs of busybox that git and its scripts call.
var gitApplets = []string{
	"basename", "cat", "cut", "dirname", "expr", "false", "grep", "head", "ls", "mkdir", "mv", "printf", "rm", "sed", "sh", "sort", "test", "tr", "true", "uname", "wc",
}

// gitDirectories are where something is mounted, besides those of files; and that
// of the templates for new repositories, of which there are none.
var gitDirectories = []string{"dev", "proc", "root", "run", "sys", "tmp", "var/lib", "usr/share/git-core/templates"}

// gitTexts are files that are the root's own too; where there is no such text, a
// file is mounted.
var gitTexts = []string{
	"etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/services", "etc/protocols",
	"etc/hosts", "etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt",
}

// cmdline is passed to the kernel by every driver. A panic must end the machine,
// not freeze it. The rest takes a third off the boot: no self-tests of the
// crypto code; no rewriting of lock prefixes when there is one CPU; and without
// the jitter entropy source (every machine has virtio-rng, and the CPU's),
// the trace points' tables of names, and the keys of modules' signatures. Huge
// pages are for programs that ask for them: else each Go program, of which most
// are small, zeroes and holds two of them for a heap of some hundred kilobytes.
func cmdline(arch string) []string {
	parameters := []string{
		"quiet", "panic=-1", "cryptomgr.notests", "random.trust_cpu=on", "transparent_hugepage=madvise",
		"initcall_blacklist=jent_mod_init,trace_eval_init,load_system_certificate_list",
	}
	if arch == "amd64" {
		parameters = append(parameters, "noreplace-smp")
	}
	return parameters
}

// earlyModules are in the initramfs: what stage 1 needs to reach its disks, the
// host and the network. The groups are loaded at once, after "base".
var earlyModules = []group{
	{"base", []string{"crc32c_generic", "libcrc32c"}},
	{"mmio", []string{"virtio_mmio"}}, // only where there is such a bus
	{"disk", []string{"virtio_blk", "erofs"}},
	{"vsock", []string{"vsock"}},
	{"virtio-vsock", []string{"vmw_vsock_virtio_transport"}},
	{"data", []string{"ext4", "overlay"}},
	{"net", []string{"virtio_net"}},
	{"cable", []string{"tun"}}, // where the network is a stream
	{"scsi", []string{"sd_mod", "virtio_scsi"}},
	{"hyperv", []string{"hv_vmbus"}},
	{"hyperv-disk", []string{"hv_storvsc"}},
	{"hyperv-vsock", []string{"hv_sock"}},
}

// coreModules are loaded from the root while the boot goes on: what every
// machine uses sooner or later, most on the way to the first container.
var coreModules = []group{
	{"container", []string{"bridge", "veth", "br_netfilter"}},
	{"netfilter", []string{"nf_tables", "nft_chain_nat", "nft_masq", "nft_nat", "nft_ct", "nft_redir", "nft_fib_inet", "nft_reject_inet", "nft_compat"}},
	{"virtiofs", []string{"virtiofs"}},
	{"9p", []string{"9p", "9pnet_fd"}},
	{"device", []string{"virtio_balloon", "virtio_rng", "button", "evdev"}},
	{"hyperv", []string{"hv_utils", "hv_balloon"}},
}

// optionalGroups are those of which a kernel may lack modules, by its architecture.
var optionalGroups = []string{"hyperv", "hyperv-disk", "hyperv-vsock"}

// moreModules and moreDirs are loaded when something asks for them.
var moreModules = []string{
	"tun", "dummy", "8021q", "macvlan", "macvtap", "ipvlan", "vxlan", "geneve", "wireguard", "ifb",
	"9pnet_virtio", "squashfs", "isofs", "vfat", "nls_utf8", "nls_ascii", "nls_cp437", "nfsv4", "nfsv3", "cifs",
	"loop", "dm_mod", "dm_crypt", "zram", "binfmt_misc",
	"vsock_loopback", "vsock_diag", "unix_diag", "inet_diag", "tcp_diag", "udp_diag", "raw_diag", "netlink_diag", "packet_diag", "af_packet_diag",
	"sch_netem", "sch_tbf", "sch_htb", "sch_fq", "sch_fq_codel", "sch_ingress", "sch_prio", "sch_cake", "cls_u32", "cls_fw", "cls_basic", "cls_bpf", "cls_flower", "cls_matchall", "act_police", "act_mirred", "act_bpf",
	"tls", "tcp_bbr", "sctp", "nf_conntrack_ftp", "nf_conntrack_tftp", "ip_gre", "ip6_gre", "ipip", "sit", "ip6_tunnel", "ip_vti", "ip6_vti",
	"xfrm_user", "xfrm_interface", "esp4", "esp6", "ah4", "ah6", "af_key",
	"hv_netvsc", "pci_hyperv",
	// What cifs, tls, esp4 and dm_crypt ask the crypto API for by name.
	"cmac", "ccm", "gcm", "ghash_generic", "seqiv", "echainiv", "authenc", "authencesn", "xts", "essiv",
	"aesni_intel", "ghash_clmulni_intel", "aes_ce_blk", "aes_ce_ccm", "ghash_ce",
}

var moreDirs = []string{
	"kernel/net/netfilter/", "kernel/net/ipv4/netfilter/", "kernel/net/ipv6/netfilter/", "kernel/net/bridge/",
}

type group struct {
	name    string
	modules []string
}

// directories of the root, besides those of the files in it.
var directories = []string{
	"bin", "sbin", "dev", "etc", "home", "lib/modules", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp",
	"usr/bin", "usr/sbin", "usr/lib", "usr/local/bin", "usr/share/berth/images", "var/lib/berth", "var/lib/docker",
}

// links of the root, by name. What the boot fills in lies in /run/berth/etc.
var links = map[string]string{
	"etc/hostname":                      "/run/berth/etc/hostname",
	"etc/hosts":                         "/run/berth/etc/hosts",
	"etc/resolv.conf":                   "/run/berth/etc/resolv.conf",
	"etc/ssl/certs/ca-certificates.crt": "/run/berth/etc/ca-certificates.crt",
	"etc/ssl/cert.pem":                  "/run/berth/etc/ca-certificates.crt",
	"etc/mtab":                          "/proc/self/mounts",
	"var/run":                           "/run",
	"var/lock":                          "/run",
	"var/tmp":                           "/tmp",
	"var/log":                           "/run/log",
	"sbin/modprobe":                     "/bin/busybox",
	"sbin/poweroff":                     "/bin/busybox", // Hyper-V has the kernel call it
}

// texts are the files of the root that are written here.
var texts = map[string]string{
	"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
	"etc/group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
	"etc/shells":        "/bin/sh\n",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	"etc/profile":       "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPS1='\\h:\\w\\$ '\n",
	"etc/services":      "ssh 22/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\n",
	"etc/protocols":     "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\n",
	"etc/mke2fs.conf":   "[defaults]\n\tbase_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr\n\tdefault_mntopts = acl,user_xattr\n\tblocksize = 4096\n\tinode_size = 256\n\tinode_ratio = 16384\n\n[fs_types]\n\text4 = {\n\t\tfeatures = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize\n\t}\n",
}
