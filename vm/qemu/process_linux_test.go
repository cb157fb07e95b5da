package qemu

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestStartTime(t *testing.T) {
	fields := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"
	tests := []struct {
		stat string
		want uint64
		ok   bool
	}{
		{"12 (qemu)" + fields, 4711, true},
		{"12 (a) S 1 (b)" + fields, 4711, true},
		{"12 (qemu) S 1 2", 0, false},
		{"", 0, false},
		{")", 0, false},
		{"12 (qemu)" + strings.Replace(fields, "4711", "x", 1), 0, false},
	}
	for _, tt := range tests {
		got, err := startTime(tt.stat)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("startTime(%q) = %d, %v, want %d", tt.stat, got, err, tt.want)
		}
	}
	self, err := identify(os.Getpid())
	if err != nil || self.Start == 0 || self.Boot == "" {
		t.Errorf("identify(self) = %+v, %v", self, err)
	}
}

func TestEndLeftover(t *testing.T) {
	tests := []struct {
		name   string
		change func(*record)
		killed bool
	}{
		{"the same", func(*record) {}, true},
		{"the number was reused", func(r *record) { r.Start++ }, false},
		{"before the host's boot", func(r *record) { r.Boot = "x" }, false},
		{"a number that is none", func(r *record) { r.PID = -1 }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd, ended := sleeper(t)
			rec, err := identify(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			tt.change(&rec)
			data, _ := json.Marshal(rec)
			dir := t.TempDir()
			for name, text := range map[string]string{pidFile: string(data), monitorSocket: ""} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := endLeftover(dir, slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
			cmd.Process.Signal(os.Interrupt) // the second to come, if it was killed
			var exit *exec.ExitError
			if err := <-ended; !errors.As(err, &exit) || (exit.String() == "signal: killed") != tt.killed {
				t.Errorf("the process ended with %v, want it killed: %t", err, tt.killed)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestEndLeftoverGarbage(t *testing.T) {
	for _, text := range []string{"", "12", "{", `{"pid":1}`, `{"pid":"x"}`, strings.Repeat("[", 100_000)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, pidFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := endLeftover(dir, slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("endLeftover with %.20q: %v", text, err)
		}
	}
}

func TestTail(t *testing.T) {
	tests := []struct {
		name, in, want string
	}{
		{"nothing", "", ""},
		{"one", "qemu-system-x86_64: -m 1: too small\n", "-m 1: too small"},
		{"two", "qemu-system-x86_64: warning: a\nb\n\n", "warning: a; b"},
		{"a file's name", "/usr/bin/x: b", "/usr/bin/x: b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var w tail
			for i := range len(tt.in) {
				w.Write([]byte{tt.in[i]})
			}
			if got := w.String(); got != tt.want {
				t.Errorf("String() = %q, want %q", got, tt.want)
			}
		})
	}
	var w tail
	for range 100 {
		w.Write([]byte(strings.Repeat("x", 999) + "\n"))
	}
	if got := len(w.String()); got > tailSize+20 {
		t.Errorf("a tail keeps %d bytes", got)
	}
}

func TestProbeCache(t *testing.T) {
	name := filepath.Join(t.TempDir(), "kvm.json")
	key := probeKey{1, "6.1", "z80", "7.2.0"}
	if _, ok := readProbe(name, key, "boot1"); ok {
		t.Error("an empty cache has a result")
	}
	writeProbe(name, probeResult{probeKey: key, Boot: "boot1", Fault: "broken"})
	if fault, ok := readProbe(name, key, "boot1"); !ok || fault != "broken" {
		t.Errorf("readProbe() = %q, %t", fault, ok)
	}
	if _, ok := readProbe(name, key, "boot2"); ok {
		t.Error("a fault outlives the host's boot")
	}
	writeProbe(name, probeResult{probeKey: key, Boot: "boot1"})
	if fault, ok := readProbe(name, key, "boot2"); !ok || fault != "" {
		t.Errorf("a good result does not outlive the host's boot: %q, %t", fault, ok)
	}
	for _, other := range []probeKey{{2, "6.1", "z80", "7.2.0"}, {1, "6.2", "z80", "7.2.0"}, {1, "6.1", "6502", "7.2.0"}, {1, "6.1", "z80", "8.0.0"}} {
		if _, ok := readProbe(name, other, "boot1"); ok {
			t.Errorf("a result for %v was taken for %v", key, other)
		}
	}
	for _, text := range []string{"", "{", "null", "[]", `{"kernel":1}`} {
		os.WriteFile(name, []byte(text), 0o600)
		if _, ok := readProbe(name, key, "boot1"); ok {
			t.Errorf("cache %q has a result", text)
		}
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(name), ".kvm-*"))
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// FuzzStartTime feeds what a program's name, or a file, may hold.
func FuzzStartTime(f *testing.F) {
	f.Add("12 (a) S 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20")
	f.Add(") ) (")
	f.Fuzz(func(t *testing.T, stat string) { startTime(stat) })
}
