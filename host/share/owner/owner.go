// Package owner is how a shared folder's servers remember what the guest's programs
// did to owners and modes, which on the host cannot be done or must not: there
// everything belongs to the user who runs Berth, and no set-id bit is ever set.
// Package share's documentation says what the guest sees of it.
//
// Modes, ids and device numbers are Linux's, whatever the host.
package owner

import (
	"fmt"
	"strconv"
	"strings"
)

// Xattr is the extended attribute that holds an Override, as String writes it.
const Xattr = "user.berth.stat"

// The kinds of files, and the bits of modes that matter here.
const (
	KindMask = 0o170000
	Socket   = 0o140000
	Link     = 0o120000
	Regular  = 0o100000
	Block    = 0o060000
	Dir      = 0o040000
	Char     = 0o020000
	FIFO     = 0o010000

	setID = 0o6000
)

// Override is what lies over what the host says of a file.
type Override struct {
	UID, GID int64  // -1: whoever asks
	Mode     uint32 // with its kind; 0: the host's
	Rdev     uint32
}

// None overrides nothing.
var None = Override{UID: -1, GID: -1}

// String is the Override's form on the host: "uid:gid:mode:rdev", with the mode in
// octal.
func (o Override) String() string {
	return fmt.Sprintf("%d:%d:%o:%d", o.UID, o.GID, o.Mode, o.Rdev)
}

// Parse reads what String has written. Whatever is wrong with it makes it None: the
// host's user may have written it.
func Parse(s string) (Override, bool) {
	part := strings.Split(s, ":")
	if len(part) != 4 {
		return None, false
	}
	uid, err1 := strconv.ParseInt(part[0], 10, 64)
	gid, err2 := strconv.ParseInt(part[1], 10, 64)
	mode, err3 := strconv.ParseUint(part[2], 8, 32)
	rdev, err4 := strconv.ParseUint(part[3], 10, 32)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			return None, false
		}
	}
	const maxID = 1<<32 - 2
	if uid < -1 || uid > maxID || gid < -1 || gid > maxID || mode > 0o177777 {
		return None, false
	}
	return Override{uid, gid, uint32(mode), uint32(rdev)}, true
}

// Kept tells whether a kind of file on the host can have an Override: links and the
// host's own special files cannot.
func Kept(kind uint32) bool { return kind == Regular || kind == Dir }

// IsSpecial tells whether a kind is a device's, a socket's or a FIFO's, which on
// the host are regular files.
func IsSpecial(kind uint32) bool {
	return kind == Char || kind == Block || kind == FIFO || kind == Socket
}

// HostMode is the permission bits that a guest's mode gets on the host: the owner
// keeps access and set-id bits stay away.
func HostMode(mode, kind uint32) uint32 {
	if kind == Dir {
		return mode&0o777 | 0o700
	}
	return mode&0o777 | 0o600
}

// Born is the Override of a file that the guest has just made: by a user, with a
// mode that has a kind. It is kind on the host.
func Born(uid, gid, mode, rdev, kind uint32) Override {
	o := None
	if uid != 0 || gid != 0 {
		o.UID, o.GID = int64(uid), int64(gid)
	}
	if IsSpecial(mode&KindMask) || mode&0o7777 != HostMode(mode, kind) {
		o.Mode, o.Rdev = mode, rdev
	}
	if kind == Link {
		return None
	}
	return o
}

// Stat is what a guest sees.
type Stat struct {
	Mode, UID, GID, Rdev uint32
}

// Apply lays o over what the host says to a user of the guest: the mode with its
// kind, and the size. One who changed the mode on the host overrides o.
func (o Override) Apply(mode uint32, size int64, uid, gid uint32) Stat {
	s := Stat{Mode: mode &^ setID, UID: uid, GID: gid}
	if o.UID >= 0 {
		s.UID = uint32(o.UID)
	}
	if o.GID >= 0 {
		s.GID = uint32(o.GID)
	}
	kind := mode & KindMask
	if o.Mode == 0 || HostMode(o.Mode, kind) != mode&0o777 {
		return s
	}
	switch own := o.Mode & KindMask; {
	case own == kind:
		s.Mode = o.Mode
	case kind == Regular && size == 0 && IsSpecial(own):
		s.Mode, s.Rdev = o.Mode, o.Rdev
	}
	return s
}

// Change is what a guest's chown and chmod want; nil leaves as it is.
type Change struct {
	UID, GID, Mode *uint32
	KillSetID      bool // as a write does
}

// Empty tells whether there is nothing to change.
func (c Change) Empty() bool {
	return c.UID == nil && c.GID == nil && c.Mode == nil && !c.KillSetID
}

// Change returns the Override after a change to a file that is kind on the host,
// where its mode becomes HostMode of the one in c.
func (o Override) Change(kind uint32, c Change) Override {
	if c.UID != nil {
		o.UID = int64(*c.UID)
	}
	if c.GID != nil {
		o.GID = int64(*c.GID)
	}
	if c.Mode != nil {
		own := kind
		if IsSpecial(o.Mode & KindMask) {
			own = o.Mode & KindMask
		}
		o.Mode = own | *c.Mode&0o7777
		if o.Mode == own|HostMode(*c.Mode, kind) && o.UID < 0 && o.GID < 0 && !IsSpecial(own) {
			o.Mode = 0 // the host's inode says it all
		}
		return o
	}
	if kind == Regular && (c.UID != nil || c.GID != nil || c.KillSetID) {
		o.Mode &^= setID
	}
	return o
}

// Visible tells whether the guest may use an extended attribute: users' own only.
func Visible(attr string) bool {
	return strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "user.berth.")
}
