package boot

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/heap"
	"github.com/berthvm/berth/guest/keeper"
	"github.com/berthvm/berth/guest/monitor"
	"github.com/berthvm/berth/guest/wire"
)

// Paths that the engine relies on.
const (
	runDir      = "/run/berth"
	welcomePath = runDir + "/welcome.json"
	keeperPath  = runDir + "/keeper.sock"
	dataDir     = "/var/lib/berth"
	enginePath  = "/usr/bin/berth-guest"
)

// The disks' serials, as images names them to the host.
const (
	rootSerial = "berth-root"
	dataSerial = "berth-data"
)

// settles is how long after the boot, and later after work, the memory that it took
// goes back to the kernel: not while somebody waits for the first container.
const settles = 10 * time.Second

// machine is PID 1's state. Its parts guard themselves.
type machine struct {
	version string
	log     *slog.Logger
	phases  *phases
	reaper  *reaper
	keeper  *keeper.Server
	link    *link // once hello is done
	host    *host
	engine  *engine
	button  chan struct{} // gets the power button's presses
	hw      hypervisor    // once boot has read it
}

// Run boots the machine and supervises it. It is for PID 1, and never returns:
// it ends with the machine.
func Run(version string) {
	debug.SetGCPercent(400) // the boot needs no collection
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: dropTime}))
	m := &machine{version: version, log: log, phases: newPhases(), keeper: keeper.NewServer(log), button: make(chan struct{}, 1)}
	m.reaper = newReaper(m.keeper, log)
	m.host = newHost(m.phases)
	m.engine = newEngine(m.reaper, m.host, log)
	defer func() {
		if p := recover(); p != nil {
			log.Error("PID 1 failed; powering off", "panic", p, "stack", string(debug.Stack()))
			halt(unix.LINUX_REBOOT_CMD_POWER_OFF)
		}
	}()
	if err := m.boot(); err != nil {
		log.Error("cannot boot; powering off", "err", err)
		m.shutdown(unix.LINUX_REBOOT_CMD_POWER_OFF, time.Second)
	}
	// What lives is a few hundred kilobytes. The runtime collects at the earliest
	// when the heap has this share of 4 MiB: the garbage of 150 containers.
	debug.SetGCPercent(25)
	heap.Return(settles, 256<<10)
	how, grace := m.serve()
	m.shutdown(how, grace)
}

// dropTime: the console's reader stamps its lines.
func dropTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// boot does everything up to the engine's start.
func (m *machine) boot() error {
	m.phases.began("kernel", 0)(nil)
	if err := mountEarly(); err != nil {
		return err
	}
	if err := monitor.Relax(); err != nil {
		m.log.Warn("the machine will be slower", "err", err)
	}
	early, err := openEarlyModules("/modules")
	if err != nil {
		return err
	}
	defer early.close()
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	m.hw = readHypervisor(string(cmdline))
	if err := m.phases.run("modules", func() error { return early.load(m.hw.baseModules()...) }); err != nil {
		return err
	}
	hello := startTask("hello", func() error { return m.hello(early, string(cmdline)) })
	extension := startTask("ext4", func() error { return early.load("data") })
	card := startTask("network card", func() error { return early.load(m.hw.netModules()...) })

	if err := m.phases.run("root", m.switchRoot); err != nil {
		return err
	}
	mounts := startTask("mounts", func() error { return m.phases.run("mounts", mountAll) })
	data := startTask("data disk", func() error {
		return m.phases.run("data disk", func() error {
			return errors.Join(extension.wait(), m.mountData())
		})
	})
	network := startTask("network", func() error {
		if err := errors.Join(card.wait(), hello.wait()); err != nil {
			return err
		}
		return m.phases.run("network", m.configureNetwork)
	})
	if err := errors.Join(hello.wait(), mounts.wait()); err != nil {
		return err
	}
	if err := writeConfig(m.host.welcome); err != nil {
		return err
	}
	if err := errors.Join(m.keeper.Listen(keeperPath), m.link.lend(m.log)); err != nil {
		return err
	}
	if err := data.wait(); err != nil {
		return err
	}
	// The engine needs the network no sooner than its first client does.
	return errors.Join(m.startEngine(), network.wait())
}

// startEngine also loads the modules that containers need. The engine's start
// comes first: on one CPU they load while it waits for its disk, and go on at
// full speed when it serves.
func (m *machine) startEngine() error {
	serves := make(chan struct{})
	ready := m.phases.begin("engine")
	err := m.engine.start(func(err error) {
		ready(err)
		close(serves)
	})
	go func() {
		err := m.phases.run("core modules", func() error {
			err := loadCore(serves, m.hw.coreModules()...)
			watchPowerButton(m.button, m.log)
			return err
		})
		if err != nil {
			m.log.Error("cannot load modules", "err", err)
		}
		m.mountShares(serves)
		if m.hw.rosetta {
			m.takeRosetta(serves)
		}
	}()
	return err
}

// takeRosetta has Rosetta run programs for amd64, where the host's user has installed
// it. Elsewhere they are emulated.
func (m *machine) takeRosetta(hurry <-chan struct{}) {
	err := m.phases.run("rosetta", func() error {
		if err := loadCore(hurry, "virtiofs"); err != nil {
			return err
		}
		there, err := useRosetta()
		if err == nil && !there {
			m.log.Info("the host has no Rosetta: programs for amd64 are emulated")
		}
		return err
	})
	if err != nil {
		m.log.Warn("programs for amd64 are not run by Rosetta", "err", err)
	}
}

// mountShares mounts the host's folders. A machine without them is better than
// none: the engine says what is missing to who wants it.
func (m *machine) mountShares(hurry <-chan struct{}) {
	shares := m.host.welcome.Shares
	if len(shares) == 0 {
		return
	}
	var modules []string // in groups; one that is named twice is loaded once
	for _, s := range shares {
		if s.Protocol == wire.Share9P {
			modules = append(modules, "9p")
		} else {
			modules = append(modules, "virtiofs")
		}
	}
	err := m.phases.run("shares", func() error {
		return errors.Join(loadCore(hurry, modules...), mountShares(sharesDir, shares, m.mountFolder))
	})
	if err != nil {
		m.log.Error("cannot mount all of the host's folders", "err", err)
	}
}

// hello makes the stream to the host and sets what the Welcome says.
func (m *machine) hello(early *earlyModules, cmdline string) error {
	return m.phases.run("hello", func() (err error) {
		m.link, err = openLink(cmdline, func() error { return early.load(m.hw.vsockModules()...) }, m.log)
		if err != nil {
			return err
		}
		if err := m.host.connect(m.version, m.link); err != nil {
			return err
		}
		if err := setClock(m.host.welcome.Time); err != nil {
			return err
		}
		return unix.Sethostname([]byte(m.host.welcome.Hostname))
	})
}

// serve carries out orders until one, or the end of the hello stream, or the
// power button, takes the machine down. It says how.
func (m *machine) serve() (how int, grace time.Duration) {
	save := saving{m: m}
	defer save.end()
	for {
		select {
		case order, ok := <-save.orders():
			if !ok && save.lost() {
				continue
			}
			if !ok {
				m.log.Error("the host's daemon is gone; powering off")
				return unix.LINUX_REBOOT_CMD_POWER_OFF, graceAbandoned
			}
			switch order.Op {
			case wire.OpPowerOff:
				m.host.reply(order.ID, nil)
				return unix.LINUX_REBOOT_CMD_POWER_OFF, graceOrdered
			case wire.OpReboot:
				m.host.reply(order.ID, nil)
				return unix.LINUX_REBOOT_CMD_RESTART, graceOrdered
			case wire.OpTime:
				m.host.reply(order.ID, setClock(order.Time))
			case wire.OpSave:
				m.host.reply(order.ID, save.begin())
			case wire.OpStay:
				save.end()
				m.host.reply(order.ID, nil)
			default:
				m.host.reply(order.ID, fmt.Errorf("unknown order %q", order.Op))
			}
		case <-save.knocks():
			if err := save.knock(); err != nil {
				m.log.Error("no host has taken the machine up again; powering off", "err", err)
				return unix.LINUX_REBOOT_CMD_POWER_OFF, graceAbandoned
			}
		case <-m.button:
			m.log.Info("the power button was pressed")
			return unix.LINUX_REBOOT_CMD_POWER_OFF, graceOrdered
		}
	}
}

// setClock sets the system's time.
func setClock(now time.Time) error {
	if now.Year() < 2020 {
		return fmt.Errorf("the host sent the time %v", now)
	}
	ts := unix.NsecToTimespec(now.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// task is a function that runs beside others and is waited for by those that
// need its result.
type task struct {
	done chan struct{}
	err  error // once done is closed
}

func startTask(name string, f func() error) *task {
	t := &task{done: make(chan struct{})}
	go func() {
		defer close(t.done)
		if err := f(); err != nil {
			t.err = fmt.Errorf("%s: %w", name, err)
		}
	}()
	return t
}

func (t *task) wait() error {
	<-t.done
	return t.err
}
