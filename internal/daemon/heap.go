package daemon

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// While much is allocated the heap may grow further before it is collected: a
// manager that many write to would otherwise spend a tenth of its time on that.
// An idle daemon stays as small as it can.
const (
	idlePercent = 100
	busyPercent = 400
	busyExtra   = 32 << 20 // bytes that a busy heap has beyond twice what lives, at the most
	busyRate    = 8 << 20  // bytes allocated a second
	calmAfter   = 5        // seconds below that rate
)

// heap decides how the garbage collector is set, from what is seen once a second.
type heap struct {
	allocated uint64 // bytes since the start
	calm      int    // seconds in a row
	percent   int
}

// next returns the percentage for the next second and whether the daemon has
// just calmed down: then memory can be given back.
func (h *heap) next(allocated, live uint64) (percent int, calmed bool) {
	rate := allocated - h.allocated
	h.allocated = allocated
	if h.calm++; rate >= busyRate {
		h.calm = 0
	}
	was := h.percent
	switch {
	case h.calm == 0:
		extra := min(busyPercent-idlePercent, busyExtra*100/max(live, 1))
		h.percent = idlePercent + int(extra)
	case h.calm >= calmAfter:
		h.percent = idlePercent
	}
	return h.percent, h.percent == idlePercent && was > idlePercent && h.calm > 0
}

// tuneHeap sets the garbage collector until ctx ends.
func tuneHeap(ctx context.Context) error {
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(samples)
	h := heap{allocated: samples[0].Value.Uint64(), percent: idlePercent}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		metrics.Read(samples)
		was := h.percent
		percent, calmed := h.next(samples[0].Value.Uint64(), samples[1].Value.Uint64())
		if percent != was {
			debug.SetGCPercent(percent)
		}
		if calmed {
			debug.FreeOSMemory()
		}
	}
}
