package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	buildxversion "github.com/docker/buildx/version"
	"github.com/docker/cli/cli-plugins/metadata"
	"github.com/docker/cli/cli/command"

	"github.com/berthvm/berth/host/machine"
)

const (
	pluginName      = metadata.NamePrefix + "buildx"
	metadataCommand = metadata.MetadataSubcommandName
)

// tellMetadata answers what a plugin is asked before it is run.
func tellMetadata(w io.Writer) error {
	return json.NewEncoder(w).Encode(metadata.Metadata{
		SchemaVersion:    "0.1.0",
		Vendor:           "Berth",
		Version:          buildxversion.Version,
		ShortDescription: "Docker Buildx",
	})
}

// offerBuildx makes this program the first plugin that compose finds for builds,
// before one that the user may have, whose version could be any.
func offerBuildx(dc *command.DockerCli) error {
	home, err := machine.Locate(os.Getenv)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir := filepath.Join(home.Cache, "cli-plugins")
	if err := link(self, dir); err != nil {
		return fmt.Errorf("cannot offer buildx to compose: %w", err)
	}
	file := dc.ConfigFile() // the copy in memory
	file.CLIPluginsExtraDirs = append([]string{dir}, file.CLIPluginsExtraDirs...)
	return nil
}

// link makes dir hold the program under the plugin's name. Two processes may do
// so at once.
func link(program, dir string) error {
	name := filepath.Join(dir, pluginName)
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	want, err := os.Stat(program)
	if err != nil {
		return err
	}
	if have, err := os.Stat(name); err == nil && os.SameFile(have, want) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fresh := fmt.Sprintf("%s.%d", name, os.Getpid()) // a name that no plugin has
	os.Remove(fresh)
	if err := os.Symlink(program, fresh); err != nil { // on Windows a privilege
		if err := os.Link(program, fresh); err != nil {
			return err
		}
	}
	if err := os.Rename(fresh, name); err != nil {
		os.Remove(fresh)
		return err
	}
	return nil
}
