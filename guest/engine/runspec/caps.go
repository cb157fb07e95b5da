package runspec

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

// allCaps are the kernel's capabilities by number.
var allCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// defaultCaps are docker's.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

const all = "ALL"

// Capabilities returns what a container may have, from docker's default set and
// what the user adds and drops.
func Capabilities(add, drop []string, privileged bool) ([]string, error) {
	add, err := normalize(add)
	if err != nil {
		return nil, err
	}
	drop, err = normalize(drop)
	if err != nil {
		return nil, err
	}
	var base []string
	switch {
	case privileged:
		return held(), nil
	case slices.Contains(add, all):
		base = held()
	case slices.Contains(drop, all):
		base = nil
	default:
		base = defaultCaps
	}
	var caps []string
	for _, c := range base {
		if !slices.Contains(drop, c) {
			caps = append(caps, c)
		}
	}
	for _, c := range add {
		if c != all && !slices.Contains(caps, c) && !slices.Contains(drop, c) {
			caps = append(caps, c)
		}
	}
	return caps, nil
}

func normalize(caps []string) ([]string, error) {
	var out []string
	for _, c := range caps {
		c = strings.ToUpper(c)
		if c != all && !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if c != all && !slices.Contains(allCaps, c) {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("unknown capability: %q", c))
		}
		out = append(out, c)
	}
	return out, nil
}

// held are the capabilities this process can hand on: all, unless it runs in a
// container itself.
var held = sync.OnceValue(func() []string {
	var bounding uint64 = 1<<len(allCaps) - 1
	data, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(rest), 16, 64); err == nil {
				bounding = n
			}
		}
	}
	var caps []string
	for i, name := range allCaps {
		if bounding&(1<<i) != 0 {
			caps = append(caps, name)
		}
	}
	return caps
})
