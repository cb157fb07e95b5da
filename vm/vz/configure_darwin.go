//go:build darwin && cgo

package vz

import (
	"bytes"
	"fmt"

	"github.com/Code-Hex/vz/v3"

	"github.com/berthvm/berth/guest/wire/devices"
)

// configure describes a machine in the framework's terms.
func configure(s spec) (*vz.VirtualMachineConfiguration, error) {
	options := []vz.LinuxBootLoaderOption{vz.WithCommandLine(s.cmdline)}
	if s.initrd != "" {
		options = append(options, vz.WithInitrd(s.initrd))
	}
	loader, err := vz.NewLinuxBootLoader(s.kernel, options...)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	cfg, err := vz.NewVirtualMachineConfiguration(loader, s.cpus, s.memoryBytes)
	if err != nil {
		return nil, err
	}
	for _, part := range []struct {
		name string
		set  func(*vz.VirtualMachineConfiguration, spec) error
	}{
		{"platform", setPlatform},
		{"disks", setDisks},
		{"network", setNetwork},
		{"folders", setFolders},
		{"console", setConsole},
		{"vsock", setVsock},
		{"memory balloon", setBalloon},
		{"entropy", setEntropy},
	} {
		if err := part.set(cfg, s); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return cfg, nil
}

func setPlatform(cfg *vz.VirtualMachineConfiguration, s spec) error {
	fresh := func() ([]byte, error) {
		id, err := vz.NewGenericMachineIdentifier()
		if err != nil {
			return nil, err
		}
		return id.DataRepresentation(), nil
	}
	// The framework makes nothing of data that is no identifier.
	valid := func(data []byte) bool {
		id, err := vz.NewGenericMachineIdentifierWithData(data)
		return err == nil && bytes.Equal(id.DataRepresentation(), data)
	}
	data, err := identifier(s.identifier, fresh, valid)
	if err != nil {
		return err
	}
	id, err := vz.NewGenericMachineIdentifierWithData(data)
	if err != nil {
		return err
	}
	platform, err := vz.NewGenericPlatformConfiguration(vz.WithGenericMachineIdentifier(id))
	if err != nil {
		return err
	}
	if s.nested && vz.IsNestedVirtualizationSupported() {
		if err := platform.SetNestedVirtualizationEnabled(true); err != nil {
			return fmt.Errorf("nested virtualization: %w", err)
		}
	}
	cfg.SetPlatformVirtualMachineConfiguration(platform)
	return nil
}

func setDisks(cfg *vz.VirtualMachineConfiguration, s spec) error {
	sync := vz.DiskImageSynchronizationModeFull
	if s.sync == SyncFsync {
		sync = vz.DiskImageSynchronizationModeFsync
	}
	var devices []vz.StorageDeviceConfiguration
	for _, d := range s.disks {
		// Automatic caching is known to corrupt Linux guests' filesystems.
		file, err := vz.NewDiskImageStorageDeviceAttachmentWithCacheAndSync(d.Path, d.ReadOnly, vz.DiskImageCachingModeCached, sync)
		if err != nil {
			return fmt.Errorf("%s: %w", d.Path, err)
		}
		device, err := vz.NewVirtioBlockDeviceConfiguration(file)
		if err != nil {
			return fmt.Errorf("%s: %w", d.Path, err)
		}
		if d.Serial != "" {
			if err := device.SetBlockDeviceIdentifier(d.Serial); err != nil {
				return fmt.Errorf("serial %q: %w", d.Serial, err)
			}
		}
		devices = append(devices, device)
	}
	cfg.SetStorageDevicesVirtualMachineConfiguration(devices)
	return nil
}

func setNetwork(cfg *vz.VirtualMachineConfiguration, s spec) error {
	if s.network == nil {
		return nil
	}
	cable, err := vz.NewFileHandleNetworkDeviceAttachment(s.network)
	if err != nil {
		return err
	}
	device, err := vz.NewVirtioNetworkDeviceConfiguration(cable)
	if err != nil {
		return err
	}
	mac, err := vz.NewMACAddress(s.mac)
	if err != nil {
		return err
	}
	device.SetMACAddress(mac)
	cfg.SetNetworkDevicesVirtualMachineConfiguration([]*vz.VirtioNetworkDeviceConfiguration{device})
	return nil
}

// setFolders attaches the folders that the framework serves: shares, and Rosetta's.
func setFolders(cfg *vz.VirtualMachineConfiguration, s spec) error {
	var all []vz.DirectorySharingDeviceConfiguration
	add := func(tag string, share vz.DirectoryShare) error {
		device, err := vz.NewVirtioFileSystemDeviceConfiguration(tag)
		if err != nil {
			return fmt.Errorf("%s: %w", tag, err)
		}
		device.SetDirectoryShare(share)
		all = append(all, device)
		return nil
	}
	for _, f := range s.shares {
		dir, err := vz.NewSharedDirectory(f.Path, f.ReadOnly)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		share, err := vz.NewSingleDirectoryShare(dir)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		if err := add(f.Tag, share); err != nil {
			return err
		}
	}
	if s.rosetta {
		share, err := rosettaShare()
		if err != nil {
			return fmt.Errorf("Rosetta: %w", err)
		}
		if share != nil {
			if err := add(devices.RosettaTag, share); err != nil {
				return err
			}
		}
	}
	if len(all) > 0 {
		cfg.SetDirectorySharingDevicesVirtualMachineConfiguration(all)
	}
	return nil
}

func setConsole(cfg *vz.VirtualMachineConfiguration, s spec) error {
	files, err := vz.NewFileHandleSerialPortAttachment(s.consoleIn, s.consoleOut)
	if err != nil {
		return err
	}
	port, err := vz.NewVirtioConsoleDeviceSerialPortConfiguration(files)
	if err != nil {
		return err
	}
	cfg.SetSerialPortsVirtualMachineConfiguration([]*vz.VirtioConsoleDeviceSerialPortConfiguration{port})
	return nil
}

func setVsock(cfg *vz.VirtualMachineConfiguration, _ spec) error {
	device, err := vz.NewVirtioSocketDeviceConfiguration()
	if err != nil {
		return err
	}
	cfg.SetSocketDevicesVirtualMachineConfiguration([]vz.SocketDeviceConfiguration{device})
	return nil
}

func setBalloon(cfg *vz.VirtualMachineConfiguration, _ spec) error {
	device, err := vz.NewVirtioTraditionalMemoryBalloonDeviceConfiguration()
	if err != nil {
		return err
	}
	cfg.SetMemoryBalloonDevicesVirtualMachineConfiguration([]vz.MemoryBalloonDeviceConfiguration{device})
	return nil
}

func setEntropy(cfg *vz.VirtualMachineConfiguration, _ spec) error {
	device, err := vz.NewVirtioEntropyDeviceConfiguration()
	if err != nil {
		return err
	}
	cfg.SetEntropyDevicesVirtualMachineConfiguration([]*vz.VirtioEntropyDeviceConfiguration{device})
	return nil
}
