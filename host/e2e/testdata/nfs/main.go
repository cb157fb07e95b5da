// Command nfs serves a directory by NFS 3 on the host's loopback, on the port that
// it prints, until its standard input ends.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"
)

// folder is a directory with what billy's own leaves out.
type folder struct {
	billy.Filesystem
	root string
}

func (f folder) Chmod(name string, mode os.FileMode) error {
	return os.Chmod(filepath.Join(f.root, name), mode)
}

func (f folder) Lchown(name string, uid, gid int) error {
	return os.Lchown(filepath.Join(f.root, name), uid, gid)
}

func (f folder) Chown(name string, uid, gid int) error {
	return os.Chown(filepath.Join(f.root, name), uid, gid)
}

func (f folder) Chtimes(name string, accessed, modified time.Time) error {
	return os.Chtimes(filepath.Join(f.root, name), accessed, modified)
}

func main() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	log.Fatal(nfs.Serve(l, helpers.NewCachingHandler(helpers.NewNullAuthHandler(folder{osfs.New(os.Args[1]), os.Args[1]}), 1024)))
}
