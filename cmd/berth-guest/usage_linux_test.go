package main

import (
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

func TestReadUsage(t *testing.T) {
	var u wire.Usage
	if err := readStat(strings.NewReader("cpu  100 1 50 9000 30 2 3 7 0 0\ncpu0 50 0 25 4500 15 1 1 3 0 0\ncpu1 50 1 25 4500 15 1 2 4 0 0\nintr 5\nctxt 7\n"), &u); err != nil {
		t.Fatal(err)
	}
	if err := readMeminfo(strings.NewReader("MemTotal:        2014892 kB\nMemFree:         1700000 kB\nMemAvailable:    1800000 kB\nHugePages_Total:       0\n"), &u); err != nil {
		t.Fatal(err)
	}
	if err := readUptime(strings.NewReader("12.50 20.00\n"), &u); err != nil {
		t.Fatal(err)
	}
	want := wire.Usage{Up: 12500 * time.Millisecond, Busy: 1560 * time.Millisecond, CPUs: 2, MemoryTotal: 2014892 << 10, MemoryAvailable: 1800000 << 10}
	if u != want {
		t.Errorf("%+v, want %+v", u, want)
	}
	for name, read := range map[string]error{
		"no CPU":       readStat(strings.NewReader("intr 5\n"), new(wire.Usage)),
		"words":        readStat(strings.NewReader("cpu  many few\ncpu0 1\n"), new(wire.Usage)),
		"empty uptime": readUptime(strings.NewReader(""), new(wire.Usage)),
		"no number":    readMeminfo(strings.NewReader("MemTotal: lots kB\n"), new(wire.Usage)),
	} {
		if read == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestUsageOfThisMachine(t *testing.T) {
	u, err := usage()
	if err != nil || u.CPUs == 0 || u.Up <= 0 || u.Busy <= 0 || u.MemoryAvailable <= 0 || u.MemoryTotal < u.MemoryAvailable {
		t.Errorf("%+v, %v", u, err)
	}
}
