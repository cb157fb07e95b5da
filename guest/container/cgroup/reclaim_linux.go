package cgroup

import (
	"errors"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reclaimStep is taken at a time, in bytes: little enough to notice soon that
	// what was taken is in use.
	reclaimStep  = 32 << 20
	reclaimPause = 100 * time.Millisecond
	pageSize     = 4 << 10
)

// ReclaimCache takes from all groups the file pages that nothing has used for the
// longest time, and returns about how many bytes. Pages in use stay: it takes no
// more than the kernel holds for inactive, step by step, and ends when a part of a
// step is read again, or once still says no. What is not written to its disk yet
// stays too. See memory.reclaim and memory.stat in the kernel's cgroup-v2.rst.
func ReclaimCache(still func() bool) (uint64, error) {
	root, err := Root()
	if err != nil {
		return 0, err
	}
	return (&Group{path: "/", dir: root}).reclaimCache(still)
}

func (g *Group) reclaimCache(still func() bool) (taken uint64, err error) {
	stat := parseKeyed(g.text("memory.stat"))
	left := stat["inactive_file"]
	for left >= reclaimStep && still() {
		err := write(g.dir+"/memory.reclaim", strconv.Itoa(reclaimStep))
		if errors.Is(err, unix.EAGAIN) { // there was less
			return taken, nil
		}
		if err != nil {
			return taken, err
		}
		taken += reclaimStep
		time.Sleep(reclaimPause)
		now := parseKeyed(g.text("memory.stat"))
		if (now["workingset_refault_file"]-stat["workingset_refault_file"])*pageSize > reclaimStep/8 {
			return taken, nil
		}
		left = min(left-reclaimStep, now["inactive_file"])
		stat = now
	}
	return taken, nil
}
