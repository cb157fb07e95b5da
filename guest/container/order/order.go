package order

// Version is the first byte of an encoded Order.
const Version = 4

// The engine's single-byte message.
const Proceed = 'g'

// The first byte of the process's messages.
const (
	Hooks   = 'h'
	Console = 'c'
	Ready   = 'r'
	Going   = 'x'
	Failed  = 'e' // kind, errno as two bytes (little-endian), text
)

// The kinds of a Failed message.
const (
	KindSetup   = 's' // the container cannot be built
	KindProgram = 'p' // the user's program cannot be executed
)

// The first byte of each message that carries a part of an encoded Order.
const (
	More = 'm'
	Last = 'l'
)

// ChunkSize is the largest part of an Order in one message, in bytes.
const ChunkSize = 64 << 10

// MaxFiles is how many descriptors can come with an Order: what the kernel passes
// in one message.
const MaxFiles = 253

// MaxSize is the largest encoded Order, in bytes.
const MaxSize = 16 << 20

// ControlFD is the socket's descriptor in the process.
const ControlFD = 3

// None stands for no file.
const None = -1

// Warm is in the process's environment when it begins before there is an Order: it
// lets go of the machine's files meanwhile, so the Order brings all it needs as
// trees.
const Warm = "BERTH_WARM"

// An Order is all that a container's first process needs to know. Files are named
// by their place in the list of descriptors that came with the Order, None where
// there is none. The first three are the standard ones.
type Order struct {
	Exec        bool // join a container instead of building one
	ParentHooks bool
	NewConsole  bool // allocate a terminal in the container's devpts
	Start       int  // listening socket that brings the start
	Pending     int  // regular file of one byte, which is emptied when the program is executed
	MountNS     int  // to join: for Exec, or with Guest
	Extra       int  // first of the files that become 3, 4, ...
	ExtraCount  int
	Joins       []Join
	NewNet      bool // for a warm process, which has none of its own

	TimeOffsets string // for /proc/self/timens_offsets; "" makes no time namespace
	NewTime     bool
	Loopback    bool // switch lo on
	Keyring     string
	Hostname    string
	Domainname  string
	Sysctls     []Pair

	Rootfs      string
	RootTree    int    // the root file system as a detached tree, in place of Rootfs; for Exec the root directory of a guest
	Guest       bool   // the mount namespace is somebody else's, too: its root stays
	Propagation uint64 // MS_SHARED and so on for the root mount; 0: a slave of the machine's
	PropRec     bool
	ShareRoot   bool // keep the caller's peer groups
	RootRO      bool
	Mounts      []Mount
	Devices     []Device
	BindDevices bool // in a user namespace devices cannot be made
	Masked      []string
	Readonly    []string
	CreateHooks []Hook
	StartHooks  []Hook

	Process Process
}

// Join is a namespace to join.
type Join struct{ File, Kind int }

// Pair is a name and a value.
type Pair struct{ Key, Value string }

// Mount is one mount, in terms of the kernel's mount API.
type Mount struct {
	Dest   string
	Type   string // file system type; "" for a bind mount
	Source string
	Tree   int // a detached tree to attach, made by the engine, or None

	Recursive   bool // bind
	Params      []Pair
	Attrs       uint64 // MOUNT_ATTR_* to set
	Clear       uint64 // to clear
	RecAttrs    uint64 // the same for the whole tree
	RecClear    uint64
	Propagation uint64 // MS_SHARED and so on, 0 keeps
	RecProp     bool
	CopyUp      bool // tmpfs: begin with what the image has there
	Remount     bool
}

// Device is one device node.
type Device struct {
	Path     string
	Mode     uint32 // type and permissions
	Dev      uint64
	UID, GID uint32
}

// Hook is one program that runs inside.
type Hook struct {
	Path      string
	Args, Env []string
	TimeoutMS int    // 0: none
	State     string // for its standard input
}

// Rlimit is one resource limit.
type Rlimit struct {
	Kind       int
	Soft, Hard uint64
}

// Process is the program and what it may do.
type Process struct {
	Args, Env []string
	Cwd       string
	UID, GID  uint32
	Groups    []uint32
	Umask     int      // -1 keeps
	Rlimits   []Rlimit // the engine has raised what this process may only lower

	Terminal      bool
	Height, Width int

	SetCaps                                          bool
	Bounding, Effective, Inheritable, Permitted, Amb uint64
	NoNewPrivs                                       bool
	IOPriority                                       int // the kernel's ioprio; -1 keeps
	Sched                                            []byte
	Personality                                      int64 // -1 keeps
	MemPolicy                                        int   // set_mempolicy's mode; -1 keeps
	MemNodes                                         []byte
	FinalCPUs                                        []byte // affinity mask

	SeccompFlags uint32
	Seccomp      []byte // struct sock_filter, in the machine's byte order
}
