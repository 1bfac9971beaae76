package swarm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	api "github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/allocate"
	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/control"
	"github.com/skep-dev/skep/internal/dispatch"
	"github.com/skep-dev/skep/internal/gossip"
	"github.com/skep-dev/skep/internal/leader"
	"github.com/skep-dev/skep/internal/pki"
	"github.com/skep-dev/skep/internal/raftlog"
	"github.com/skep-dev/skep/internal/reap"
	"github.com/skep-dev/skep/internal/rollout"
	"github.com/skep-dev/skep/internal/schedule"
	"github.com/skep-dev/skep/internal/services"
	"github.com/skep-dev/skep/internal/store"
)

// managerRetry is the wait after the manager part could not be started.
const managerRetry = 2 * time.Second

// boot makes a new swarm: the first leader writes its first entry.
type boot struct {
	lis     net.Listener // taken before anything was written
	entry   []store.Change
	done    atomic.Bool
	founded chan struct{} // closed when the entry is in the log
}

// manager is the part of a member that only managers have.
type manager struct {
	m       *member
	store   *store.Store
	raft    *raftlog.Log
	opened  chan struct{} // closed when raft is set
	port    *dispatch.Port
	server  *dispatch.Server
	control *control.API
}

// runManager runs the manager part whenever this node's certificate makes it a
// manager.
func (m *member) runManager(ctx context.Context) error {
	for ctx.Err() == nil {
		changed := m.id.Changed()
		if m.id.Peer().Role != api.NodeRoleManager {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		err := m.manage(ctx)
		if ctx.Err() != nil {
			return err
		}
		if m.id.Peer().Role != api.NodeRoleManager {
			m.cfg.Log.Info("this node is no manager any more")
			m.demoted()
			continue
		}
		if m.boot != nil && !m.boot.done.Load() {
			return err // init says so
		}
		m.setErr(err)
		m.cfg.Log.Error("the manager part will be started again", "err", err)
		select {
		case <-time.After(managerRetry):
		case <-ctx.Done():
		}
	}
	return nil
}

// demoted removes what a manager keeps and a worker must not have.
func (m *member) demoted() {
	m.update(func(s *state) { s.Joined = "" })
	err := errors.Join(os.RemoveAll(filepath.Join(m.cfg.Dir, dirRaft)), os.Remove(filepath.Join(m.cfg.Dir, fileKeys)))
	if err != nil {
		m.cfg.Log.Warn("the log of the manager that this node was is left behind", "err", err)
	}
}

// manage runs the manager part until ctx ends or this node is no manager any more.
func (m *member) manage(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with ctx
		for {
			changed := m.id.Changed() // before the look, so that nothing slips between
			if m.id.Peer().Role != api.NodeRoleManager {
				cancel()
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	mgr, err := m.newManager()
	if err != nil {
		return err
	}
	m.manager.Store(mgr)
	defer m.manager.Store(nil)
	if m.boot != nil && !m.force {
		select {
		case m.cfg.Founded <- struct{}{}:
		default: // nobody asked, or it is signalled already
		}
	}
	return mgr.run(ctx)
}

// newManager opens the log and puts the manager part together.
func (m *member) newManager() (*manager, error) {
	st, _, _ := m.snapshot()
	lis, err := m.listen(st)
	if err != nil {
		return nil, fmt.Errorf("cluster port: %w", err)
	}
	mgr := &manager{m: m, store: store.New(), opened: make(chan struct{})}
	mgr.port = dispatch.NewPort(lis, m.id, mgr.mayTalkRaft, m.cfg.Log)
	if err := mgr.openLog(st); err != nil {
		return nil, errors.Join(err, lis.Close())
	}
	mgr.server, err = dispatch.New(dispatch.Config{
		Store: mgr.store, Identity: m.id, Propose: mgr.raft, Members: mgr.raft, Leader: mgr.raft.Leader,
		Control: func(ctx context.Context, name string, body []byte) ([]byte, error) {
			return mgr.control.Handle(ctx, name, body)
		},
		Suspects: m.gossip, Probe: m.probe, Dial: m.cfg.Dial, Log: m.cfg.Log,
	})
	if err != nil {
		return nil, errors.Join(err, lis.Close())
	}
	mgr.control = control.New(mgr.store, mgr.raft, mgr.server, m.cfg.Log)
	return mgr, nil
}

func (m *member) listen(st state) (net.Listener, error) {
	if m.boot != nil && m.boot.lis != nil {
		lis := m.boot.lis
		m.boot.lis = nil
		return lis, nil
	}
	return m.cfg.Listen(st.Listen.String())
}

func (mgr *manager) openLog(st state) error {
	m := mgr.m
	keys, err := raftlog.OpenKeys(filepath.Join(m.cfg.Dir, fileKeys), nil)
	if err != nil {
		return err
	}
	mgr.raft, err = raftlog.New(raftlog.Config{
		ID: st.NodeID, Addr: st.Advertise.String(), Dir: filepath.Join(m.cfg.Dir, dirRaft), Keys: keys, Store: mgr.store,
		Listener: mgr.port.Raft(),
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			return dispatch.DialRaft(ctx, m.cfg.Dial, m.id, addr, mgr.mayTalkRaft)
		},
		Tick: m.cfg.Tick, Log: m.cfg.Log, ForceNewCluster: m.force && !m.boot.done.Load(),
	})
	if err != nil {
		return err
	}
	close(mgr.opened)
	if m.boot != nil && mgr.raft.Fresh() {
		return mgr.raft.Bootstrap()
	}
	return nil
}

// mayTalkRaft refuses managers that were demoted: their certificate is good for
// a while yet. One that this manager has not heard of may be ahead of it. An
// expired certificate will do for one that is known to be in the group: without
// an election nobody can renew.
func (mgr *manager) mayTalkRaft(p pki.Peer) error {
	v := mgr.store.View()
	if c := v.Cluster(); c != nil {
		if _, removed := c.RemovedNodes[p.NodeID]; removed {
			return cluster.Deniedf("node %s was removed from the swarm", p.NodeID)
		}
	}
	n := v.Node(p.NodeID)
	if p.Expired && !mgr.inGroup(p.NodeID) {
		return cluster.Deniedf("the certificate of node %s has ended, and it is no manager known here", p.NodeID)
	}
	if n != nil && dispatch.CertificateRole(n) != api.NodeRoleManager {
		return cluster.Deniedf("node %s is not a manager any more", p.NodeID)
	}
	return nil
}

// inGroup reports whether a node is a member of the Raft group by the log, which
// is known before there is a leader to say how much of it counts.
func (mgr *manager) inGroup(nodeID string) bool {
	select {
	case <-mgr.opened:
		return slices.ContainsFunc(mgr.raft.Members(), func(m raftlog.Member) bool { return m.ID == nodeID })
	default:
		return false // Raft is about to start, and will ask again
	}
}

// probe reports whether a node's host answers.
func (m *member) probe(ctx context.Context, n *cluster.Node) bool {
	a, err := netip.ParseAddr(n.Status.Addr)
	if err != nil {
		return true // nothing is known against it
	}
	port := m.cfg.GossipPort
	if port == 0 {
		port = gossip.Port
	}
	return gossip.HostAnswers(ctx, a, port)
}

// run is the manager part at work. The port outlives the rest, so that
// leadership can be handed over in order.
func (mgr *manager) run(ctx context.Context) error {
	m := mgr.m
	outer, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var serving errgroup.Group
	serving.Go(func() error { return mgr.port.Run(outer) })
	serving.Go(func() error { return mgr.server.Run(outer, mgr.port.RPC()) })

	g, ctx := errgroup.WithContext(ctx)
	group := leader.Group{Leadership: mgr.raft.Leadership(), StepDown: mgr.raft.StepDown, Log: m.cfg.Log}
	g.Go(func() error { return mgr.raft.Run(ctx) })
	g.Go(func() error { return group.Run(ctx, mgr.loops()...) })
	g.Go(func() error { return mgr.joinGroup(ctx) })
	g.Go(func() error { return mgr.followLimits(ctx) })
	err := g.Wait()
	stop()
	return errors.Join(err, serving.Wait())
}

// loops are the leader's work.
func (mgr *manager) loops() []leader.Loop {
	st, propose, log := mgr.store, mgr.raft.Propose, mgr.m.cfg.Log
	loops := []leader.Loop{
		mgr.server.Lead,
		(&allocate.Loop{Store: st, Propose: propose, Log: log}).Run,
		(&services.Loop{Store: st, Propose: propose, NewID: cluster.NewID, Log: log}).Run,
		(&rollout.Loop{Store: st, Propose: propose, NewID: cluster.NewID, Log: log}).Run,
		(&schedule.Loop{Store: st, Propose: propose, Log: log}).Run,
		(&reap.Loop{Store: st, Propose: propose, Log: log}).Run,
		(&roles{store: st, raft: mgr.raft, log: log}).Run,
	}
	if mgr.m.boot != nil {
		loops = append(loops, mgr.found)
	}
	return loops
}

// found writes the first entry of a new swarm, or of one that was taken over.
// It is a leader's loop: it stays until leadership ends.
func (mgr *manager) found(ctx context.Context) error {
	m := mgr.m
	if !m.boot.done.Load() {
		entry := m.boot.entry
		switch v := mgr.store.View(); {
		case m.force:
			st, _, _ := m.snapshot()
			entry = control.ForceNewCluster(v, st.NodeID, st.Advertise.String())
		case v.Cluster() != nil:
			entry = nil // an earlier attempt got through
		}
		if len(entry) > 0 {
			if err := mgr.raft.Propose(ctx, entry...); err != nil {
				return err
			}
		}
		m.boot.done.Store(true)
		close(m.boot.founded)
	}
	<-ctx.Done()
	return nil
}

// joinGroup makes this manager a member of the Raft group, unless it is one
// already under the address it has now.
func (mgr *manager) joinGroup(ctx context.Context) error {
	m := mgr.m
	st, _, _ := m.snapshot()
	addr := st.Advertise.String()
	if m.boot != nil {
		m.update(func(s *state) { s.Joined = addr })
		return nil
	}
	if st.Joined == addr && !mgr.raft.Fresh() {
		return nil
	}
	for {
		err := m.client.JoinRaft(ctx, addr)
		if err == nil {
			m.update(func(s *state) { s.Joined = addr })
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		m.setErr(fmt.Errorf("joining the managers: %w", err))
		m.cfg.Log.Warn("joining the managers will be tried again", "err", err)
		select {
		case <-time.After(managerRetry):
		case <-ctx.Done():
			return nil
		}
	}
}

// followLimits has the log's snapshots made as the swarm's spec wants them.
func (mgr *manager) followLimits(ctx context.Context) error {
	changed, stop := mgr.store.Watch(store.KindCluster)
	defer stop()
	var last raftlog.Limits
	for {
		if c := mgr.store.View().Cluster(); c != nil && c.Spec != nil {
			to := raftlog.Limits{SnapshotEvery: c.Spec.Raft.SnapshotInterval, Trailing: c.Spec.Raft.LogEntriesForSlowFollowers}
			if k := c.Spec.Raft.KeepOldSnapshots; k != nil {
				to.KeepOld = *k
			}
			if to != last {
				last = to
				if err := mgr.raft.SetLimits(to); err != nil {
					mgr.m.cfg.Log.Warn("the log's limits could not be changed", "err", err)
				}
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
