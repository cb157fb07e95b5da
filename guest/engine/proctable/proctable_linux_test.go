package proctable

import (
	"os"
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
		cols, err := Columns(args)
		if err != nil {
			t.Errorf("%q: %v", args, err)
			continue
		}
		var got []string
		for _, c := range cols {
			got = append(got, c.Title)
		}
		if strings.Join(got, " ") != titles {
			t.Errorf("%q: %q", args, got)
		}
		rows, err := Rows(cols, []int{os.Getpid(), 1 << 30})
		if err != nil || len(rows) != 1 || len(rows[0]) != len(cols) {
			t.Errorf("%q: %q, %v", args, rows, err)
		}
	}
	for _, args := range []string{"-z", "-o nope", "-o comm", "-o", "; rm"} {
		if _, err := Columns(args); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", args, err)
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

func FuzzColumns(f *testing.F) {
	f.Add("-eo pid=X,args")
	f.Fuzz(func(t *testing.T, args string) {
		if cols, err := Columns(args); err == nil && len(cols) == 0 {
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
