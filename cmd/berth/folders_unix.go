//go:build unix

package main

import "golang.org/x/sys/unix"

// maxDescriptors bounds what is taken where the limit is huge: each costs the
// host's kernel memory.
const maxDescriptors = 64 << 10

// descriptors is how many the shared folders may have open. The other half of what
// the process may have stays for all else.
func descriptors() (int, error) {
	var limit unix.Rlimit // Go has raised it as far as it may
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	return int(min(limit.Cur, maxDescriptors)) / 2, nil
}
