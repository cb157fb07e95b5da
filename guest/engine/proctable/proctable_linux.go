package proctable

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// process is one line of /proc.
type process struct {
	pid, ppid, uid int
	gid, pgid, sid int
	nice, threads  int
	comm, state    string
	tty            string
	cpu            time.Duration
	start          time.Time
	rss, vsz       int64 // bytes
	command        string
}

// column is one column of a table.
type column struct {
	title string
	name  string
	value func(process) string
}

var columns = []column{
	{"UID", "uid", func(p process) string { return userName(p.uid) }},
	{"PID", "pid", func(p process) string { return strconv.Itoa(p.pid) }},
	{"PPID", "ppid", func(p process) string { return strconv.Itoa(p.ppid) }},
	{"C", "c", func(p process) string { return strconv.Itoa(int(p.share())) }},
	{"STIME", "stime", func(p process) string { return p.start.Format("15:04") }},
	{"TTY", "tty", func(p process) string { return p.tty }},
	{"TIME", "time", func(p process) string {
		s := int(p.cpu / time.Second)
		return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
	}},
	{"CMD", "cmd", func(p process) string { return p.command }},
	{"USER", "user", func(p process) string { return userName(p.uid) }},
	{"COMMAND", "comm", func(p process) string { return p.comm }},
	{"COMMAND", "args", func(p process) string { return p.command }},
	{"COMMAND", "command", func(p process) string { return p.command }},
	{"STAT", "stat", func(p process) string { return p.state }},
	{"RSS", "rss", func(p process) string { return strconv.FormatInt(p.rss>>10, 10) }},
	{"VSZ", "vsz", func(p process) string { return strconv.FormatInt(p.vsz>>10, 10) }},
	{"%CPU", "%cpu", percentCPU}, {"%CPU", "pcpu", percentCPU},
	{"%MEM", "%mem", percentMemory}, {"%MEM", "pmem", percentMemory},
	{"START", "start", func(p process) string { return p.start.Format("15:04") }},
	{"STARTED", "lstart", func(p process) string { return p.start.Format("Mon Jan _2 15:04:05 2006") }},
	{"ELAPSED", "etime", func(p process) string { return elapsed(time.Since(p.start)) }},
	{"ELAPSED", "etimes", func(p process) string { return strconv.Itoa(int(time.Since(p.start) / time.Second)) }},
	{"S", "s", func(p process) string { return p.state }}, {"S", "state", func(p process) string { return p.state }},
	{"RUSER", "ruser", func(p process) string { return userName(p.uid) }}, {"EUSER", "euser", func(p process) string { return userName(p.uid) }},
	{"EUID", "euid", func(p process) string { return strconv.Itoa(p.uid) }}, {"CMD", "ucmd", func(p process) string { return p.comm }},
	{"GID", "gid", func(p process) string { return strconv.Itoa(p.gid) }}, {"GROUP", "group", func(p process) string { return userName(p.gid) }},
	{"PGID", "pgid", func(p process) string { return strconv.Itoa(p.pgid) }}, {"SID", "sid", func(p process) string { return strconv.Itoa(p.sid) }},
	{"NI", "ni", func(p process) string { return strconv.Itoa(p.nice) }}, {"NLWP", "nlwp", func(p process) string { return strconv.Itoa(p.threads) }},
}

// share is the part of one processor that the process has had so far, in percent.
func (p process) share() float64 {
	up := time.Since(p.start)
	if up <= 0 {
		return 0
	}
	return 100 * float64(p.cpu) / float64(up)
}

func percentCPU(p process) string { return fmt.Sprintf("%.1f", p.share()) }

func percentMemory(p process) string {
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil || s.Totalram == 0 {
		return "0.0"
	}
	return fmt.Sprintf("%.1f", 100*float64(p.rss)/(float64(s.Totalram)*float64(s.Unit)))
}

// elapsed writes a time as ps does: [[dd-]hh:]mm:ss.
func elapsed(d time.Duration) string {
	s := max(0, int(d/time.Second))
	text := fmt.Sprintf("%02d:%02d", s/60%60, s%60)
	if s >= 3600 {
		text = fmt.Sprintf("%02d:", s/3600%24) + text
	}
	if s >= 24*3600 {
		text = strconv.Itoa(s/(24*3600)) + "-" + text
	}
	return text
}

// Table is what Parse made of ps's arguments.
type Table struct {
	columns []column
	order   []key
}

// key is a column by which rows are sorted.
type key struct {
	column
	descending bool
}

// Parse reads ps's arguments: "-ef", docker's default, "aux", the names of columns
// ("-o pid,comm"), and those that rows are sorted by ("--sort=-rss,pid"). What it does
// not know is, as docker has it, no more the client's fault than the engine's:
// errdefs.ErrInternal.
func Parse(args string) (Table, error) {
	var t Table
	var names []string
	fields := strings.Fields(args)
	for i := 0; i < len(fields); i++ {
		f := fields[i]
		switch {
		case f == "-ef", f == "-e", f == "-f", f == "ef", f == "-A":
		case f == "-x" || f == "-a" || f == "-w" || f == "-ww" || f == "ww" || f == "ax" || f == "-ax": // all of a container's processes are shown anyway
		case f == "aux", f == "-aux", f == "auxww", f == "axu":
			names = []string{"user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "start", "time", "command"}
		case (f == "--sort" || f == "k") && i+1 < len(fields), strings.HasPrefix(f, "--sort="):
			_, list, ok := strings.Cut(f, "=")
			if !ok {
				i++
				list = fields[i]
			}
			for name := range strings.SplitSeq(list, ",") {
				col, err := columnNamed(strings.TrimLeft(name, "+-"))
				if err != nil {
					return t, err
				}
				t.order = append(t.order, key{col, strings.HasPrefix(name, "-")})
			}
		case (f == "-o" || f == "-eo" || f == "o") && i+1 < len(fields):
			i++
			names = append(names, strings.Split(fields[i], ",")...)
		case strings.HasPrefix(f, "-o"), strings.HasPrefix(f, "-eo"):
			_, list, _ := strings.Cut(f, "o")
			names = append(names, strings.Split(list, ",")...)
		default:
			return t, failed("ps: unsupported option %q: Berth knows -ef, aux, -o with columns and --sort", f)
		}
	}
	if names == nil {
		t.columns = columns[:8]
		return t, nil
	}
	for _, name := range names {
		name, title, renamed := strings.Cut(name, "=")
		col, err := columnNamed(name)
		if err != nil {
			return t, err
		}
		if renamed && title != "" {
			col.title = title
		}
		t.columns = append(t.columns, col)
	}
	if !slices.ContainsFunc(t.columns, func(c column) bool { return c.name == "pid" }) {
		return t, failed("Couldn't find PID field in ps output")
	}
	return t, nil
}

func columnNamed(name string) (column, error) {
	i := slices.IndexFunc(columns, func(c column) bool { return c.name == strings.ToLower(name) })
	if i < 0 {
		return column{}, failed("ps: unknown column %q", name)
	}
	return columns[i], nil
}

// compare orders processes by the column.
func (c column) compare(a, b process) int {
	switch c.name {
	case "stime", "start", "lstart":
		return a.start.Compare(b.start)
	case "etime", "etimes":
		return b.start.Compare(a.start)
	case "time":
		return cmp.Compare(a.cpu, b.cpu)
	}
	x, y := c.value(a), c.value(b)
	if m, err := strconv.ParseFloat(x, 64); err == nil {
		if n, err := strconv.ParseFloat(y, 64); err == nil {
			return cmp.Compare(m, n)
		}
	}
	return cmp.Compare(x, y)
}

func userName(uid int) string {
	if uid == 0 {
		return "root"
	}
	return strconv.Itoa(uid)
}

// Titles are the columns' names.
func (t Table) Titles() []string {
	var titles []string
	for _, c := range t.columns {
		titles = append(titles, c.title)
	}
	return titles
}

// Rows describes those of the processes that still exist.
func (t Table) Rows(pids []int) ([][]string, error) {
	var list []process
	for _, pid := range pids {
		p, err := readProcess(pid)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	t.sort(list)
	rows := [][]string{}
	for _, p := range list {
		var row []string
		for _, c := range t.columns {
			row = append(row, c.value(p))
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func (t Table) sort(list []process) {
	slices.SortStableFunc(list, func(a, b process) int {
		for _, k := range t.order {
			if n := k.compare(a, b); n != 0 && k.descending {
				return -n
			} else if n != 0 {
				return n
			}
		}
		return 0
	})
}

func failed(format string, args ...any) error {
	return errdefs.ErrInternal.WithMessage(fmt.Sprintf(format, args...))
}

func readProcess(pid int) (process, error) {
	p := process{pid: pid, tty: "?"}
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return p, gone(err)
	}
	cmdline, err := os.ReadFile(dir + "cmdline")
	if err != nil {
		return p, gone(err)
	}
	if info, err := os.Stat(dir); err == nil {
		p.uid, p.gid = ownerOf(info)
	}
	if err := p.parseStat(stat); err != nil {
		return p, err
	}
	p.command = strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
	if p.command == "" {
		p.command = "[" + p.comm + "]"
	}
	return p, nil
}

// gone makes the two errors that a process which has ended gives one.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "no such process") {
		return os.ErrNotExist
	}
	return err
}

// parseStat reads /proc/PID/stat, where the name may hold anything.
func (p *process) parseStat(stat []byte) error {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return errors.New("malformed /proc/PID/stat")
	}
	p.comm = string(stat[open+1 : end])
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 22 {
		return errors.New("malformed /proc/PID/stat")
	}
	num := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
	p.state, p.ppid, p.pgid, p.sid = f[0], int(num(1)), int(num(2)), int(num(3))
	p.nice, p.threads = int(num(16)), int(num(17))
	if tty := num(4); tty>>8 >= 136 && tty>>8 < 144 {
		p.tty = "pts/" + strconv.FormatInt(tty&0xff|tty>>12&0xfff00, 10)
	}
	p.cpu = time.Duration(num(11)+num(12)) * (time.Second / 100)
	p.start = bootTime().Add(time.Duration(num(19)) * (time.Second / 100))
	p.vsz, p.rss = num(20), num(21)*int64(os.Getpagesize())
	return nil
}

func ownerOf(info os.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}

// bootTime is when the machine was started, by its clock of now.
func bootTime() time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(ts.Nano()))
}
