package span

import (
	"strconv"
	"testing"
)

func TestRingKeepsTheLatest(t *testing.T) {
	var r Ring
	if len(r.All()) != 0 {
		t.Error("an empty ring has spans")
	}
	for i := range size + 3 {
		r.Begin(strconv.Itoa(i), "x")()
	}
	all := r.All()
	if len(all) != size || all[0].Name != "3" || all[size-1].Name != strconv.Itoa(size+2) {
		t.Errorf("got %d spans, from %s to %s", len(all), all[0].Name, all[len(all)-1].Name)
	}
}
