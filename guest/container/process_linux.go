package container

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/container/order"
)

// process converts the program's part of the specification.
func (p *plan) process() error {
	pr := p.spec.Process
	op, err := planProcess(pr)
	if err != nil {
		return badf("process.%w", err)
	}
	p.order.Process = op
	if err := p.personality(); err != nil {
		return err
	}
	if err := p.memoryPolicy(); err != nil {
		return err
	}
	if p.newUser {
		l := p.spec.Linux
		if !mapped(l.UIDMappings, pr.User.UID) {
			return badf("process.user.uid: %d is not mapped in the user namespace", pr.User.UID)
		}
		if !mapped(l.GIDMappings, pr.User.GID) {
			return badf("process.user.gid: %d is not mapped in the user namespace", pr.User.GID)
		}
	}
	if pr.OOMScoreAdj != nil {
		p.oom = strconv.Itoa(*pr.OOMScoreAdj)
	}
	p.order.Keyring = "_ses." + p.cfg.ID
	if len(p.order.Keyring) > 255 {
		p.order.Keyring = p.order.Keyring[:255]
	}
	p.order.NewConsole = pr.Terminal
	if p.order.NewConsole && p.cfg.Console == nil {
		return badf("process.terminal: nobody takes the terminal (is --console-socket missing?)")
	}
	return nil
}

// planProcess checks and converts what Create and Exec have in common. Its errors
// begin with the field's name below "process.".
func planProcess(pr *specs.Process) (order.Process, error) {
	op := order.Process{
		Args: pr.Args, Env: pr.Env, Cwd: path.Clean(pr.Cwd), UID: pr.User.UID, GID: pr.User.GID,
		Groups: pr.User.AdditionalGids, Umask: -1, Terminal: pr.Terminal, NoNewPrivs: pr.NoNewPrivileges,
		SetCaps: true, IOPriority: -1, Personality: -1, MemPolicy: -1,
	}
	switch {
	case len(pr.Args) == 0:
		return op, fmt.Errorf("args: missing")
	case !path.IsAbs(pr.Cwd):
		return op, fmt.Errorf("cwd: %q is not an absolute path", pr.Cwd)
	case pr.SelinuxLabel != "":
		return op, fmt.Errorf("selinuxLabel: SELinux is not supported")
	case pr.ApparmorProfile != "" && pr.ApparmorProfile != "unconfined":
		return op, fmt.Errorf("apparmorProfile: AppArmor is not supported")
	case pr.OOMScoreAdj != nil && (*pr.OOMScoreAdj < -1000 || *pr.OOMScoreAdj > 1000):
		return op, fmt.Errorf("oomScoreAdj: %d is not between -1000 and 1000", *pr.OOMScoreAdj)
	}
	if err := checkStrings(pr); err != nil {
		return op, err
	}
	if pr.User.Umask != nil {
		if *pr.User.Umask > 0o777 {
			return op, fmt.Errorf("user.umask: %#o is more than 0777", *pr.User.Umask)
		}
		op.Umask = int(*pr.User.Umask)
	}
	if size := pr.ConsoleSize; size != nil {
		if size.Height > math.MaxUint16 || size.Width > math.MaxUint16 {
			return op, fmt.Errorf("consoleSize: %d x %d is too large", size.Width, size.Height)
		}
		op.Height, op.Width = int(size.Height), int(size.Width)
	}
	if err := planCaps(&op, pr.Capabilities); err != nil {
		return op, err
	}
	if err := planScheduling(&op, pr); err != nil {
		return op, err
	}
	var err error
	op.Rlimits, err = planRlimits(pr.Rlimits)
	return op, err
}

func checkStrings(pr *specs.Process) error {
	for i, s := range pr.Args {
		if strings.ContainsRune(s, 0) {
			return fmt.Errorf("args[%d]: holds a NUL byte", i)
		}
	}
	for i, s := range pr.Env {
		if strings.ContainsRune(s, 0) {
			return fmt.Errorf("env[%d]: holds a NUL byte", i)
		}
		if key, _, ok := strings.Cut(s, "="); !ok || key == "" {
			return fmt.Errorf("env[%d]: %q is not of the form NAME=value", i, s)
		}
	}
	if strings.ContainsRune(pr.Cwd, 0) {
		return fmt.Errorf("cwd: holds a NUL byte")
	}
	return nil
}

// capBits maps each capability's name to its bit.
var capBits = func() map[string]uint {
	bits := make(map[string]uint)
	for _, c := range capability.ListKnown() {
		bits["CAP_"+strings.ToUpper(c.String())] = uint(c)
	}
	return bits
}()

func planCaps(op *order.Process, caps *specs.LinuxCapabilities) error {
	if caps == nil {
		return nil // none at all
	}
	last, err := capability.LastCap()
	if err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	kernel := uint64(1)<<(uint(last)+1) - 1
	for _, set := range []struct {
		name  string
		names []string
		bits  *uint64
	}{
		{"bounding", caps.Bounding, &op.Bounding}, {"effective", caps.Effective, &op.Effective},
		{"inheritable", caps.Inheritable, &op.Inheritable}, {"permitted", caps.Permitted, &op.Permitted},
		{"ambient", caps.Ambient, &op.Amb},
	} {
		for _, name := range set.names {
			bit, ok := capBits[name]
			if !ok {
				return fmt.Errorf("capabilities.%s: unknown capability %q", set.name, name)
			}
			*set.bits |= 1 << bit
		}
		*set.bits &= kernel // newer than the kernel: nothing there to grant
	}
	if op.Effective&^op.Permitted != 0 {
		return fmt.Errorf("capabilities.effective: must all be permitted too")
	}
	if op.Amb&^(op.Permitted&op.Inheritable) != 0 {
		return fmt.Errorf("capabilities.ambient: must all be permitted and inheritable too")
	}
	return nil
}

var rlimitKinds = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC,
	"RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

func planRlimits(in []specs.POSIXRlimit) ([]order.Rlimit, error) {
	var out []order.Rlimit
	seen := make(map[string]bool)
	for _, r := range in {
		kind, ok := rlimitKinds[r.Type]
		switch {
		case !ok:
			return nil, fmt.Errorf("rlimits: unknown type %q", r.Type)
		case seen[r.Type]:
			return nil, fmt.Errorf("rlimits: %s is listed twice", r.Type)
		case r.Soft > r.Hard:
			return nil, fmt.Errorf("rlimits: %s: soft limit %d is above the hard limit %d", r.Type, r.Soft, r.Hard)
		}
		seen[r.Type] = true
		out = append(out, order.Rlimit{Kind: kind, Soft: r.Soft, Hard: r.Hard})
	}
	return out, nil
}

// raiseRlimits raises the hard limits of the first process where they are below
// what is asked for: neither a user namespace's root nor a plain user may do so.
// The process sets the limits themselves right before the program.
func raiseRlimits(pid int, list []order.Rlimit) error {
	for _, r := range list {
		var now unix.Rlimit
		err := unix.Prlimit(pid, r.Kind, nil, &now)
		if err == nil && now.Max < r.Hard {
			err = unix.Prlimit(pid, r.Kind, &unix.Rlimit{Cur: now.Cur, Max: r.Hard}, nil)
		}
		if err != nil {
			return badf("process.rlimits: raise the hard limit %d to %d: %w", r.Kind, r.Hard, err)
		}
	}
	return nil
}

var schedPolicies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3, specs.SchedISO: 4,
	specs.SchedIdle: 5, specs.SchedDeadline: 6,
}

var schedFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2, specs.SchedFlagDLOverrun: 4,
	specs.SchedFlagKeepPolicy: 8, specs.SchedFlagKeepParams: 16, specs.SchedFlagUtilClampMin: 32,
	specs.SchedFlagUtilClampMax: 64,
}

var ioClasses = map[specs.IOPriorityClass]int{
	specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3,
}

func planScheduling(op *order.Process, pr *specs.Process) error {
	if s := pr.Scheduler; s != nil {
		policy, ok := schedPolicies[s.Policy]
		if !ok {
			return fmt.Errorf("scheduler.policy: unknown policy %q", s.Policy)
		}
		var flags uint64
		for _, f := range s.Flags {
			bit, ok := schedFlags[f]
			if !ok {
				return fmt.Errorf("scheduler.flags: unknown flag %q", f)
			}
			flags |= bit
		}
		if s.Nice < -20 || s.Nice > 19 {
			return fmt.Errorf("scheduler.nice: %d is not between -20 and 19", s.Nice)
		}
		if s.Priority != 0 && (policy != 1 && policy != 2) {
			return fmt.Errorf("scheduler.priority: only for SCHED_FIFO and SCHED_RR")
		}
		op.Sched = schedAttr(policy, flags, s)
	}
	if io := pr.IOPriority; io != nil {
		class, ok := ioClasses[io.Class]
		switch {
		case !ok:
			return fmt.Errorf("ioPriority.class: unknown class %q", io.Class)
		case io.Priority < 0 || io.Priority > 7:
			return fmt.Errorf("ioPriority.priority: %d is not between 0 and 7", io.Priority)
		}
		op.IOPriority = class<<13 | io.Priority
	}
	if a := pr.ExecCPUAffinity; a != nil {
		initial, err := bitmask(a.Initial)
		if err != nil {
			return fmt.Errorf("execCPUAffinity.initial: %w", err)
		}
		if op.FinalCPUs, err = bitmask(a.Final); err != nil {
			return fmt.Errorf("execCPUAffinity.final: %w", err)
		}
		if a.Final == "" {
			op.FinalCPUs = initial
		}
	}
	return nil
}

// schedAttr is the kernel's struct sched_attr, in its first version.
func schedAttr(policy uint32, flags uint64, s *specs.Scheduler) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 48)
	b = binary.NativeEndian.AppendUint32(b, policy)
	b = binary.NativeEndian.AppendUint64(b, flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Nice))
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Priority))
	b = binary.NativeEndian.AppendUint64(b, s.Runtime)
	b = binary.NativeEndian.AppendUint64(b, s.Deadline)
	return binary.NativeEndian.AppendUint64(b, s.Period)
}

// bitmask reads a list such as "0-3,7" as the kernel's bit mask, in whole words.
func bitmask(list string) ([]byte, error) {
	if list == "" {
		return nil, nil
	}
	const limit = 8192
	var mask []byte
	for _, part := range strings.Split(list, ",") {
		lo, hi, ranged := strings.Cut(part, "-")
		if !ranged {
			hi = lo
		}
		a, err1 := strconv.ParseUint(lo, 10, 16)
		b, err2 := strconv.ParseUint(hi, 10, 16)
		if err1 != nil || err2 != nil || b < a || b >= limit {
			return nil, fmt.Errorf("%q is not a list such as 0-2,4", list)
		}
		if need := int(b/64+1) * 8; need > len(mask) {
			mask = append(mask, make([]byte, need-len(mask))...)
		}
		for ; a <= b; a++ {
			mask[a/8] |= 1 << (a % 8)
		}
	}
	return mask, nil
}

func (p *plan) personality() error {
	pers := p.spec.Linux.Personality
	if pers == nil {
		return nil
	}
	if len(pers.Flags) > 0 {
		return badf("linux.personality.flags: unknown flag %q", pers.Flags[0])
	}
	switch pers.Domain {
	case specs.PerLinux:
		p.order.Process.Personality = 0
	case specs.PerLinux32:
		p.order.Process.Personality = 8
	default:
		return badf("linux.personality.domain: unknown domain %q", pers.Domain)
	}
	return nil
}

var memoryPolicies = map[specs.MemoryPolicyModeType]int{
	specs.MpolDefault: 0, specs.MpolPreferred: 1, specs.MpolBind: 2, specs.MpolInterleave: 3,
	specs.MpolLocal: 4, specs.MpolPreferredMany: 5, specs.MpolWeightedInterleave: 6,
}

var memoryPolicyFlags = map[specs.MemoryPolicyFlagType]int{
	specs.MpolFNumaBalancing: 1 << 13, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFStaticNodes: 1 << 15,
}

func (p *plan) memoryPolicy() error {
	m := p.spec.Linux.MemoryPolicy
	if m == nil {
		return nil
	}
	mode, ok := memoryPolicies[m.Mode]
	if !ok {
		return badf("linux.memoryPolicy.mode: unknown mode %q", m.Mode)
	}
	for _, f := range m.Flags {
		bit, ok := memoryPolicyFlags[f]
		if !ok {
			return badf("linux.memoryPolicy.flags: unknown flag %q", f)
		}
		mode |= bit
	}
	nodes, err := bitmask(m.Nodes)
	if err != nil {
		return badf("linux.memoryPolicy.nodes: %w", err)
	}
	p.order.Process.MemPolicy, p.order.Process.MemNodes = mode, nodes
	return nil
}

// defaultDevices are in every container's /dev.
var defaultDevices = []order.Device{
	{Path: "/dev/null", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 3)},
	{Path: "/dev/zero", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 5)},
	{Path: "/dev/full", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 7)},
	{Path: "/dev/random", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 8)},
	{Path: "/dev/urandom", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 9)},
	{Path: "/dev/tty", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(5, 0)},
}

// devices converts the device nodes. A /dev that is bound from elsewhere is left
// as it is.
func (p *plan) devices() error {
	var asked []order.Device
	for i, d := range p.spec.Linux.Devices {
		od, err := planDevice(d)
		if err != nil {
			return badf("linux.devices[%d]: %w", i, err)
		}
		asked = append(asked, od)
	}
	for _, m := range p.order.Mounts {
		if m.Dest == "/dev" && m.Type == "" {
			return nil
		}
	}
	for _, d := range defaultDevices {
		if !slices.ContainsFunc(asked, func(a order.Device) bool { return a.Path == d.Path }) {
			p.order.Devices = append(p.order.Devices, d)
		}
	}
	p.order.Devices = append(p.order.Devices, asked...)
	p.order.BindDevices = p.newUser || p.joinsType(specs.UserNamespace)
	return nil
}

func planDevice(d specs.LinuxDevice) (order.Device, error) {
	od := order.Device{Path: path.Clean(d.Path), Mode: 0o666}
	if !path.IsAbs(d.Path) || od.Path == "/" || strings.ContainsRune(d.Path, 0) {
		return od, fmt.Errorf("path: %q is not an absolute path", d.Path)
	}
	if d.FileMode != nil {
		if *d.FileMode&^(os.ModePerm|os.ModeSetuid|os.ModeSetgid|os.ModeSticky|0o7000) != 0 {
			return od, fmt.Errorf("fileMode: %#o has more than permissions", uint32(*d.FileMode))
		}
		od.Mode = uint32(d.FileMode.Perm())
	}
	switch d.Type {
	case "c", "u":
		od.Mode |= unix.S_IFCHR
	case "b":
		od.Mode |= unix.S_IFBLK
	case "p":
		od.Mode |= unix.S_IFIFO
	default:
		return od, fmt.Errorf("type: %q is none of c, u, b, p", d.Type)
	}
	if d.Type != "p" {
		if d.Major < 0 || d.Major > 1<<12-1 || d.Minor < 0 || d.Minor > 1<<20-1 {
			return od, fmt.Errorf("major, minor: %d:%d is not a device number", d.Major, d.Minor)
		}
		od.Dev = unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	}
	if d.UID != nil {
		od.UID = *d.UID
	}
	if d.GID != nil {
		od.GID = *d.GID
	}
	return od, nil
}
