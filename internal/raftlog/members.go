package raftlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"

	"github.com/skep-dev/skep/internal/cluster"
)

// Member is a manager in the Raft group.
type Member struct {
	ID     string
	Addr   string
	Voter  bool
	Leader bool
	// Reachable is the leader's opinion; on any other manager it is known of the
	// leader and of itself only.
	Reachable bool
}

// joinWait bounds how long a new manager may take to answer and catch up.
const joinWait = 20 * time.Second

// Members lists the managers of the group as this one knows it.
func (l *Log) Members() []Member {
	f := l.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	leader, _ := l.Leader()
	var out []Member
	for _, s := range f.Configuration().Servers {
		id := string(s.ID)
		out = append(out, Member{
			ID: id, Addr: string(s.Address), Voter: s.Suffrage == raft.Voter,
			Leader: id == leader, Reachable: id == leader || l.reachable(s.ID),
		})
	}
	return out
}

func (l *Log) reachable(id raft.ServerID) bool {
	return string(id) == l.cfg.ID || time.Since(l.transport.contact(id).at) < 2*l.cfg.Tick
}

func (l *Log) voters() (n int) {
	for _, m := range l.Members() {
		if m.Voter {
			n++
		}
	}
	return n
}

// AddVoter makes a manager a member. It is first given the log without a vote,
// so that one that cannot be reached or is far behind never costs the quorum.
// Idempotent; with another address the member moves. Errors: ErrNotLeader,
// errdefs.ErrUnavailable when the manager does not answer.
func (l *Log) AddVoter(ctx context.Context, id, addr string) error {
	if !l.Leading() {
		return cluster.ErrNotLeader
	}
	for _, m := range l.Members() {
		if m.ID == id && m.Addr == addr && m.Voter {
			return nil
		}
		if m.Addr == addr && m.ID != id {
			return cluster.Conflictf("the address %s belongs to the manager %s", addr, m.ID)
		}
	}
	sid, saddr := raft.ServerID(id), raft.ServerAddress(addr)
	l.transport.forget(sid)
	if id != l.cfg.ID && !l.member(id) {
		if err := l.wait(l.raft.AddNonvoter(sid, saddr, 0, enqueueWait)); err != nil {
			return err
		}
		if err := l.catchUp(ctx, sid); err != nil {
			// Back to what was; if this fails too, the next try takes up from there.
			return errors.Join(err, l.wait(l.raft.RemoveServer(sid, 0, enqueueWait)))
		}
	}
	return l.wait(l.raft.AddVoter(sid, saddr, 0, enqueueWait))
}

func (l *Log) member(id string) bool {
	for _, m := range l.Members() {
		if m.ID == id && m.Voter {
			return true
		}
	}
	return false
}

// catchUp waits until a member has what was committed when it was added.
func (l *Log) catchUp(ctx context.Context, id raft.ServerID) error {
	ctx, cancel := context.WithTimeout(ctx, joinWait)
	defer cancel()
	goal := l.raft.CommitIndex()
	for l.transport.contact(id).last < goal {
		select {
		case <-ctx.Done():
			return cluster.Unavailablef("manager %s does not answer the leader", id)
		case <-time.After(l.cfg.Tick / 30):
		}
		if !l.Leading() {
			return cluster.ErrNotLeader
		}
	}
	return nil
}

// CheckRemove refuses the removal (or demotion) of a manager that the group
// cannot do without, with errdefs.ErrFailedPrecondition. A leader that has just
// been elected hears from the others first: until then it knows of nobody.
func (l *Log) CheckRemove(ctx context.Context, id string) error {
	for {
		voters, alive := l.without(id)
		if voters > 0 && alive >= voters/2+1 {
			return nil
		}
		if voters == 0 || !l.young() {
			return precondition("can't remove member from the raft: this would result in a loss of quorum")
		}
		select {
		case <-time.After(l.cfg.Tick / 30):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// young reports whether this manager leads for so short a time that it may not
// have heard from everybody yet.
func (l *Log) young() bool {
	since := l.since.Load()
	return l.Leading() && (since == 0 || time.Since(time.Unix(0, since)) < 2*l.cfg.Tick)
}

// without counts the voters besides one manager, and those of them that answer.
func (l *Log) without(id string) (voters, alive int) {
	for _, m := range l.Members() {
		if !m.Voter || m.ID == id {
			continue
		}
		voters++
		if m.Reachable {
			alive++
		}
	}
	return voters, alive
}

func precondition(text string) error {
	return errdefs.ErrFailedPrecondition.WithMessage("rpc error: code = FailedPrecondition desc = " + text)
}

// RemoveServer takes a manager out of the group, if the group can do without
// it. The leader does not remove itself: it hands leadership over and returns
// ErrNotLeader, so that the next leader is asked. Idempotent.
func (l *Log) RemoveServer(ctx context.Context, id string) error {
	if !l.Leading() {
		return cluster.ErrNotLeader
	}
	found := false
	for _, m := range l.Members() {
		found = found || m.ID == id
	}
	if !found {
		return nil
	}
	if err := l.CheckRemove(ctx, id); err != nil {
		return err
	}
	if id == l.cfg.ID {
		if err := l.StepDown(); err != nil {
			return fmt.Errorf("leadership transfer: %w", err)
		}
		return cluster.ErrNotLeader
	}
	l.transport.forget(raft.ServerID(id))
	return l.wait(l.raft.RemoveServer(raft.ServerID(id), 0, enqueueWait))
}
