package compute

import (
	"encoding/json"
	"strconv"
	"strings"
)

// The parts of the system's schema that are used here. Fields are named as there.
type (
	document struct {
		Owner                             string
		SchemaVersion                     version
		ShouldTerminateOnLastHandleClosed bool
		VirtualMachine                    virtualMachine
	}
	version        struct{ Major, Minor int }
	virtualMachine struct {
		StopOnReset     bool
		Chipset         chipset
		ComputeTopology topology
		Devices         devices
		RestoreState    *restoreState `json:",omitempty"`
	}
	chipset struct {
		UseUtc            bool
		LinuxKernelDirect linuxKernelDirect
	}
	linuxKernelDirect struct {
		KernelFilePath string
		InitRdPath     string `json:",omitempty"`
		KernelCmdLine  string
	}
	topology struct {
		Memory    memory
		Processor processor
	}
	memory struct {
		SizeInMB              int
		AllowOvercommit       bool
		EnableDeferredCommit  bool
		EnableColdDiscardHint bool
	}
	processor struct{ Count int }
	devices   struct {
		Scsi     map[string]controller
		HvSocket hvSocket
		ComPorts map[string]comPort `json:",omitempty"`
	}
	controller struct{ Attachments map[string]attachment }
	attachment struct {
		Type        string
		Path        string
		ReadOnly    bool `json:",omitempty"`
		CachingMode string
	}
	hvSocket       struct{ HvSocketConfig hvSocketConfig }
	hvSocketConfig struct {
		DefaultBindSecurityDescriptor    string
		DefaultConnectSecurityDescriptor string
	}
	comPort      struct{ NamedPipe string }
	restoreState struct{ SaveStateFilePath string }
)

// Document is the design as the system reads it. The guest's memory is the host's
// as far as the guest uses it: it is committed at the first touch, and taken back
// when the guest says, by hints, that it is free. A guest that resets itself stops:
// the system cannot load its kernel a second time.
func (d Design) Document() []byte {
	m := virtualMachine{
		StopOnReset: true,
		Chipset: chipset{UseUtc: true, LinuxKernelDirect: linuxKernelDirect{
			KernelFilePath: d.Kernel, InitRdPath: d.Initrd, KernelCmdLine: d.Cmdline,
		}},
		ComputeTopology: topology{
			Memory:    memory{SizeInMB: d.MemoryMiB, AllowOvercommit: true, EnableDeferredCommit: true, EnableColdDiscardHint: true},
			Processor: processor{Count: d.CPUs},
		},
		Devices: devices{Scsi: d.scsi(), HvSocket: hvSocket{hvSocketConfig{d.access(), d.access()}}},
	}
	if d.Console != "" {
		m.Devices.ComPorts = map[string]comPort{"0": {NamedPipe: d.Console}}
	}
	if d.Restore != "" {
		m.RestoreState = &restoreState{SaveStateFilePath: d.Restore}
	}
	return encode(document{
		Owner: "berth", SchemaVersion: version{2, 3}, ShouldTerminateOnLastHandleClosed: true, VirtualMachine: m,
	})
}

// scsi attaches the disks. A guest's flush of a cached disk reaches the medium.
func (d Design) scsi() map[string]controller {
	disks := map[string]attachment{}
	for lun, disk := range d.Disks {
		disks[strconv.Itoa(lun)] = attachment{Type: "VirtualDisk", Path: disk.Path, ReadOnly: disk.ReadOnly, CachingMode: "Cached"}
	}
	return map[string]controller{"0": {Attachments: disks}}
}

// access says in SDDL who may dial the guest's sockets, and listen to its calls.
func (d Design) access() string {
	s := "D:P(A;;FA;;;SY)(A;;FA;;;BA)"
	if d.User != "" {
		s += "(A;;FA;;;" + d.User + ")"
	}
	return s
}

// PipeAccess is the SDDL of a pipe for the system, administrators, and whom the SIDs
// name.
func PipeAccess(sids ...string) string {
	s := "D:P(A;;GA;;;SY)(A;;GA;;;BA)"
	for _, sid := range sids {
		s += "(A;;GA;;;" + sid + ")"
	}
	return s
}

// modification changes a machine that runs.
type modification struct {
	ResourcePath string
	RequestType  string
	Settings     any
}

// memoryChange sets how much memory the guest has.
func memoryChange(mib int) []byte {
	return encode(modification{"VirtualMachine/ComputeTopology/Memory/SizeInMB", "Update", mib &^ 1})
}

// saveOptions are those of a save to a file.
func saveOptions(path string) []byte {
	return encode(struct{ SaveType, SaveStateFilePath string }{"ToFile", path})
}

// shutDownOptions ask the guest's kernel, by its driver for Hyper-V.
func shutDownOptions() []byte {
	return encode(struct{ Mechanism, Type string }{"IntegrationService", "Shutdown"})
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of strings and numbers
	}
	return b
}

// exitStatus is the document of a machine's end.
type exitStatus struct {
	Status   int32 // an HRESULT
	ExitType string
}

// exit reads the document of a machine's end. The types of an end have had several
// names over the versions of Windows.
func exit(document string) Event {
	e := Event{Exited: true}
	var s exitStatus
	if document == "" || json.Unmarshal([]byte(document), &s) != nil {
		return e
	}
	kind := strings.ToLower(s.ExitType)
	switch {
	case strings.Contains(kind, "reboot"), strings.Contains(kind, "reset"):
		e.Reset = true
	case strings.Contains(kind, "forced"):
		e.Forced = true
	case strings.Contains(kind, "unexpected"), s.Status < 0:
		e.Failure = "Hyper-V has ended the machine (" + s.ExitType + ", " + hresult(s.Status) + "): see the event log of Hyper-V-Worker"
	}
	return e
}

func hresult(code int32) string {
	return "0x" + strings.ToUpper(strconv.FormatUint(uint64(uint32(code)), 16))
}
