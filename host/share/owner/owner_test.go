package owner

import "testing"

func TestApply(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Override
		mode uint32
		size int64
		want Stat
	}{
		{"nothing", None, Regular | 0o4755, 1, Stat{Mode: Regular | 0o755, UID: 7, GID: 8}},
		{"an owner", Override{UID: 999, GID: -1}, Regular | 0o644, 1, Stat{Mode: Regular | 0o644, UID: 999, GID: 8}},
		{"set-uid", Override{UID: 0, GID: 0, Mode: Regular | 0o4711}, Regular | 0o711, 1, Stat{Mode: Regular | 0o4711}},
		{"no access", Override{UID: 1, GID: 1, Mode: Regular}, Regular | 0o600, 1, Stat{Mode: Regular, UID: 1, GID: 1}},
		{"changed on the host", Override{UID: 1, GID: 1, Mode: Regular | 0o644}, Regular | 0o755, 1, Stat{Mode: Regular | 0o755, UID: 1, GID: 1}},
		{"a device", Override{UID: -1, GID: -1, Mode: Char | 0o600, Rdev: 259}, Regular | 0o600, 0, Stat{Mode: Char | 0o600, UID: 7, GID: 8, Rdev: 259}},
		{"a device that was written to", Override{UID: -1, GID: -1, Mode: Char | 0o600, Rdev: 259}, Regular | 0o600, 1, Stat{Mode: Regular | 0o600, UID: 7, GID: 8}},
		{"a folder that says it is a file", Override{UID: -1, GID: -1, Mode: Regular | 0o700}, Dir | 0o700, 1, Stat{Mode: Dir | 0o700, UID: 7, GID: 8}},
	} {
		if got := tt.o.Apply(tt.mode, tt.size, 7, 8); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestChange(t *testing.T) {
	p := func(v uint32) *uint32 { return &v }
	for _, tt := range []struct {
		name   string
		before Override
		kind   uint32
		change Change
		want   Override
	}{
		{"chown", None, Regular, Change{UID: p(5)}, Override{UID: 5, GID: -1}},
		{"chown drops set-uid", Override{UID: 1, GID: 1, Mode: Regular | 0o6755}, Regular, Change{GID: p(5)}, Override{UID: 1, GID: 5, Mode: Regular | 0o755}},
		{"chown of a folder keeps set-gid", Override{UID: 1, GID: 1, Mode: Dir | 0o2755}, Dir, Change{GID: p(5)}, Override{UID: 1, GID: 5, Mode: Dir | 0o2755}},
		{"chmod that the host can carry", None, Regular, Change{Mode: p(0o644)}, None},
		{"chmod that it cannot", None, Regular, Change{Mode: p(0o444)}, Override{UID: -1, GID: -1, Mode: Regular | 0o444}},
		{"chmod of a device", Override{UID: -1, GID: -1, Mode: Block | 0o600, Rdev: 1}, Regular, Change{Mode: p(0o660)}, Override{UID: -1, GID: -1, Mode: Block | 0o660, Rdev: 1}},
		{"a write", Override{UID: 0, GID: 0, Mode: Regular | 0o4755}, Regular, Change{KillSetID: true}, Override{UID: 0, GID: 0, Mode: Regular | 0o755}},
	} {
		if got := tt.before.Change(tt.kind, tt.change); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestBorn(t *testing.T) {
	for _, tt := range []struct {
		uid, mode, kind uint32
		want            Override
	}{
		{0, Regular | 0o644, Regular, None},
		{999, Regular | 0o644, Regular, Override{UID: 999, GID: 999}},
		{0, Regular | 0o400, Regular, Override{UID: -1, GID: -1, Mode: Regular | 0o400}},
		{0, FIFO | 0o644, Regular, Override{UID: -1, GID: -1, Mode: FIFO | 0o644}},
		{999, Link | 0o777, Link, None},
	} {
		if got := Born(tt.uid, tt.uid, tt.mode, 0, tt.kind); got != tt.want {
			t.Errorf("Born(%d, %o) = %v, want %v", tt.uid, tt.mode, got, tt.want)
		}
	}
}

// FuzzParse reads what the host's user may have written: what is accepted is
// written the same way again.
func FuzzParse(f *testing.F) {
	f.Add("0:0:100644:0")
	f.Add("-1:-1:0:0")
	f.Add("1:2:777777:3")
	f.Fuzz(func(t *testing.T, s string) {
		o, ok := Parse(s)
		if !ok && o != None {
			t.Errorf("Parse(%q) = %v, though it is void", s, o)
		}
		if again, same := Parse(o.String()); !same || again != o {
			t.Errorf("Parse(%q) = %v, which reads back as %v", s, o, again)
		}
	})
}
