package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// residentMiB is the memory that a machine's daemon and the processes below it
// hold, in MiB, from proc(5).
func residentMiB(daemon int) (int64, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	parent, pages := map[int]int{}, map[int]int64{}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		pid, ppid, rss, ok := readStat(string(stat))
		if ok {
			parent[pid], pages[pid] = ppid, rss
		}
	}
	if _, ok := pages[daemon]; !ok {
		return 0, fmt.Errorf("the daemon (pid %d) is gone", daemon)
	}
	var sum int64
	for pid, rss := range pages {
		for up := pid; up > 1; up = parent[up] {
			if up == daemon {
				sum += rss
				break
			}
		}
	}
	return sum * int64(os.Getpagesize()) >> 20, nil
}

// readStat reads a process's line: its name, which may hold anything, is in brackets.
func readStat(stat string) (pid, ppid int, rss int64, ok bool) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return 0, 0, 0, false
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 22 {
		return 0, 0, 0, false
	}
	pid, errPID := strconv.Atoi(strings.TrimSpace(stat[:open]))
	ppid, errParent := strconv.Atoi(fields[1])
	rss, errRSS := strconv.ParseInt(fields[21], 10, 64)
	return pid, ppid, rss, errPID == nil && errParent == nil && errRSS == nil
}
