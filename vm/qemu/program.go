package qemu

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"time"

	"github.com/berthvm/berth/vm"
)

// version is QEMU's: major, minor, micro.
type version [3]int

// minVersion is the first with -netdev stream.
var minVersion = version{7, 2, 0}

// String writes the version as QEMU does.
func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// less tells whether v is older than w.
func (v version) less(w version) bool {
	for i := range v {
		if v[i] != w[i] {
			return v[i] < w[i]
		}
	}
	return false
}

// program is a QEMU that can be run.
type program struct {
	path    string
	version version
	sandbox bool // it was built with seccomp
}

// findProgram looks for QEMU and asks it what it is. binary may be empty.
func findProgram(ctx context.Context, binary, arch string) (program, error) {
	path, err := lookPath(binary, arch)
	if err != nil {
		if binary == "" {
			binary = programName(arch)
		}
		return program{}, fmt.Errorf("%w: %s was not found: %s", vm.ErrUnavailable, binary, remedy(runtime.GOOS, arch))
	}
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(limit, path, "-help")
	cmd.WaitDelay = time.Second
	help, err := cmd.Output()
	if ctx.Err() != nil {
		return program{}, ctx.Err()
	} else if err != nil {
		return program{}, fmt.Errorf("%w: %s does not run: %w: %s", vm.ErrUnavailable, path, err, remedy(runtime.GOOS, arch))
	}
	p := program{path: path, sandbox: bytes.Contains(help, []byte("\n-sandbox "))}
	if p.version, err = parseVersion(help); err != nil {
		return program{}, fmt.Errorf("%w: %s: %w", vm.ErrUnavailable, path, err)
	}
	if p.version.less(minVersion) {
		return program{}, fmt.Errorf("%w: %s is QEMU %v, but %v or newer is needed: %s", vm.ErrUnavailable, path, p.version, minVersion, remedy(runtime.GOOS, arch))
	}
	return p, nil
}

func programName(arch string) string { return "qemu-system-" + qemuArch(arch) }

// lookPath finds the program in PATH, or where packages put it: programs that no
// shell has started lack what the user's shell adds to PATH.
func lookPath(binary, arch string) (string, error) {
	if binary != "" {
		return exec.LookPath(binary)
	}
	path, err := exec.LookPath(programName(arch))
	if err == nil {
		return path, nil
	}
	for _, dir := range usualDirs(runtime.GOOS, os.Getenv) {
		if path, derr := exec.LookPath(filepath.Join(dir, programName(arch))); derr == nil {
			return path, nil
		}
	}
	return "", err
}

// usualDirs are the directories where a host's packages put QEMU.
func usualDirs(goos string, getenv func(string) string) []string {
	switch goos {
	case "darwin":
		return []string{"/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin"} // Homebrew on both kinds of Mac, MacPorts
	case "windows":
		var dirs []string
		for _, name := range []string{"ProgramFiles", "ProgramW6432"} {
			if base := getenv(name); base != "" {
				dirs = append(dirs, filepath.Join(base, "qemu"))
			}
		}
		return append(dirs, `C:\msys64\ucrt64\bin`, `C:\msys64\mingw64\bin`)
	}
	return nil
}

var versionPattern = regexp.MustCompile(`QEMU emulator version (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?`)

// parseVersion finds the version in what QEMU says of itself.
func parseVersion(text []byte) (version, error) {
	m := versionPattern.FindSubmatch(text)
	if m == nil {
		return version{}, fmt.Errorf("it does not say which version of QEMU it is")
	}
	var v version
	for i := range v {
		if len(m[i+1]) > 0 {
			v[i], _ = strconv.Atoi(string(m[i+1])) // at most four digits
		}
	}
	return v, nil
}

// qemuArch is QEMU's name for a GOARCH.
func qemuArch(arch string) string {
	switch arch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return arch
}

// remedy says how to install QEMU.
func remedy(goos, arch string) string {
	switch goos {
	case "darwin":
		return "install it with `brew install qemu`"
	case "windows":
		return "install it with `winget install SoftwareFreedomConservancy.QEMU`"
	}
	pkg := "qemu-system-x86"
	if arch == "arm64" {
		pkg = "qemu-system-arm"
	}
	return "install it with `sudo apt-get install " + pkg + "`, or your distribution's package of QEMU"
}
