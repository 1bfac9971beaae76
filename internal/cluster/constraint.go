package cluster

import (
	"net/netip"
	"regexp"
	"strings"
)

// Constraint is one placement constraint: a fact of a node that must (or must
// not) have a value.
type Constraint struct {
	Key   string
	Not   bool // "!=" instead of "=="
	Value string
}

var (
	constraintKey = regexp.MustCompile(`^(?i)[a-z_][a-z0-9\-_.]+$`)
	// No character that a future operator may want (<, >, ~ …) is a value's.
	constraintValue = regexp.MustCompile(`^(?i)[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+$`)
)

// ParseConstraints reads placement constraints as users write them
// ("node.role == manager"). Errors are of the kind errdefs.ErrInvalidArgument,
// in Docker's words.
func ParseConstraints(exprs []string) ([]Constraint, error) {
	var out []Constraint
	for _, e := range exprs {
		key, value, found := strings.Cut(e, "==")
		not := false
		if !found {
			key, value, found = strings.Cut(e, "!=")
			not = true
		}
		if !found {
			return nil, Invalidf("constraint expected one operator from ==, !=")
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !constraintKey.MatchString(key) {
			return nil, Invalidf("key '%s' is invalid", key)
		}
		if !constraintValue.MatchString(value) {
			return nil, Invalidf("value '%s' is invalid", value)
		}
		out = append(out, Constraint{Key: key, Not: not, Value: value})
	}
	return out, nil
}

// Match reports whether the node has what c asks for. Keys and values are
// compared without regard to case (label names with); what a node does not say
// is "". A key that no node knows is matched by none.
func (c Constraint) Match(n *Node) bool {
	if strings.EqualFold(c.Key, "node.ip") {
		return c.matchIP(n.Status.Addr)
	}
	fact, known := nodeFact(n, c.Key)
	return known && strings.EqualFold(fact, c.Value) != c.Not
}

// MatchAll reports whether the node satisfies every constraint.
func MatchAll(cs []Constraint, n *Node) bool {
	for _, c := range cs {
		if !c.Match(n) {
			return false
		}
	}
	return true
}

// OfOneNode reports whether c asks for something that differs from node to node
// by nature (its id, name or address), so that nodes cannot be judged together.
func (c Constraint) OfOneNode() bool {
	switch strings.ToLower(c.Key) {
	case "node.id", "node.hostname", "node.ip":
		return true
	}
	return false
}

func (c Constraint) matchIP(addr string) bool {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		ap, err := netip.ParseAddrPort(addr)
		if err != nil {
			return false
		}
		ip = ap.Addr()
	}
	ip = ip.Unmap()
	if want, err := netip.ParseAddr(c.Value); err == nil {
		return (want.Unmap() == ip) != c.Not
	}
	if want, err := netip.ParsePrefix(c.Value); err == nil {
		return want.Contains(ip) != c.Not
	}
	return false
}

// NodeFact returns the value of a placement key (node.labels.zone,
// engine.labels.ssd, node.hostname …) for a node; "" where it does not say.
func NodeFact(n *Node, key string) string {
	fact, _ := nodeFact(n, key)
	return fact
}

func nodeFact(n *Node, key string) (fact string, known bool) {
	switch strings.ToLower(key) {
	case "node.id":
		return n.ID, true
	case "node.role":
		return string(n.Role), true
	case "node.hostname", "node.platform.os", "node.platform.arch":
		return describedFact(n, strings.ToLower(key)), true
	}
	if label, ok := cutFold(key, "node.labels."); ok {
		if n.Spec == nil {
			return "", true
		}
		return n.Spec.Labels[label], true
	}
	if label, ok := cutFold(key, "engine.labels."); ok {
		if n.Description == nil {
			return "", true
		}
		return n.Description.Engine.Labels[label], true
	}
	return "", false
}

func describedFact(n *Node, key string) string {
	if n.Description == nil {
		return ""
	}
	switch key {
	case "node.hostname":
		return n.Description.Hostname
	case "node.platform.os":
		return n.Description.Platform.OS
	}
	return n.Description.Platform.Architecture
}

func cutFold(s, prefix string) (string, bool) {
	if len(s) > len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
		return s[len(prefix):], true
	}
	return "", false
}
