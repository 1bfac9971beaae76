package dispatch

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/cluster"
)

// Suspects is what gossip knows of nodes that do not answer their peers.
type Suspects interface {
	// Dead returns the ids of the nodes that peers have given up.
	Dead() []string
	// Watch signals after each change of Dead; the function ends the watch.
	Watch() (<-chan struct{}, func())
}

// watchSuspects watches gossip, if there is any.
func (s *Server) watchSuspects() (<-chan struct{}, func()) {
	if s.Suspects == nil {
		return nil, func() {}
	}
	return s.Suspects.Watch()
}

// tick deals with what is due: nodes not heard of for too long, probes, holds.
func (l *lead) tick(ctx context.Context, g *errgroup.Group, now time.Time) {
	for id, li := range l.lives {
		switch {
		case li.down:
		case !now.Before(li.until):
			l.takeDown(id, li, messageDown, now)
		case !li.probeAfter.IsZero() && !now.Before(li.probeAfter) && !li.probing:
			l.suspect(ctx, g, now)
		}
	}
	l.releaseHolds(now)
}

// takeDown takes a node for down: its tasks no longer count.
func (l *lead) takeDown(id string, li *life, why string, now time.Time) {
	li.down, li.unknown, li.probeAfter = true, false, time.Time{}
	if sess := l.sessions[id]; sess != nil {
		sess.close(cluster.Unavailablef("node %s was taken for down: %s", id, why))
		delete(l.sessions, id)
	}
	l.srv.Log.Info("node is down", "node", id, "why", why)
	l.srv.Store.ObserveNode(id, cluster.NodeStatus{})
	l.writer.node(id, func(n *cluster.Node) bool {
		if n.Status.State == swarm.NodeStateDown {
			return false
		}
		n.Status.State, n.Status.Message, n.Status.Since = swarm.NodeStateDown, why, now
		return true
	})
}

// suspect probes the nodes that gossip has given up. Gossip alone decides
// nothing: a daemon that restarts is silent too, but its host answers.
func (l *lead) suspect(ctx context.Context, g *errgroup.Group, now time.Time) {
	if l.srv.Suspects == nil || l.srv.Probe == nil {
		return
	}
	dead := map[string]bool{}
	v := l.srv.Store.View()
	for _, id := range l.srv.Suspects.Dead() {
		dead[id] = true
		li, n := l.lives[id], v.Node(id)
		if li == nil || n == nil || li.down || li.probing || now.Before(li.probeAfter) {
			continue
		}
		li.probing = true
		g.Go(func() error {
			pctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			p := probed{node: id, since: now, alive: l.srv.Probe(pctx, n)}
			select {
			case l.probes <- p:
			case <-ctx.Done():
			}
			return nil
		})
	}
	for id, li := range l.lives {
		if !dead[id] {
			li.probeAfter = time.Time{}
		}
	}
}

// probed deals with a probe's answer.
func (l *lead) probed(p probed) {
	li := l.lives[p.node]
	if li == nil {
		return
	}
	li.probing = false
	switch {
	case li.down:
	case p.alive || li.heard.After(p.since):
		li.probeAfter = time.Now().Add(probeAgain)
		l.soon(li.probeAfter)
	default:
		l.takeDown(p.node, li, messageLost, time.Now())
	}
}
