package agent

import (
	"testing"

	"github.com/skep-dev/skep/internal/cluster"
)

func TestNext(t *testing.T) {
	const (
		ready, running, complete = cluster.StateReady, cluster.StateRunning, cluster.StateComplete
		shut, gone               = cluster.StateShutdown, cluster.StateRemove
	)
	for _, c := range []struct {
		desired cluster.State
		gone    bool
		have    cluster.State
		removed bool
		want    step
	}{
		{running, false, cluster.StateAccepted, false, prepare},
		{ready, false, cluster.StatePreparing, false, prepare},
		{ready, false, ready, false, idle},
		{running, false, ready, false, start},
		{complete, false, ready, false, start},
		{running, false, cluster.StateStarting, false, start},
		{running, false, running, false, watch},
		{ready, false, running, false, watch},
		{running, false, complete, false, idle},
		{running, false, cluster.StateFailed, false, idle},
		{shut, false, cluster.StateAccepted, false, stop},
		{shut, false, running, false, stop},
		{shut, false, shut, false, idle},
		{shut, false, cluster.StateRejected, false, idle},
		{gone, false, running, false, remove},
		{gone, false, cluster.StateFailed, false, remove},
		{gone, false, shut, true, idle},
		{gone, true, shut, true, done},
		{running, true, running, false, remove},
		{running, true, shut, true, done},
		{running, false, shut, true, idle},
	} {
		if got := next(c.desired, c.gone, c.have, c.removed); got != c.want {
			t.Errorf("desired %v gone %v have %v removed %v: %v, want %v", c.desired, c.gone, c.have, c.removed, got, c.want)
		}
	}
}

func TestEndedInDockersWords(t *testing.T) {
	for _, c := range []struct {
		c     Container
		cause string
		state cluster.State
		err   string
	}{
		{Container{}, "", cluster.StateComplete, ""},
		{Container{ExitCode: 137}, "", cluster.StateFailed, "task: non-zero exit (137)"},
		{Container{ExitCode: 137}, "unhealthy container", cluster.StateFailed, "task: non-zero exit (137): unhealthy container"},
		{Container{}, "unhealthy container", cluster.StateFailed, "task: unhealthy container"},
	} {
		got := ended(cluster.Status{State: cluster.StateRunning, Message: "started", Serving: true}, c.c, c.cause)
		if got.State != c.state || got.Err != c.err || got.Serving {
			t.Errorf("%+v %q: %+v", c.c, c.cause, got)
		}
	}
}
