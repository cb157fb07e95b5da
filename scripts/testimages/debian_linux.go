package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// unneeded is removed from a root, and kept out of it when packages come.
var unneeded = []string{"/usr/share/doc", "/usr/share/man", "/usr/share/info", "/usr/share/locale", "/usr/share/lintian"}

// bootstrap makes Debian's smallest root that has apt.
func bootstrap(ctx context.Context, root string) error {
	sources, err := hostSources(ctx)
	if err != nil {
		return err
	}
	first := sources[0]
	if err := command(ctx, "debootstrap", "--variant=minbase", first.suite, root, first.uri); err != nil {
		return err
	}
	var list, dpkg strings.Builder
	for _, s := range sources {
		fmt.Fprintf(&list, "deb %s %s main\n", s.uri, s.suite)
	}
	for _, dir := range unneeded {
		fmt.Fprintf(&dpkg, "path-exclude %s/*\n", dir)
	}
	checks, err := aptSettings(ctx, "Acquire::Check-")
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"etc/apt/sources.list":        list.String(),
		"etc/apt/apt.conf.d/90small":  "APT::Install-Recommends \"0\";\nAcquire::Languages \"none\";\n" + checks,
		"etc/dpkg/dpkg.cfg.d/90small": dpkg.String(),
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return tidy(root)
}

// source is where packages come from.
type source struct{ uri, suite string }

// hostSources are those of this host that are Debian's, the suite itself first.
func hostSources(ctx context.Context) ([]source, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI) $(RELEASE)", "Created-By: Packages").Output()
	if err != nil {
		return nil, fmt.Errorf("apt-get indextargets: %w", err)
	}
	var found []source
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 4 || f[0] != "Debian" || f[1] != "main" {
			continue
		}
		s := source{strings.TrimSuffix(f[2], "/"), f[3]}
		if strings.Contains(s.suite, "-") {
			found = append(found, s)
		} else {
			found = append([]source{s}, found...)
		}
	}
	if len(found) == 0 || strings.Contains(found[0].suite, "-") {
		return nil, errors.New("this host's apt knows no Debian repository: run \"apt-get update\" on a Debian host")
	}
	return found, nil
}

// aptSettings are this host's settings of apt under a name, as a configuration.
func aptSettings(ctx context.Context, under string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return "", fmt.Errorf("apt-config: %w", err)
	}
	var settings strings.Builder
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, under) {
			settings.WriteString(line)
		}
	}
	return settings.String(), nil
}

// install installs packages in a root, with this host's way into the network.
func install(ctx context.Context, root string, packages []string) error {
	lent, err := lend(ctx, root)
	defer func() {
		for _, name := range lent {
			os.Remove(name)
		}
	}()
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"apt-get", "-q", "update"},
		append([]string{"apt-get", "-q", "-y", "--no-install-recommends", "install"}, packages...),
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Pdeathsig: syscall.SIGKILL}
		cmd.Dir = "/"
		cmd.Env = []string{path, silent, "HOME=/root", "LC_ALL=C"}
		cmd.Path = "/usr/bin/apt-get" // in the root
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args[:3], " "), err, lastLines(text))
		}
	}
	return tidy(root)
}

// lend puts files into a root for the time of an installation: the host's
// resolvers and proxies, a refusal to start services, and a word to postgres not to
// make a database.
func lend(ctx context.Context, root string) (lent []string, err error) {
	acquire, err := aptSettings(ctx, "Acquire::http")
	if err != nil {
		return nil, err
	}
	resolvers, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil, err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name, text string
		mode       os.FileMode
	}{
		{"etc/resolv.conf", string(resolvers), 0o644},
		{"etc/hosts", string(hosts), 0o644},
		{"etc/apt/apt.conf.d/99host", acquire, 0o644},
		{"etc/apt/apt.conf.d/99sandbox", "APT::Sandbox::User \"root\";\n", 0o644},
		{"usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755},
		{"etc/postgresql-common/createcluster.conf", "create_main_cluster = false\n", 0o644},
	} {
		name := filepath.Join(root, f.name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return lent, err
		}
		os.Remove(name)
		lent = append(lent, name)
		if err := os.WriteFile(name, []byte(f.text), f.mode); err != nil {
			return lent, err
		}
	}
	return lent, nil
}

// tidy removes what a root need not carry.
func tidy(root string) error {
	for _, pattern := range append([]string{"/var/lib/apt/lists/*", "/var/cache/apt/*", "/var/cache/debconf/*-old", "/var/log/*.log", "/var/log/apt/*",
		"/etc/resolv.conf", "/tmp/*"}, unneeded...) {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		for _, name := range found {
			if err := os.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	return nil
}
