package hello

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const busybox = "/bin/busybox"

func needBusybox(t *testing.T) []byte {
	t.Helper()
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Skip("needs busybox-static:", err)
	}
	return program
}

func TestAppletsAreWhatBusyboxSays(t *testing.T) {
	names, err := applets(needBusybox(t))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(strings.Fields(string(out)), func(n string) bool { return n == "busybox" })
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("applets\n got %v\nwant %v", names, want)
	}
}

func TestWriteIsReproducible(t *testing.T) {
	needBusybox(t)
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := Write(w, busybox, "amd64"); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two runs differ")
	}
	tr := tar.NewReader(&a)
	for i, want := range []string{"oci-layout", "index.json"} {
		h, err := tr.Next()
		if err != nil || h.Name != want {
			t.Fatalf("entry %d = %v, %v, want %s", i, h, err, want)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	dir := t.TempDir()
	noTable := dir + "/program"
	if err := os.WriteFile(noTable, []byte("\x7fELF [\x00[[\x00 no table"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{noTable, dir + "/missing"} {
		if err := Write(io.Discard, path, "amd64"); err == nil {
			t.Errorf("Write(%s): no error", path)
		}
	}
}
