package agent

import (
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/jsonstream"
)

// progress sums up how a pull comes along, for the task's message.
type progress struct {
	layers map[string]*jsonstream.Progress
	said   time.Time
}

const sayEvery = 2 * time.Second

// add takes in one message and returns what to say, or "" when it is too soon.
func (p *progress) add(m jsonstream.Message, now time.Time) string {
	if m.Progress == nil || m.Progress.Total <= 0 || m.ID == "" {
		return ""
	}
	p.layers[m.ID] = m.Progress
	if now.Sub(p.said) < sayEvery {
		return ""
	}
	p.said = now
	var have, all int64
	for _, l := range p.layers {
		have += l.Current
		all += l.Total
	}
	return units.HumanSize(float64(have)) + " of " + units.HumanSize(float64(all))
}
