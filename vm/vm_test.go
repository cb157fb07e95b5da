package vm

import (
	"strings"
	"testing"
)

func TestConfigValidate(t *testing.T) {
	good := func() Config {
		return Config{
			Name: "dev-1", CPUs: 1, MemoryMiB: 256, Kernel: "/k", Initrd: "/i",
			Disks:  []Disk{{Path: "/d", Serial: "data-1"}, {Path: "/e"}},
			Shares: []Share{{Tag: "home_1", Path: "/home"}, {Tag: "tmp"}},
		}
	}
	tests := []struct {
		name  string
		spoil func(*Config)
		want  string // in the error; "" for none
	}{
		{"good", func(*Config) {}, ""},
		{"no initrd", func(c *Config) { c.Initrd = "" }, ""},
		{"nothing but a kernel", func(c *Config) { *c = Config{Name: "0", CPUs: 1, MemoryMiB: 256, Kernel: "/k"} }, ""},
		{"longest name", func(c *Config) { c.Name = strings.Repeat("a", 64) }, ""},
		{"longest serial", func(c *Config) { c.Disks[0].Serial = strings.Repeat("A", 20) }, ""},
		{"longest tag", func(c *Config) { c.Shares[0].Tag = strings.Repeat("A", 36) }, ""},

		{"no name", func(c *Config) { c.Name = "" }, "invalid machine name"},
		{"long name", func(c *Config) { c.Name = strings.Repeat("a", 65) }, "invalid machine name"},
		{"dash first", func(c *Config) { c.Name = "-a" }, "invalid machine name"},
		{"upper case", func(c *Config) { c.Name = "Dev" }, "invalid machine name"},
		{"comma", func(c *Config) { c.Name = "a,b" }, "invalid machine name"},
		{"newline", func(c *Config) { c.Name = "a\n" }, "invalid machine name"},
		{"not ASCII", func(c *Config) { c.Name = "ä" }, "invalid machine name"},
		{"no cpu", func(c *Config) { c.CPUs = 0 }, "cpus: 0"},
		{"negative cpus", func(c *Config) { c.CPUs = -1 }, "cpus: -1"},
		{"little memory", func(c *Config) { c.MemoryMiB = 255 }, "memory: 255 MiB"},
		{"no kernel", func(c *Config) { c.Kernel = "" }, "kernel:"},
		{"relative kernel", func(c *Config) { c.Kernel = "k" }, "kernel:"},
		{"relative initrd", func(c *Config) { c.Initrd = "./i" }, "initrd:"},
		{"no disk path", func(c *Config) { c.Disks[1].Path = "" }, "disk 1:"},
		{"long serial", func(c *Config) { c.Disks[0].Serial = strings.Repeat("A", 21) }, "disk 0: invalid serial"},
		{"odd serial", func(c *Config) { c.Disks[0].Serial = "a=b" }, "disk 0: invalid serial"},
		{"no tag", func(c *Config) { c.Shares[0].Tag = "" }, "share"},
		{"long tag", func(c *Config) { c.Shares[0].Tag = strings.Repeat("A", 37) }, "share"},
		{"odd tag", func(c *Config) { c.Shares[0].Tag = "a,b" }, "share"},
		{"tag twice", func(c *Config) { c.Shares[1].Tag = "home_1" }, "taken by another share"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good()
			tt.spoil(&c)
			err := c.Validate()
			if tt.want == "" {
				if err != nil {
					t.Errorf("Validate() = %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Validate() = %v, want %q in it", err, tt.want)
			}
		})
	}
}
