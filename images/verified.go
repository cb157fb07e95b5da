package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"time"
)

// verifiedName is the file in an image's directory that remembers which files
// were verified. A file that has not changed since is not hashed again: that
// would be a tenth of a start. What changes a file's content changes its ctime,
// which only root can set.
const verifiedName = ".verified"

// settled is how old a change of a file must be for a later one to get another
// time stamp.
const settled = 2 * time.Second

// verified is the content of that file.
type verified struct {
	Manifest string              `json:"manifest"` // SHA-256 of the manifest
	Files    map[string]identity `json:"files"`
}

// identity tells a file from every other, and from itself with other content.
type identity struct {
	Device  uint64 `json:"device"`
	Inode   uint64 `json:"inode"`
	Size    int64  `json:"size"`
	Changed int64  `json:"changed"`  // ctime, nanoseconds of the Unix epoch
	ModTime int64  `json:"modified"` // mtime, likewise
}

// readVerified returns what was remembered for this manifest, or nothing.
func readVerified(dir string, manifest []byte) verified {
	none := verified{Manifest: sumOf(manifest), Files: map[string]identity{}}
	data, err := os.ReadFile(filepath.Join(dir, verifiedName))
	if err != nil {
		return none
	}
	var v verified
	if json.Unmarshal(data, &v) != nil || v.Manifest != none.Manifest || v.Files == nil {
		return none
	}
	return v
}

// write remembers v, if the directory can be written to; else the next Open
// hashes again.
func (v verified) write(dir string) {
	data, err := json.Marshal(v)
	if err != nil {
		return
	}
	path := filepath.Join(dir, verifiedName)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return
	}
	tmp, err := os.CreateTemp(dir, verifiedName+"-")
	if err != nil {
		return
	}
	_, err = tmp.Write(data)
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
}

// unchanged reports whether the file is the one remembered.
func (v verified) unchanged(name string, info os.FileInfo) bool {
	now, ok := identify(info)
	then, known := v.Files[name]
	return ok && known && now == then
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
