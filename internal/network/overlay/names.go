package overlay

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
)

// name is what a name of a network leads to.
type name struct {
	addrs   []netip.Addr
	shuffle bool // several equals: any order
}

// indexNames fills names and pointers. A service's own name goes before an
// alias, an alias before the name of a single container.
func (v *view) indexNames() {
	v.names = map[string]name{}
	v.pointers = map[netip.Addr]string{}
	add := func(n string, to name) {
		n = strings.ToLower(n)
		if _, taken := v.names[n]; !taken && n != "" {
			v.names[n] = to
		}
	}
	ids := sortedKeys(v.targets)
	for _, id := range ids {
		t := v.targets[id]
		add(t.svc.Name, t.name())
		add("tasks."+t.svc.Name, name{t.backends, true})
		if t.svc.VIP.IsValid() {
			v.pointers[t.svc.VIP] = t.svc.Name
		}
	}
	for _, id := range ids {
		t := v.targets[id]
		for _, a := range t.svc.Aliases {
			v.addShared(a, t.name())
			v.addShared("tasks."+a, name{t.backends, true})
		}
	}
	for _, e := range v.endpoints {
		for _, n := range e.Names {
			v.addShared(n, name{[]netip.Addr{e.Addr}, true})
		}
		if len(e.Names) > 0 {
			v.pointers[e.Addr] = e.Names[0]
		}
	}
}

// addShared adds an alias. Two holders of one alias share it, as with Docker;
// a service's own name is not shared.
func (v *view) addShared(alias string, to name) {
	alias = strings.ToLower(alias)
	if alias == "" {
		return
	}
	if bare := strings.TrimPrefix(alias, "tasks."); v.ownName(bare) {
		return
	}
	have := v.names[alias]
	v.names[alias] = name{append(slices.Clone(have.addrs), to.addrs...), true}
}

func (v *view) ownName(n string) bool {
	_, ok := v.names["tasks."+n]
	if !ok {
		return false
	}
	for _, t := range v.targets {
		if strings.EqualFold(t.svc.Name, n) {
			return true
		}
	}
	return false
}

func (t *target) name() name {
	if t.svc.VIP.IsValid() {
		return name{[]netip.Addr{t.svc.VIP}, false}
	}
	return name{t.backends, true}
}

// Lookup finds a name in a network: a service's name or alias (its virtual
// address, or for dnsrr all serving tasks in any order), tasks.NAME, or the name
// of a task or container. It reports whether the name exists; a service without
// serving tasks exists and may have no address.
func (o *Overlay) Lookup(networkID, n string) ([]netip.Addr, bool) {
	v := o.view(networkID)
	if v == nil {
		return nil, false
	}
	found, ok := v.names[strings.ToLower(strings.TrimSuffix(n, "."))]
	if !ok {
		return nil, false
	}
	addrs := slices.Clone(found.addrs)
	if found.shuffle {
		rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	}
	return addrs, true
}

// LookupAddr finds the name of an address in a network: the service's for a
// virtual address, else the first of the endpoint's. Docker appends the
// network's name to it.
func (o *Overlay) LookupAddr(networkID string, a netip.Addr) (string, bool) {
	v := o.view(networkID)
	if v == nil {
		return "", false
	}
	n, ok := v.pointers[a]
	return n, ok
}

func (o *Overlay) view(networkID string) *view {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.views[networkID]
}
