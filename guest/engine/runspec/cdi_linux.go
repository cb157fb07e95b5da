package runspec

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// VendorDriver is the driver of device requests that name devices of vendors by the
// Container Device Interface (CDI): "vendor.com/class=name".
const VendorDriver = "cdi"

// VendorDevices names the devices that the CDI specifications in dirs describe, in
// order, and says what is wrong with those specifications.
func VendorDevices(dirs []string) (names, warnings []string) {
	cache := vendorDevices(dirs)
	for file, failed := range cache.GetErrors() {
		for _, err := range failed {
			if !errors.Is(err, fs.ErrNotExist) {
				warnings = append(warnings, fmt.Sprintf("CDI: Error associated with spec file %s: %v", file, err))
			}
		}
	}
	slices.Sort(warnings)
	return cache.ListDevices(), warnings
}

// vendorDevices reads the directories anew: they are small, and watching them would
// take a goroutine for what hardly anybody has.
func vendorDevices(dirs []string) *cdi.Cache {
	cache, _ := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false)) // its error is always nil
	return cache
}

// addRequested does what device requests ask for.
func addRequested(spec *specs.Spec, requests []container.DeviceRequest, dirs []string) error {
	for _, r := range requests {
		switch {
		case r.Driver != VendorDriver || len(dirs) == 0:
			return invalid("could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities)
		case r.Count != 0:
			return invalid("unexpected count in CDI device request")
		case len(r.Options) > 0:
			return invalid("unexpected options in CDI device request")
		case len(r.DeviceIDs) == 0:
			continue
		}
		if _, err := vendorDevices(dirs).InjectDevices(spec, r.DeviceIDs...); err != nil {
			return invalid("CDI device injection failed: %v", err)
		}
	}
	return nil
}
