package proctable

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestRows(t *testing.T) {
	for args, titles := range map[string]string{
		"-ef": "UID PID PPID C STIME TTY TIME CMD", "": "UID PID PPID C STIME TTY TIME CMD",
		"-o pid,comm": "PID COMMAND", "-eo pid=NUMBER,args": "NUMBER COMMAND", "-opid": "PID", "aux": "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
		"-eo pid,etime,nlwp,pcpu,s": "PID ELAPSED NLWP %CPU S",
	} {
		table, err := Parse(args)
		if err != nil {
			t.Errorf("%q: %v", args, err)
			continue
		}
		got := table.Titles()
		if strings.Join(got, " ") != titles {
			t.Errorf("%q: %q", args, got)
		}
		rows, err := table.Rows([]int{os.Getpid(), 1 << 30})
		if err != nil || len(rows) != 1 || len(rows[0]) != len(got) {
			t.Errorf("%q: %q, %v", args, rows, err)
		}
	}
	for _, args := range []string{"-z", "-o nope", "-o comm", "-o", "; rm", "--sort", "--sort=nope", "--sort="} {
		if _, err := Parse(args); !errdefs.IsInternal(err) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestSort(t *testing.T) {
	for args, want := range map[string]string{
		"":                        "9 10 8",
		"aux --sort=pid":          "8 9 10",
		"aux --sort -rss":         "10 8 9",
		"aux --sort=comm,-pid":    "10 8 9",
		"-ef --sort=+ppid,-start": "8 10 9",
		"aux k -etime":            "9 8 10",
	} {
		table, err := Parse(args)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		list := []process{
			{pid: 9, ppid: 1, rss: 9 << 10, comm: "b", start: now.Add(-time.Hour)},
			{pid: 10, ppid: 1, rss: 100 << 10, comm: "a", start: now},
			{pid: 8, ppid: 0, rss: 10 << 10, comm: "a", start: now.Add(-time.Minute)},
		}
		table.sort(list)
		var got []string
		for _, p := range list {
			got = append(got, strconv.Itoa(p.pid))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %s", args, got, want)
		}
	}
}

func TestElapsed(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "00:00", 61 * time.Second: "01:01", 3601 * time.Second: "01:00:01", 90061 * time.Second: "1-01:01:01"} {
		if got := elapsed(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("-eo pid=X,args --sort=-rss,pid")
	f.Fuzz(func(t *testing.T, args string) {
		if table, err := Parse(args); err == nil && len(table.Titles()) == 0 {
			t.Error("no columns")
		}
	})
}

func TestParseStat(t *testing.T) {
	var p process
	stat := "7 (a) b (c) S 3 7 7 34816 7 0 0 0 0 0 150 50 0 0 20 0 1 0 100 4096 2 0 0 0"
	if err := p.parseStat([]byte(stat)); err != nil || p.comm != "a) b (c" || p.ppid != 3 || p.tty != "pts/0" || p.cpu.Seconds() != 2 || p.pgid != 7 || p.threads != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{"", "7", "7 (x", "7 (x) S 1 2", ") ("} {
		if err := p.parseStat([]byte(bad)); err == nil {
			t.Errorf("%q passed", bad)
		}
	}
}
