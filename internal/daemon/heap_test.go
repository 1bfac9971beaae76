package daemon

import "testing"

func TestTheHeapGrowsWhileMuchIsAllocated(t *testing.T) {
	const mb = 1 << 20
	h := heap{percent: idlePercent}
	var total uint64
	for i, c := range []struct {
		rate, live uint64
		percent    int
		calmed     bool
	}{
		{1 * mb, 8 * mb, 100, false},
		{20 * mb, 8 * mb, 400, false},
		{20 * mb, 32 * mb, 200, false}, // 32 MB more, not 96
		{20 * mb, 3200 * mb, 101, false},
		{20 * mb, 0, 400, false},
		{1 * mb, 8 * mb, 400, false},
		{9 * mb, 8 * mb, 400, false}, // not calm yet
		{1 * mb, 8 * mb, 400, false},
		{0, 8 * mb, 400, false},
		{0, 8 * mb, 400, false},
		{0, 8 * mb, 400, false},
		{0, 8 * mb, 100, true},
		{0, 8 * mb, 100, false},
		{20 * mb, 8 * mb, 400, false},
	} {
		total += c.rate
		if p, calmed := h.next(total, c.live); p != c.percent || calmed != c.calmed {
			t.Errorf("second %d: %d %%, calmed %v; want %d, %v", i, p, calmed, c.percent, c.calmed)
		}
	}
}
