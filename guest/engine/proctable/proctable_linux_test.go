package proctable

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestRows(t *testing.T) {
	for args, titles := range map[string]string{
		"-ef": "UID PID PPID C STIME TTY TIME CMD", "": "UID PID PPID C STIME TTY TIME CMD",
		"-o pid,comm": "PID COMMAND", "-eo pid=NUMBER,args": "NUMBER COMMAND", "-opid": "PID", "aux": "USER PID VSZ RSS TTY STAT TIME COMMAND",
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
	for _, args := range []string{"-x", "-o nope", "-o comm", "-o", "; rm"} {
		if _, err := Columns(args); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestParseStat(t *testing.T) {
	var p process
	stat := "7 (a) b (c) S 3 7 7 34816 7 0 0 0 0 0 150 50 0 0 20 0 1 0 100 4096 2 0 0 0"
	if err := p.parseStat([]byte(stat)); err != nil || p.comm != "a) b (c" || p.ppid != 3 || p.tty != "pts/0" || p.cpu.Seconds() != 2 {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{"", "7", "7 (x", "7 (x) S 1 2", ") ("} {
		if err := p.parseStat([]byte(bad)); err == nil {
			t.Errorf("%q passed", bad)
		}
	}
}
