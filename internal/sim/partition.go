package sim

import (
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// Who is heard of, and who is not.

// detection is how long it takes until a node is known to be down.
const detection = 2500 * time.Millisecond

// Kill cuts a machine's power: its containers end at once, nobody hears of it.
func (f *Fleet) Kill(id string) {
	f.do(func() { f.machines[id].off, f.machines[id].cut = true, true })
	f.missed(id)
}

// Cut cuts a machine off until it is down: its containers run on.
func (f *Fleet) Cut(id string) {
	f.Part(id)
	f.missed(id)
}

// Part cuts machines off from the managers, all at one moment: they go on with
// what they were told last, and nobody has noticed yet.
func (f *Fleet) Part(ids ...string) {
	f.do(func() {
		for _, id := range ids {
			f.machines[id].cut = true
		}
	})
}

func (f *Fleet) missed(ids ...string) {
	time.Sleep(detection)
	f.Down(ids...)
}

// Down takes nodes for down, as a leader does that has not heard of them.
func (f *Fleet) Down(ids ...string) {
	for _, id := range ids {
		f.Change(id, func(n *cluster.Node) {
			n.Status = cluster.NodeStatus{State: swarm.NodeStateDown, Message: "heartbeat failure", Since: time.Now()}
		})
		f.s.Store.ObserveNode(id, cluster.NodeStatus{})
	}
}

// Heal brings machines back: they register, say again what they have said, and
// hear what became of it.
func (f *Fleet) Heal(ids ...string) {
	for _, id := range ids {
		f.Change(id, func(n *cluster.Node) {
			n.Status = cluster.NodeStatus{State: swarm.NodeStateReady, Since: time.Now()}
		})
		f.s.Store.ObserveNode(id, cluster.NodeStatus{})
		f.do(func() {
			m := f.machines[id]
			if m.off {
				m.containers = map[string]*container{}
			}
			m.off, m.cut, m.anew = false, false, true
		})
	}
}

// register lets the machines that can be heard of find a new leader.
func (f *Fleet) register() {
	f.do(func() {
		for _, id := range sortedKeys(f.machines) {
			time.AfterFunc(100*time.Millisecond+f.dice.Random(3*time.Second), func() {
				f.do(func() {
					if m := f.machines[id]; m != nil && !m.cut {
						m.anew = true
						f.s.Store.ObserveNode(id, cluster.NodeStatus{})
					}
				})
			})
		}
	})
}

// everything is what a machine says when it registers: where each of its
// containers is now, whatever it has said before and whether or not anybody
// still wants it. Of tasks that are forgotten there is nobody to hear it.
func (f *Fleet) everything(m *machine, v store.View) (out []store.Change) {
	var soft []store.Observation
	for _, task := range sortedKeys(m.containers) {
		if t := v.Task(task); t == nil || t.NodeID != m.id {
			continue
		}
		st := f.status(m.containers[task])
		if st.State < cluster.StateRunning {
			soft = append(soft, store.Observation{TaskID: task, Status: st})
			continue
		}
		out = append(out, store.SetStatus(task, st))
	}
	f.s.Store.ObserveAll(soft)
	return out
}
