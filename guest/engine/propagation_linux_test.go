package engine

import "testing"

func TestFindMount(t *testing.T) {
	const table = `20 1 0:5 / / rw,relatime - ext4 /dev/vda rw
21 20 0:6 / /run/a\040b rw,nosuid shared:4 - tmpfs none rw
`
	for id, want := range map[uint64]struct {
		point  string
		shared bool
		fails  bool
	}{20: {"/", false, false}, 21: {"/run/a b", true, false}, 22: {"", false, true}} {
		point, shared, err := findMount(table, id)
		if point != want.point || shared != want.shared || (err != nil) != want.fails {
			t.Errorf("%d: %q, %v, %v", id, point, shared, err)
		}
	}
}
