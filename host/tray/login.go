package tray

import (
	"path/filepath"

	"github.com/berthvm/berth/host/autostart"
	"github.com/berthvm/berth/host/machine"
)

// Program is the name of the program that shows the icon. It lies beside berth.
const Program = "berth-tray"

// LoginName is the name of a home's autostart entry.
func LoginName(h machine.Home) string {
	if id := h.ID(); id != "" {
		return Program + "-" + id
	}
	return Program
}

// LoginEntry has the program show the machine's icon after each login.
func LoginEntry(h machine.Home, program, machineName string) autostart.Entry {
	e := autostart.Entry{Name: LoginName(h), Title: "Berth", Program: program}
	if h.Root != "" {
		e.Args = append(e.Args, "--home", h.Root)
	}
	if machineName != machine.Default {
		e.Args = append(e.Args, "--machine", machineName)
	}
	return e
}

// ProgramFile is the program's file, beside that of berth.
func ProgramFile(berth, goos string) string {
	name := Program
	if goos == "windows" {
		name += ".exe"
	}
	return filepath.Join(filepath.Dir(berth), name)
}
