package dispatch

import (
	"bytes"
	"net/netip"
	"slices"
	"sort"
	"strconv"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// planner works out from the store what every node is told. What nodes have in
// common (the peers, endpoints and services of a network) is kept once, whatever
// the number of nodes. It reads no clock and does no I/O.
type planner struct {
	encode func(any) ([]byte, error)
	pass   uint64
	nets   map[string]*itemSet // by network: what every node of it is told
	nodes  map[string]*itemSet // by node: what only that node is told
	part   map[string][]string // by node: its networks, sorted
}

func newPlanner(encode func(any) ([]byte, error)) *planner {
	return &planner{
		encode: encode,
		nets:   map[string]*itemSet{}, nodes: map[string]*itemSet{}, part: map[string][]string{},
	}
}

// plan follows the store to v. hold says whether a task that is to stop must
// not be told so yet; it is asked about every such task that serves.
func (p *planner) plan(v store.View, hold func(*cluster.Task) bool) error {
	p.pass++
	w := &planning{planner: p, v: v, tasks: map[string][]*cluster.Task{}, part: map[string]map[string]bool{}}
	for _, n := range v.Nodes() {
		w.tasks[n.ID] = nil
	}
	for _, t := range v.Tasks() {
		if _, known := w.tasks[t.NodeID]; known && t.Status.State >= cluster.StateAssigned {
			w.tasks[t.NodeID] = append(w.tasks[t.NodeID], t)
		}
	}
	w.findParts()
	for _, n := range v.Networks() {
		w.network(n)
	}
	for _, n := range v.Nodes() {
		w.node(n, hold)
	}
	p.forget()
	return w.err
}

// forget drops the sets of networks and nodes that are gone.
func (p *planner) forget() {
	for id, s := range p.nets {
		if s.pass != p.pass {
			delete(p.nets, id)
		}
	}
	for id, s := range p.nodes {
		if s.pass != p.pass {
			delete(p.nodes, id)
			delete(p.part, id)
		}
	}
}

// planning is one pass of the planner.
type planning struct {
	*planner
	v     store.View
	tasks map[string][]*cluster.Task // by node
	part  map[string]map[string]bool // by network: the nodes in it
	err   error
}

// findParts works out which nodes have a part in which network: the nodes of
// its live tasks, and in the ingress network every node with an address in it.
func (w *planning) findParts() {
	in := func(network, node string) {
		if w.part[network] == nil {
			w.part[network] = map[string]bool{}
		}
		w.part[network][node] = true
	}
	for _, n := range w.v.Networks() {
		if !usable(n) || !n.Spec.Ingress {
			continue
		}
		for _, node := range w.v.Nodes() {
			if node.Addrs[n.ID].IsValid() {
				in(n.ID, node.ID)
			}
		}
	}
	for node, tasks := range w.tasks {
		for _, t := range tasks {
			if t.Status.State.Terminal() {
				continue
			}
			for _, a := range t.Networks {
				if n := w.v.Network(a.NetworkID); n != nil && usable(n) {
					in(a.NetworkID, node)
				}
			}
		}
	}
}

// usable reports whether a node could build the network: it has its subnet, or
// is a host's own network.
func usable(n *cluster.Network) bool { return n.Subnet.IsValid() || !n.Overlay() }

// network works out what every node of n is told.
func (w *planning) network(n *cluster.Network) {
	nodes := w.part[n.ID]
	if len(nodes) == 0 || !n.Overlay() {
		return
	}
	set := w.set(w.nets, n.ID)
	for id := range nodes {
		node := w.v.Node(id)
		addr := node.Addrs[n.ID]
		set.put(key{cluster.ItemPeer, n.ID + "/" + id}, stamp{addr: node.DataAddr, addr2: addr}, w.body(func() any {
			return &cluster.Peer{NetworkID: n.ID, NodeID: id, DataAddr: node.DataAddr, NodeAddr: addr}
		}))
	}
	for _, t := range w.v.TasksIn(n.ID) {
		w.endpoint(set, n, t)
	}
	for _, s := range w.v.Services() {
		w.service(set, n, s)
	}
	set.sweep()
}

// endpoint adds a task's place in n.
func (w *planning) endpoint(set *itemSet, n *cluster.Network, t *cluster.Task) {
	node := w.v.Node(t.NodeID)
	if node == nil || t.Status.State < cluster.StateAssigned || t.Status.State.Terminal() {
		return
	}
	i := slices.IndexFunc(t.Networks, func(a cluster.Attachment) bool { return a.NetworkID == n.ID })
	if i < 0 || !t.Networks[i].Addr.IsValid() {
		return
	}
	at, svc := t.Networks[i], w.v.Service(t.ServiceID)
	var version uint64
	if svc != nil {
		version = svc.SpecVersion
	}
	serving := serves(t, node)
	st := stamp{a: t.Wants, b: version, addr: node.DataAddr, flag: serving}
	set.put(key{cluster.ItemEndpoint, n.ID + "/" + t.ID}, st, w.body(func() any {
		e := &cluster.Endpoint{
			NetworkID: n.ID, TaskID: t.ID, NodeID: t.NodeID, DataAddr: node.DataAddr, Addr: at.Addr,
			ServiceID: t.ServiceID, Serving: serving,
		}
		if svc != nil {
			e.Names = append(e.Names, t.Name(svc.Spec.Name))
		}
		e.Names = append(e.Names, at.Aliases...)
		if t.Attach != nil {
			e.Names = append(e.Names, t.Attach.Names...)
		}
		return e
	}))
}

// serves reports whether new connections may be sent to a task: it runs, is
// healthy, is meant to run on, and its node is not known to be down.
func serves(t *cluster.Task, node *cluster.Node) bool {
	return t.Status.Serving && t.Status.State == cluster.StateRunning &&
		t.Desired <= cluster.StateRunning && node.Status.State != swarm.NodeStateDown
}

// service adds a service's name and address in n.
func (w *planning) service(set *itemSet, n *cluster.Network, s *cluster.Service) {
	i := slices.IndexFunc(s.VIPs, func(v cluster.VIP) bool { return v.NetworkID == n.ID })
	if i < 0 {
		return
	}
	set.put(key{cluster.ItemService, n.ID + "/" + s.ID}, stamp{a: s.Version}, w.body(func() any {
		vs := &cluster.VirtualService{NetworkID: n.ID, ServiceID: s.ID, Name: s.Spec.Name, VIP: s.VIPs[i].Addr}
		if n.Spec.Ingress {
			for _, port := range s.Ports {
				if !cluster.HostPort(port) {
					vs.Ports = append(vs.Ports, port)
				}
			}
			return vs
		}
		for _, a := range s.Spec.TaskTemplate.Networks {
			if a.Target == n.ID || a.Target == n.Spec.Name {
				vs.Aliases = append(vs.Aliases, a.Aliases...)
			}
		}
		return vs
	}))
}

// node works out what only node is told: its tasks, what they need, and the
// networks it has a part in.
func (w *planning) node(node *cluster.Node, hold func(*cluster.Task) bool) {
	set := w.set(w.nodes, node.ID)
	var part []string
	for _, n := range w.v.Networks() {
		if !w.part[n.ID][node.ID] {
			continue
		}
		part = append(part, n.ID)
		addr, port := node.Addrs[n.ID], w.dataPort()
		set.put(key{cluster.ItemNetwork, n.ID}, stamp{a: n.Version, b: uint64(port), addr: addr}, w.body(func() any {
			return wantedNetwork(n, addr, port)
		}))
	}
	sort.Strings(part)
	w.planner.part[node.ID] = part
	for _, t := range w.tasks[node.ID] {
		if t.Attach != nil {
			continue // the container is not the agent's
		}
		w.task(set, t, hold)
	}
	set.sweep()
}

func (w *planning) dataPort() uint32 {
	if c := w.v.Cluster(); c != nil && c.DataPathPort != 0 {
		return c.DataPathPort
	}
	return cluster.DefaultDataPort
}

func wantedNetwork(n *cluster.Network, addr netip.Addr, port uint32) *cluster.WantedNetwork {
	wn := &cluster.WantedNetwork{
		ID: n.ID, Name: n.Spec.Name, Driver: n.Driver(), Subnet: n.Subnet, Gateway: n.Gateway,
		VNI: n.VNI, Port: port, Ingress: n.Spec.Ingress, Internal: n.Spec.Internal,
		Attachable: n.Spec.Attachable, Labels: n.Spec.Labels, NodeAddr: addr,
	}
	if d := n.Spec.DriverConfiguration; d != nil {
		wn.Options = d.Options
		_, wn.Encrypted = d.Options["encrypted"]
		wn.MTU, _ = strconv.Atoi(d.Options["com.docker.network.driver.mtu"])
	}
	return wn
}

// task adds a task of the node, its secrets and its configs.
func (w *planning) task(set *itemSet, t *cluster.Task, hold func(*cluster.Task) bool) {
	spec := w.v.SpecOf(t.ServiceID, t.SpecVersion)
	if spec == nil {
		return
	}
	held := t.Desired > cluster.StateRunning && t.Status.State == cluster.StateRunning &&
		t.Status.Serving && len(t.Networks) > 0 && hold(t)
	svc, c := w.v.Service(t.ServiceID), w.v.Cluster()
	st := stamp{a: t.Wants, flag: held}
	if svc != nil {
		st.b = svc.SpecVersion
	}
	if c != nil {
		st.c = c.Version
	}
	set.put(key{cluster.ItemTask, t.ID}, st, w.body(func() any {
		wt := wantedTask(t, spec, svc, c)
		if held {
			wt.Desired = cluster.StateRunning
		}
		return wt
	}))
	if cs := spec.Spec.TaskTemplate.ContainerSpec; cs != nil && t.Active() {
		w.payloads(set, cs)
	}
}

func wantedTask(t *cluster.Task, spec *cluster.ServiceSpecVersion, svc *cluster.Service, c *cluster.Cluster) *cluster.WantedTask {
	current := spec.Spec
	if svc != nil {
		current = svc.Spec
	}
	wt := &cluster.WantedTask{
		ID: t.ID, Name: t.Name(current.Name), ServiceID: t.ServiceID, ServiceName: current.Name,
		ServiceLabels: current.Labels, Slot: t.Slot, NodeID: t.NodeID, Desired: t.Desired,
		Spec: &spec.Spec.TaskTemplate, Networks: t.Networks,
	}
	if e := spec.Spec.EndpointSpec; e != nil {
		for _, p := range e.Ports {
			if cluster.HostPort(p) {
				wt.HostPorts = append(wt.HostPorts, p)
			}
			if p.Protocol == network.TCP || p.Protocol == "" {
				wt.TCPPorts = append(wt.TCPPorts, p.TargetPort)
			}
		}
	}
	if c != nil && c.Spec != nil {
		wt.LogDriver = c.Spec.TaskDefaults.LogDriver
	}
	if svc != nil {
		wt.RegistryAuth = svc.AuthOf(t.SpecVersion)
	}
	return wt
}

// payloads adds the secrets and configs a task refers to.
func (w *planning) payloads(set *itemSet, cs *swarm.ContainerSpec) {
	for _, r := range cs.Secrets {
		if s := w.v.Secret(r.SecretID); s != nil {
			set.put(key{cluster.ItemSecret, s.ID}, stamp{a: s.Version}, w.body(func() any { return s }))
		}
	}
	for _, r := range cs.Configs {
		if c := w.v.Config(r.ConfigID); c != nil {
			set.put(key{cluster.ItemConfig, c.ID}, stamp{a: c.Version}, w.body(func() any { return c }))
		}
	}
}

func (w *planning) set(in map[string]*itemSet, id string) *itemSet {
	s := in[id]
	if s == nil {
		s = &itemSet{items: map[key]*setItem{}}
		in[id] = s
	}
	s.pass = w.pass
	return s
}

// body defers the encoding of a value until its stamp has proved it changed.
func (w *planning) body(value func() any) func() []byte {
	return func() []byte {
		b, err := w.encode(value())
		if err != nil {
			w.err = err
			return nil
		}
		return b
	}
}

type key struct {
	kind cluster.ItemKind
	id   string
}

// stamp is what an item is made from, in short: while it is the same, the item is.
type stamp struct {
	a, b, c     uint64
	addr, addr2 netip.Addr
	flag        bool
}

// itemSet is a set of items with the history of its changes, so that a reader
// that knows how far it has come is given the rest. gen counts the changes.
type itemSet struct {
	pass  uint64
	items map[key]*setItem
	log   []*wireItem // the last changes, oldest first
	gen   uint64
}

type setItem struct {
	wire  *wireItem
	stamp stamp
	pass  uint64
}

// put adds or changes an item; body is called only if st differs.
func (s *itemSet) put(k key, st stamp, body func() []byte) {
	it := s.items[k]
	if it != nil && it.stamp == st {
		it.pass = s.pass
		return
	}
	b := body()
	if b == nil {
		return
	}
	if it != nil && bytes.Equal(it.wire.Body, b) {
		it.stamp, it.pass = st, s.pass
		return
	}
	w := &wireItem{Kind: k.kind, ID: k.id, Body: b}
	s.items[k] = &setItem{wire: w, stamp: st, pass: s.pass}
	s.change(w)
}

// sweep removes what this pass has not put.
func (s *itemSet) sweep() {
	for k, it := range s.items {
		if it.pass != s.pass {
			delete(s.items, k)
			s.change(&wireItem{Kind: k.kind, ID: k.id})
		}
	}
	if keep := len(s.items) + 64; len(s.log) > 2*keep {
		s.log = slices.Clone(s.log[len(s.log)-keep:])
	}
}

func (s *itemSet) change(w *wireItem) {
	s.log = append(s.log, w)
	s.gen++
}

// since returns the changes after gen, and false when the set does not remember
// them all.
func (s *itemSet) since(gen uint64) ([]*wireItem, bool) {
	n := s.gen - gen
	if n > uint64(len(s.log)) {
		return nil, false
	}
	return s.log[uint64(len(s.log))-n:], true
}

// all returns the whole set, in no order.
func (s *itemSet) all() []*wireItem {
	out := make([]*wireItem, 0, len(s.items))
	for _, it := range s.items {
		out = append(out, it.wire)
	}
	return out
}

func sortItems(items []*wireItem) {
	sort.Slice(items, func(i, j int) bool {
		if items[i].Kind != items[j].Kind {
			return items[i].Kind < items[j].Kind
		}
		return items[i].ID < items[j].ID
	})
}
