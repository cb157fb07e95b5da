package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// releases is where the packages of a version are downloaded from.
func (s settings) releases() string {
	return "https://" + module + "/releases/download/v" + s.version + "/"
}

// sum is the checksum of a platform's archive, if it was made.
func (s settings) sum(p platform) (string, error) {
	sum, err := sha256Of(filepath.Join(s.out, s.archiveName(p)))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return sum, err
}

// manifests writes what Homebrew and winget take, for the platforms that were made.
func (s settings) manifests() error {
	formula, err := s.formula()
	if err != nil {
		return err
	}
	files := map[string]string{"berth.rb": formula}
	winget, err := s.winget()
	if err != nil {
		return err
	}
	for name, text := range winget {
		files[name] = text
	}
	for name, text := range files {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(s.out, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// formula is Homebrew's.
func (s settings) formula() (string, error) {
	var sources strings.Builder
	qemu := false
	for _, p := range s.platforms {
		if p.os == "windows" {
			continue
		}
		sum, err := s.sum(p)
		if err != nil {
			return "", err
		}
		when := map[string]string{"linux": "OS.linux?", "darwin": "OS.mac?"}[p.os]
		if cpu := map[string]string{"amd64": "Hardware::CPU.intel?", "arm64": "Hardware::CPU.arm?"}[p.arch]; cpu != "" {
			when += " && " + cpu
		}
		qemu = qemu || p.variant == "qemu" || p.os == "linux"
		fmt.Fprintf(&sources, "  if %s\n    url \"%s%s\"\n    sha256 \"%s\"\n  end\n", when, s.releases(), s.archiveName(p), sum)
	}
	if sources.Len() == 0 {
		return "", nil
	}
	depends := ""
	if qemu {
		depends = "\n  depends_on \"qemu\"\n"
	}
	return `class Berth < Formula
  desc "Containers in a light virtual machine"
  homepage "https://` + module + `"
  version "` + s.version + `"
  license "Apache-2.0"

` + sources.String() + depends + `
  def install
    bash_completion.install "completions/berth.bash" => "berth"
    zsh_completion.install "completions/_berth"
    fish_completion.install "completions/berth.fish"
    libexec.install Dir["*"]
    bin.install_symlink libexec/"berth"
  end

  def caveats
    <<~EOS
      "berth delete --all" removes all machines and their data; run it before you
      uninstall if you want to keep nothing.
    EOS
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/berth --version")
  end
end
`, nil
}

// winget is the three files of a version, by name.
func (s settings) winget() (map[string]string, error) {
	const id, schema = "Berth.Berth", "1.6.0"
	installers := ""
	for _, p := range s.platforms {
		if p.os != "windows" {
			continue
		}
		sum, err := s.sum(p)
		if err != nil {
			return nil, err
		}
		cpu := map[string]string{"amd64": "x64", "arm64": "arm64"}[p.arch]
		installers += fmt.Sprintf("- Architecture: %s\n  InstallerUrl: %s%s\n  InstallerSha256: %s\n  NestedInstallerFiles:\n  - RelativeFilePath: berth-%s-%s\\berth.exe\n    PortableCommandAlias: berth\n",
			cpu, s.releases(), s.archiveName(p), strings.ToUpper(sum), s.version, p)
	}
	if installers == "" {
		return nil, nil
	}
	head := "PackageIdentifier: " + id + "\nPackageVersion: " + s.version + "\n"
	end := func(kind string) string { return "ManifestType: " + kind + "\nManifestVersion: " + schema + "\n" }
	return map[string]string{
		id + ".yaml": head + "DefaultLocale: en-US\n" + end("version"),
		id + ".installer.yaml": head + "InstallerType: zip\nNestedInstallerType: portable\nMinimumOSVersion: 10.0.19041.0\nInstallers:\n" +
			installers + end("installer"),
		id + ".locale.en-US.yaml": head + "PackageLocale: en-US\nPublisher: The Berth authors\nPackageName: Berth\nLicense: Apache-2.0\n" +
			"ShortDescription: Containers in a light virtual machine\nPackageUrl: https://" + module + "\n" + end("defaultLocale"),
	}, nil
}
