//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The colours of the icon, by what it says: see host/tray.
var (
	iconStopped = color.NRGBA{0x8b, 0x93, 0x9f, 0xff}
	iconRunning = color.NRGBA{0x2f, 0xb5, 0x7c, 0xff}
	iconTrouble = color.NRGBA{0xe5, 0x48, 0x4d, 0xff}
)

// panelHeight is more than the panel at the screen's top is high, in pixels.
const panelHeight = 40

// TestTray uses the icon as a user does: it is looked for in pictures of a real
// desktop's panel, its menu is opened with the mouse, and entries are chosen with
// the keys. What the command line does meanwhile must be seen on it.
func TestTray(t *testing.T) {
	needVM(t)
	if os.Getenv("BERTH_TRAY") != "1" {
		t.Skip("needs a desktop's programs: run make test-full-tray")
	}
	h := ownHome(t)
	d := newDesktop(t, h)
	d.berth("tray")
	t.Cleanup(func() { d.berth("tray", "quit") })
	d.awaitIcon("stopped", iconStopped)
	if r := d.cli.exec("tray"); r.code != 0 || !strings.Contains(r.err, "already") {
		t.Errorf("a second icon: %s", r)
	}

	d.choose("stopped-menu", "Down", "Down", "Down", "Return") // Start, Settings Folder, Start at Login
	entries := filepath.Join(h.dir, ".config", "autostart", "berth-tray-*.desktop")
	d.await("an autostart entry", func() bool {
		found, _ := filepath.Glob(entries)
		return len(found) == 1
	})
	short := d.choose("ticked-menu", "Down", "Return") // Start
	d.awaitIcon("running", iconRunning)
	d.await("a running machine", func() bool { return d.state() == "running" })

	d.berth("run", "-d", "--name", "web", "--init", "-p", "0:80", "hello", "sleep", "3600")
	var long image.Rectangle
	d.await("an entry for the container", func() bool {
		long = d.openMenu("container-menu")
		d.keys("Escape")
		return long.Dy() > short.Dy()
	})
	before := d.look("")
	d.choose("stop-menu", "Down", "Down", "Down") // Stop, Restart, web
	d.await("the container's menu", func() bool { return difference(before, d.look("stop-menu")).Dx() > long.Dx()+50 })
	d.keys("Right", "Down", "Down", "Return") // Open Port, Logs, Stop
	d.await("the container to stop", func() bool { return d.berth("ps", "-q") == "" })

	d.berth("stop")
	d.awaitIcon("stopped again", iconStopped)
	d.berth("start")
	d.awaitIcon("running again", iconRunning)
	var s struct{ PID int }
	if err := json.Unmarshal([]byte(d.berth("status", "--format", "json")), &s); err != nil {
		t.Fatal(err)
	}
	if p, err := os.FindProcess(s.PID); err != nil || p.Kill() != nil {
		t.Fatalf("cannot kill the daemon %d: %v", s.PID, err)
	}
	d.awaitIcon("trouble", iconTrouble)
	d.berth("tray", "login", "off")
	if found, _ := filepath.Glob(entries); len(found) != 0 {
		t.Errorf("left: %v", found)
	}
	d.berth("tray", "quit")
	d.await("the icon to go", func() bool { return !d.shows(iconTrouble) })
}

// desktop is a screen with a panel on it, and nobody before it.
type desktop struct {
	t     *testing.T
	cli   cli
	env   []string
	shots string // the folder for pictures
}

func newDesktop(t *testing.T, h *home) *desktop {
	t.Helper()
	d := &desktop{t: t, shots: filepath.Join(root, "bin", "tray")}
	if err := os.MkdirAll(d.shots, 0o755); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(h.dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	d.env = append(h.env(), "XDG_RUNTIME_DIR="+run, "XDG_CONFIG_HOME="+filepath.Join(h.dir, ".config"), "XFCE_PANEL_MIGRATE_DEFAULT=1", "NO_AT_BRIDGE=1")
	number := d.start(true, "Xvfb", "-displayfd", "1", "-screen", "0", "1024x768x24", "-nolisten", "tcp")
	d.env = append(d.env, "DISPLAY=:"+number)
	bus := d.start(true, "dbus-daemon", "--session", "--nofork", "--print-address")
	d.env = append(d.env, "DBUS_SESSION_BUS_ADDRESS="+bus)
	d.cli = h.berth()
	d.cli.env = d.env
	d.start(false, "openbox")
	d.start(false, "xfce4-panel")
	d.await("a panel", func() bool {
		first := d.look("")
		return first.NRGBAAt(3, 3) != first.NRGBAAt(3, 300)
	})
	return d
}

// start runs a program until the test ends, and returns its first line if asked.
func (d *desktop) start(line bool, name string, args ...string) string {
	d.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = d.env
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		d.t.Fatalf("%s: %v: see make test-full-tray", name, err)
	}
	d.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if !line {
		return ""
	}
	first, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		d.t.Fatalf("%s: %v", name, err)
	}
	return strings.TrimSpace(first)
}

func (d *desktop) berth(args ...string) string {
	d.t.Helper()
	r := d.cli.exec(args...)
	if r.code != 0 {
		d.t.Fatalf("%s", r)
	}
	return strings.TrimSpace(r.out)
}

func (d *desktop) state() string {
	var s struct{ State string }
	json.Unmarshal([]byte(d.berth("status", "--format", "json")), &s)
	return s.State
}

func (d *desktop) await(what string, ok func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.look("failed")
			d.t.Fatalf("waited in vain for %s: see %s", what, d.shots)
		}
	}
}

// look takes a picture of the screen, and keeps it if it has a name.
func (d *desktop) look(name string) *image.NRGBA {
	d.t.Helper()
	cmd := exec.Command("import", "-window", "root", "png:-")
	cmd.Env = d.env
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("import: %v", err)
	}
	if name != "" {
		os.WriteFile(filepath.Join(d.shots, name+".png"), out, 0o644)
	}
	img, err := png.Decode(bytes.NewReader(out))
	if err != nil {
		d.t.Fatal(err)
	}
	flat := image.NewNRGBA(img.Bounds())
	for p := range len(flat.Pix) / 4 {
		x, y := p%flat.Rect.Dx(), p/flat.Rect.Dx()
		flat.Set(x, y, img.At(x, y))
	}
	return flat
}

// find is where the panel shows enough of a colour to be the icon.
func find(img *image.NRGBA, c color.NRGBA) (image.Point, bool) {
	var sum image.Point
	n := 0
	for y := range panelHeight {
		for x := range img.Rect.Dx() {
			if near(img.NRGBAAt(x, y), c) {
				sum = sum.Add(image.Pt(x, y))
				n++
			}
		}
	}
	if n < 20 {
		return image.Point{}, false
	}
	return sum.Div(n), true
}

// near allows for what scaling does to a colour.
func near(a, b color.NRGBA) bool {
	for _, d := range []int{int(a.R) - int(b.R), int(a.G) - int(b.G), int(a.B) - int(b.B)} {
		if d > 6 || d < -6 {
			return false
		}
	}
	return true
}

func (d *desktop) shows(c color.NRGBA) bool {
	_, ok := find(d.look(""), c)
	return ok
}

func (d *desktop) awaitIcon(name string, c color.NRGBA) {
	d.t.Helper()
	d.await("the icon that says "+name, func() bool { return d.shows(c) })
	d.look(name)
}

func (d *desktop) xdotool(args ...string) {
	d.t.Helper()
	cmd := exec.Command("xdotool", args...)
	cmd.Env = d.env
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatalf("xdotool %v: %v\n%s", args, err, out)
	}
}

func (d *desktop) keys(keys ...string) {
	d.t.Helper()
	d.xdotool(append([]string{"key", "--delay", "150"}, keys...)...)
}

// openMenu clicks on the icon and returns where the menu is: what the picture has
// below the panel that it had not before.
func (d *desktop) openMenu(name string) image.Rectangle {
	d.t.Helper()
	var at image.Point
	before := d.look("")
	for _, c := range []color.NRGBA{iconStopped, iconRunning, iconTrouble} {
		if p, ok := find(before, c); ok {
			at = p
		}
	}
	if at == (image.Point{}) {
		d.look("failed")
		d.t.Fatalf("no icon to click on: see %s", d.shots)
	}
	d.xdotool("mousemove", strconv.Itoa(at.X), strconv.Itoa(at.Y), "click", "1")
	var menu image.Rectangle
	d.await("the menu", func() bool {
		menu = difference(before, d.look(name))
		return menu.Dx() > 100 && menu.Dy() > 100
	})
	return menu
}

// choose opens the menu and presses keys in it.
func (d *desktop) choose(name string, keys ...string) image.Rectangle {
	d.t.Helper()
	menu := d.openMenu(name)
	d.keys(keys...)
	return menu
}

// difference bounds the pixels below the panel that differ.
func difference(a, b *image.NRGBA) (r image.Rectangle) {
	for y := panelHeight; y < a.Rect.Dy(); y++ {
		for x := range a.Rect.Dx() {
			if a.NRGBAAt(x, y) != b.NRGBAAt(x, y) {
				r = r.Union(image.Rect(x, y, x+1, y+1))
			}
		}
	}
	return r
}
