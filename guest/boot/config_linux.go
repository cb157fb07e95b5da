package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthvm/berth/guest/wire"
)

const systemCertificates = "/usr/share/berth/ca-certificates.crt"

// writeConfig writes the Welcome for the engine, and what of /etc depends on it.
func writeConfig(w wire.Welcome) error {
	etc := filepath.Join(runDir, "etc")
	if err := errors.Join(os.Mkdir(runDir, 0o700), os.Mkdir(etc, 0o755)); err != nil {
		return err
	}
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if err := os.WriteFile(welcomePath, text, 0o600); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"hostname": w.Hostname + "\n", "hosts": hosts(w), "resolv.conf": resolvConf(w.Network.DNS),
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return writeCertificates(filepath.Join(etc, "ca-certificates.crt"), w.CABundle)
}

func hosts(w wire.Welcome) string {
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", w.Hostname)
	if w.Network.Host != "" {
		fmt.Fprintf(&b, "%s\thost.docker.internal host.berth.internal\n", w.Network.Host)
	}
	if w.Network.Gateway != "" {
		fmt.Fprintf(&b, "%s\tgateway.docker.internal gateway.berth.internal\n", w.Network.Gateway)
	}
	return b.String()
}

func resolvConf(servers []string) string {
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.String()
}

// writeCertificates makes the bundle at path: the image's own, and extra's.
func writeCertificates(path, extra string) error {
	if extra == "" {
		return os.Symlink(systemCertificates, path)
	}
	bundle, err := os.ReadFile(systemCertificates)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(bundle, strings.TrimSpace(extra)+"\n"...), 0o644)
}
