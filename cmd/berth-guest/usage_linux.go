package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

// tick is the unit of /proc/stat: USER_HZ, which is 100 on every architecture.
const tick = time.Second / 100

// usage reads what the machine has used from proc(5).
func usage() (wire.Usage, error) {
	var u wire.Usage
	for name, read := range map[string]func(io.Reader, *wire.Usage) error{
		"/proc/stat": readStat, "/proc/meminfo": readMeminfo, "/proc/uptime": readUptime,
	} {
		f, err := os.Open(name)
		if err != nil {
			return wire.Usage{}, err
		}
		err = read(f, &u)
		f.Close()
		if err != nil {
			return wire.Usage{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return u, nil
}

// readStat sums up what the CPUs did besides being idle, waiting for a disk, and
// being stolen by the host.
func readStat(r io.Reader, u *wire.Usage) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || !strings.HasPrefix(fields[0], "cpu") {
			continue
		}
		if fields[0] != "cpu" {
			u.CPUs++
			continue
		}
		// user nice system idle iowait irq softirq steal; guest time is part of user
		for i, field := range fields[1:min(len(fields), 8)] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return err
			}
			if i != 3 && i != 4 {
				u.Busy += time.Duration(n) * tick
			}
		}
	}
	if u.CPUs == 0 {
		return errors.New("it tells of no CPU")
	}
	return lines.Err()
}

func readMeminfo(r io.Reader, u *wire.Usage) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		key, rest, _ := strings.Cut(lines.Text(), ":")
		into := map[string]*int64{"MemTotal": &u.MemoryTotal, "MemAvailable": &u.MemoryAvailable}[key]
		if into == nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
		if err != nil {
			return err
		}
		*into = n << 10
	}
	return lines.Err()
}

func readUptime(r io.Reader, u *wire.Usage) error {
	var up float64
	if _, err := fmt.Fscan(r, &up); err != nil {
		return err
	}
	u.Up = time.Duration(up * float64(time.Second))
	return nil
}
