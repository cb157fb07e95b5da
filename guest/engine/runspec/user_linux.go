package runspec

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxUserFile bounds what is read of a container's passwd and group, in bytes.
const maxUserFile = 8 << 20

// User finds a user in the root file system, by docker's "user[:group]" syntax,
// and returns who that is and the home directory. groups are more groups, by
// name or number.
func User(rootfs, spec string, groups []string) (specs.User, string, error) {
	passwd := openIn(rootfs, "etc/passwd")
	defer closeIf(passwd)
	group := openIn(rootfs, "etc/group")
	defer closeIf(group)
	exec, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bounded(passwd), bounded(group))
	if err != nil {
		return specs.User{}, "", errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	u := specs.User{UID: uint32(exec.Uid), GID: uint32(exec.Gid), AdditionalGids: []uint32{uint32(exec.Gid)}}
	gids := exec.Sgids
	if len(groups) > 0 {
		again := openIn(rootfs, "etc/group")
		defer closeIf(again)
		more, err := user.GetAdditionalGroups(groups, bounded(again))
		if err != nil {
			return specs.User{}, "", errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("unable to find group: %v", err))
		}
		gids = append(gids, more...)
	}
	seen := map[uint32]bool{u.GID: true}
	for _, g := range gids {
		if id := uint32(g); !seen[id] {
			seen[id] = true
			u.AdditionalGids = append(u.AdditionalGids, id)
		}
	}
	return u, exec.Home, nil
}

// openIn opens a file of the root file system, whose symbolic links stay inside.
// It returns nil when there is no such regular file.
func openIn(rootfs, name string) *os.File {
	dir, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), name)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil
	}
	return f
}

func bounded(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return io.LimitReader(f, maxUserFile)
}

func closeIf(f *os.File) {
	if f != nil {
		f.Close()
	}
}
