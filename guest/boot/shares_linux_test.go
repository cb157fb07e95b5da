package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire"
)

func TestMountShares(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "share")
	var mu sync.Mutex
	mounted := map[string]uintptr{}
	err := mountShares(dir, []wire.Share{
		{Tag: "a", Path: "/home/u"}, {Tag: "a", Path: "/Users/u"}, {Tag: "b", Path: "/data", ReadOnly: true}, {Tag: "c", Path: "/gone"},
	}, func(s wire.Share, target string, flags uintptr) error {
		tag := s.Tag
		if st, err := os.Stat(target); err != nil || !st.IsDir() {
			t.Errorf("no directory %s to mount on: %v", target, err)
		}
		if tag == "c" {
			return errors.New("no such device")
		}
		mu.Lock()
		defer mu.Unlock()
		if _, twice := mounted[tag]; twice {
			t.Errorf("%s was mounted twice", tag)
		}
		mounted[tag] = flags
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "/gone") || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("error %v does not tell which folder is missing, and why", err)
	}
	const safe = unix.MS_NODEV | unix.MS_NOSUID
	if mounted["a"] != safe || mounted["b"] != safe|unix.MS_RDONLY || len(mounted) != 2 {
		t.Errorf("mounted %v", mounted)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "c.error")); err != nil || string(text) != "no such device" {
		t.Errorf("the engine finds %q, %v", text, err)
	}
}
