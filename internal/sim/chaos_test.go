package sim

import (
	"flag"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

var (
	seeds = flag.Int64("seeds", 15, "how many seeds of chaos to play")
	seed  = flag.Int64("seed", -1, "play this seed of chaos only")
)

// TestChaos lets users, hosts and leaders do what they like for ten minutes, then
// leaves the swarm in peace: every service must come to what was wanted last.
func TestChaos(t *testing.T) {
	first, last := int64(0), *seeds
	if *seed >= 0 {
		first, last = *seed, *seed+1
	}
	for n := first; n < last; n++ {
		t.Run(fmt.Sprint("seed", n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chaos{Swarm: New(t, n), want: map[string]uint64{}}
				c.play()
			})
		})
	}
}

// TestASeedReplays: what a seed has found can be looked at again.
func TestASeedReplays(t *testing.T) {
	var seen []string
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			c := &chaos{Swarm: New(t, 3), want: map[string]uint64{}}
			c.play()
			seen = append(seen, fmt.Sprintf("%d entries, %d bytes\n%s", c.View().Index(), c.LogBytes(), c.Dump()))
		})
	}
	if seen[0] != seen[1] {
		t.Errorf("the first time:\n%s\nthe second:\n%s", seen[0], seen[1])
	}
}

type chaos struct {
	*Swarm
	nodes []string
	down  map[string]bool
	want  map[string]uint64 // replicas by service; global ones have ^0
	back  string
	made  int
}

func (c *chaos) play() {
	c.Flaky(10 * c.Intn(2))
	c.nodes, c.down = c.Fleet.AddMany(5), map[string]bool{}
	c.back = c.Network(swarm.NetworkSpec{ // small: its addresses are soon used again
		Annotations: swarm.Annotations{Name: "back"},
		IPAMOptions: &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{{Subnet: prefix("10.9.0.0/26")}}},
	})
	for range 60 {
		c.event()
		time.Sleep(c.Random(20 * time.Second))
	}
	c.Flaky(0)
	c.Fleet.Heal(sortedKeys(c.down)...)
	for _, id := range c.nodes {
		c.Fleet.Change(id, func(n *cluster.Node) { n.Spec.Availability, n.Spec.Labels = swarm.NodeAvailabilityActive, nil })
	}
	c.Until(5*time.Minute, "all as wanted", func(v store.View) bool {
		for id, n := range c.want {
			if n == ^uint64(0) {
				n = uint64(len(c.nodes))
			}
			if !Settled(v, id, int(n)) || !allOf(v, id) {
				return false
			}
		}
		return true
	})
	time.Sleep(time.Minute)
	for id := range c.want {
		if alive, wanted := c.Fleet.Alive(id), Running(c.View(), id); alive != wanted {
			c.T.Errorf("service %s: %d containers run, %d are wanted\n%s", c.View().Service(id).Spec.Name, alive, wanted, c.Dump())
		}
	}
	for _, task := range c.View().Tasks() {
		if c.View().Service(task.ServiceID) == nil {
			c.T.Errorf("task %s is left of a service that is gone", c.line(task))
		}
	}
}

func (c *chaos) anyService() (string, bool) {
	ids := sortedKeys(c.want)
	if len(ids) == 0 {
		return "", false
	}
	return ids[c.Intn(len(ids))], true
}

func (c *chaos) create() {
	c.made++
	spec := Replicated(fmt.Sprint("s", c.made), "ok", uint64(c.Intn(8)))
	want := *spec.Mode.Replicated.Replicas
	if c.Intn(4) == 0 {
		spec.Mode, want = swarm.ServiceMode{Global: &swarm.GlobalService{}}, ^uint64(0)
	}
	if c.Intn(2) == 0 {
		spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: c.back}}
	}
	switch c.Intn(5) {
	case 0, 1:
		spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
	case 2: // one of two ports of its host, which others may want, too
		if port := uint32(8000 + c.Intn(2)); want != ^uint64(0) && c.onHostPort(port) < 2 { // so that there is room
			spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{
				TargetPort: 80, PublishedPort: port, PublishMode: swarm.PortConfigPublishModeHost,
			}}}
			want = min(want, 2)
			spec.Mode.Replicated.Replicas = &want
		}
	}
	if c.Intn(3) == 0 {
		spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.x!=2"}}
	}
	spec.UpdateConfig = &swarm.UpdateConfig{
		Parallelism: uint64(c.Intn(3)), Delay: c.Random(3 * time.Second), Monitor: time.Second,
		FailureAction: swarm.UpdateFailureActionContinue, Order: swarm.UpdateOrderStopFirst,
	}
	if c.Intn(2) == 0 {
		spec.UpdateConfig.Order = swarm.UpdateOrderStartFirst
	}
	c.want[c.Create(spec)] = want
}

func (c *chaos) event() {
	node := c.nodes[c.Intn(len(c.nodes))]
	id, any := c.anyService()
	switch e := c.Intn(14); {
	case !any || e == 0:
		c.create()
	case e == 1 && c.want[id] != ^uint64(0):
		c.want[id] = uint64(c.Intn(10))
		if hostPortOf(c.View().Service(id)) != 0 {
			c.want[id] %= 3
		}
		c.Scale(id, c.want[id])
	case e <= 3:
		c.Update(id, image(fmt.Sprint("ok v", c.Intn(1000))))
	case e == 4 && len(c.want) > 4:
		delete(c.want, id)
		c.Remove(id)
	case e == 5 || e == 6:
		if ts := c.View().TasksOf(id); len(ts) > 0 {
			c.Fleet.Fail(ts[c.Intn(len(ts))])
		}
	case e == 7 || e == 8:
		c.toggle(node)
	case e == 9:
		c.Fleet.Availability(node, []swarm.NodeAvailability{
			swarm.NodeAvailabilityActive, swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain,
		}[c.Intn(4)])
	case e == 10:
		c.LoseLeader()
	case e == 11:
		c.Fleet.Change(node, func(n *cluster.Node) { n.Spec.Labels = map[string]string{"x": fmt.Sprint(c.Intn(3))} })
	case e == 12:
		c.part()
	case e == 13:
		c.isolate()
	}
}

// hostPortOf returns the port of their host that a service's tasks want, or 0.
func hostPortOf(svc *cluster.Service) uint32 {
	if e := svc.Spec.EndpointSpec; e != nil && len(e.Ports) > 0 && cluster.HostPort(e.Ports[0]) {
		return e.Ports[0].PublishedPort
	}
	return 0
}

// onHostPort counts the services that want a port of their hosts.
func (c *chaos) onHostPort(port uint32) (n int) {
	for _, svc := range c.View().Services() {
		if hostPortOf(svc) == port {
			n++
		}
	}
	return n
}

// part cuts off a group of nodes at one moment. Sometimes they are back before
// anybody has noticed, and sometimes the leader is lost meanwhile, too.
func (c *chaos) part() {
	var group []string
	for _, i := range c.perm(len(c.nodes))[:1+c.Intn(3)] {
		if id := c.nodes[i]; !c.down[id] && len(c.down) < 4 {
			group = append(group, id)
			c.down[id] = true
		}
	}
	c.apart(group, c.Random(2*detection))
	if c.Intn(2) == 0 {
		c.Fleet.Heal(group...)
		for _, id := range group {
			delete(c.down, id)
		}
	}
}

// isolate cuts a leader off from all nodes that are left, and brings them back:
// to it, or to the one that has taken over.
func (c *chaos) isolate() {
	var group []string
	for _, id := range c.nodes {
		if !c.down[id] {
			group = append(group, id)
		}
	}
	c.apart(group, c.Random(10*detection))
	c.Fleet.Heal(group...)
}

// apart cuts nodes off for a while, in which things may happen; those that were
// not heard of for long are down after it.
func (c *chaos) apart(group []string, d time.Duration) {
	c.Fleet.Part(group...)
	time.Sleep(d / 2)
	if d >= detection && c.Intn(2) == 0 {
		c.Fleet.Down(group...) // so far it was the same leader
	}
	switch id, any := c.anyService(); {
	case c.Intn(3) == 0:
		c.LoseLeader()
	case any && c.Intn(2) == 0:
		c.Update(id, image(fmt.Sprint("ok v", c.Intn(1000))))
	}
	time.Sleep(d / 2)
	if d >= detection {
		c.Fleet.Down(group...)
	}
}

func (c *chaos) perm(n int) []int {
	out := make([]int, n)
	for i := range out {
		j := c.Intn(i + 1)
		out[i], out[j] = out[j], i
	}
	return out
}

// toggle cuts off or kills a node, or heals it; at most two are down at once.
func (c *chaos) toggle(node string) {
	switch {
	case c.down[node]:
		delete(c.down, node)
		c.Fleet.Heal(node)
	case len(c.down) < 2:
		c.down[node] = true
		if c.Intn(2) == 0 {
			c.Fleet.Kill(node)
		} else {
			c.Fleet.Cut(node)
		}
	}
}
