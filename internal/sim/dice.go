package sim

import (
	"hash/fnv"
	"math/rand"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
)

// dice is a source of chance. Whoever runs beside others has dice of its own: then
// what it throws does not depend on who came first, and a seed replays.
type dice struct {
	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

func newDice(seed int64, whose string) *dice {
	h := fnv.New64a()
	h.Write([]byte(whose))
	return &dice{rng: rand.New(rand.NewSource(seed ^ int64(h.Sum64())))}
}

// NewID returns an id out of the seed.
func (d *dice) NewID() string {
	b := make([]byte, 16)
	d.mu.Lock()
	d.rng.Read(b)
	d.mu.Unlock()
	return cluster.Base36(b, cluster.IDLen)
}

// Random returns a time in [0, upTo).
func (d *dice) Random(upTo time.Duration) time.Duration {
	if upTo <= 0 {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Duration(d.rng.Int63n(int64(upTo)))
}

// Intn returns a number in [0, n).
func (d *dice) Intn(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.Intn(n)
}
