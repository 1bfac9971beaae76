package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network/namespace"
)

// The range that ports come from when the user leaves the choice to us.
const (
	firstEphemeral = 49153
	lastEphemeral  = 65535
)

// binding is one published port of a container.
type binding struct {
	Proto         string
	ContainerPort uint16
	HostIP        netip.Addr // as it was asked for; 0.0.0.0 for every address
	HostPort      uint16
}

// key is how the firewall knows the binding.
func (b binding) key() portKey {
	k := portKey{Proto: protocols[b.Proto], Port: b.HostPort}
	if !b.HostIP.IsUnspecified() {
		k.Addr = b.HostIP
	}
	return k
}

// wish is a binding as it was asked for: any port of a range, or (0,0) any at all.
type wish struct {
	binding
	from, to uint16
}

// parsePorts reads what a user asked to have published. Its order does not
// depend on the map's.
func parsePorts(ports network.PortMap, defaultIP netip.Addr) ([]wish, error) {
	var out []wish
	for port, hosts := range ports {
		if _, ok := protocols[string(port.Proto())]; !ok {
			if port.Proto() == network.SCTP {
				return nil, cluster.NotImplementedf("publishing SCTP ports is not built yet")
			}
			return nil, cluster.Invalidf("invalid protocol: %s", port.Proto())
		}
		if len(hosts) == 0 {
			continue // exposed, not published
		}
		for _, h := range hosts {
			w := wish{binding: binding{Proto: string(port.Proto()), ContainerPort: port.Num(), HostIP: h.HostIP}}
			if !w.HostIP.IsValid() {
				w.HostIP = defaultIP
			}
			if w.HostIP = w.HostIP.Unmap(); !w.HostIP.Is4() {
				if w.HostIP.IsUnspecified() {
					w.HostIP = netip.IPv4Unspecified() // decision 0041
				} else {
					return nil, cluster.NotImplementedf("publishing on the IPv6 address %s is not built yet", w.HostIP)
				}
			}
			var err error
			if w.from, w.to, err = parseHostPort(h.HostPort); err != nil {
				return nil, err
			}
			out = append(out, w)
		}
	}
	// The most particular first, so that a range does not take a port that
	// somebody asked for by number.
	slices.SortFunc(out, func(a, b wish) int {
		width := func(w wish) int {
			if w.from == 0 {
				return 1 << 16
			}
			return int(w.to - w.from)
		}
		if c := width(a) - width(b); c != 0 {
			return c
		}
		if c := strings.Compare(a.Proto, b.Proto); c != 0 {
			return c
		}
		if c := int(a.ContainerPort) - int(b.ContainerPort); c != 0 {
			return c
		}
		return a.HostIP.Compare(b.HostIP)
	})
	return slices.CompactFunc(out, func(a, b wish) bool { return a == b }), nil
}

func parseHostPort(s string) (from, to uint16, err error) {
	if s == "" || s == "0" {
		return 0, 0, nil
	}
	lo, hi, ranged := strings.Cut(s, "-")
	a, errA := strconv.ParseUint(lo, 10, 16)
	b := a
	var errB error
	if ranged {
		b, errB = strconv.ParseUint(hi, 10, 16)
	}
	if errA != nil || errB != nil || a == 0 || b < a {
		return 0, 0, cluster.Invalidf("invalid port specification: %q", s)
	}
	return uint16(a), uint16(b), nil
}

// portMap returns bindings in the API's shape.
func portMap(bs []binding) network.PortMap {
	if len(bs) == 0 {
		return nil
	}
	out := network.PortMap{}
	for _, b := range bs {
		p, ok := network.PortFrom(b.ContainerPort, network.IPProtocol(b.Proto))
		if ok {
			out[p] = append(out[p], network.PortBinding{HostIP: b.HostIP, HostPort: strconv.Itoa(int(b.HostPort))})
		}
	}
	return out
}

// portTable holds a real socket for every published port, so that whoever else
// wants the port, container or not, is told. Nothing is ever read from them: the
// firewall sends the packets elsewhere before they arrive.
type portTable struct {
	ns netns.NsHandle

	mu    sync.Mutex
	held  map[string]map[portKey]io.Closer // by container
	owner map[portKey]string
	next  uint16 // the next ephemeral port to try
}

func newPortTable(ns netns.NsHandle) *portTable {
	return &portTable{ns: ns, held: map[string]map[portKey]io.Closer{}, owner: map[portKey]string{}, next: firstEphemeral}
}

// bind takes ports for a container: all that were wished for, or none.
func (t *portTable) bind(container string, wishes []wish) ([]binding, error) {
	var out []binding
	for _, w := range wishes {
		b, err := t.bindOne(container, w)
		if err != nil {
			return nil, errors.Join(err, t.release(container, out))
		}
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b binding) int { // the API's order, not the one we bound in
		if c := strings.Compare(a.Proto, b.Proto); c != 0 {
			return c
		}
		return int(a.ContainerPort) - int(b.ContainerPort)
	})
	return out, nil
}

func (t *portTable) bindOne(container string, w wish) (binding, error) {
	b := w.binding
	var last error
	for _, port := range t.candidates(w) {
		b.HostPort = port
		last = t.hold(container, b)
		if last == nil {
			return b, nil
		}
		if !errors.Is(last, errPortTaken) && !errors.Is(last, syscall.EADDRINUSE) {
			break // no other port would do either
		}
	}
	if w.from == w.to && w.from != 0 {
		return b, last
	}
	if last == nil || errors.Is(last, errPortTaken) || errors.Is(last, syscall.EADDRINUSE) {
		return b, cluster.Conflictf("Bind for %s failed: all ports are allocated", w.HostIP)
	}
	return b, last
}

// candidates are the host ports that would do for w, in the order to try them.
func (t *portTable) candidates(w wish) []uint16 {
	var out []uint16
	if w.from != 0 {
		for p := int(w.from); p <= int(w.to); p++ {
			out = append(out, uint16(p))
		}
		return out
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range lastEphemeral - firstEphemeral + 1 {
		p := int(t.next) + i
		if p > lastEphemeral {
			p -= lastEphemeral - firstEphemeral + 1
		}
		out = append(out, uint16(p))
	}
	if t.next++; t.next > lastEphemeral || t.next == 0 {
		t.next = firstEphemeral
	}
	return out
}

var errPortTaken = errors.New("port is already allocated")

// hold takes one port, or says in Docker's words why not.
func (t *portTable) hold(container string, b binding) error {
	key := b.key()
	if !t.claim(container, key) {
		return conflict{fmt.Sprintf("Bind for %s:%d failed: port is already allocated", b.HostIP, b.HostPort), errPortTaken}
	}
	var sock io.Closer
	err := namespace.Do(t.ns, func() (err error) {
		sock, err = listen(b)
		return err
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		delete(t.owner, key)
		var errno syscall.Errno
		if errors.As(err, &errno) {
			err = errno
		}
		return conflict{fmt.Sprintf("failed to bind host port for %s:%d: %v", b.HostIP, b.HostPort, err), err}
	}
	if t.held[container] == nil {
		t.held[container] = map[portKey]io.Closer{}
	}
	t.held[container][key] = sock
	return nil
}

// claim reserves a port among containers. A port on every address collides with
// the same port on any single one.
func (t *portTable) claim(container string, key portKey) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.owner {
		if k.Proto == key.Proto && k.Port == key.Port && (k.Addr == key.Addr || !k.Addr.IsValid() || !key.Addr.IsValid()) {
			return false
		}
	}
	t.owner[key] = container
	return true
}

// release gives ports of a container back. When it returns, they are free.
func (t *portTable) release(container string, bs []binding) error {
	t.mu.Lock()
	var socks []io.Closer
	for _, b := range bs {
		key := b.key()
		if t.owner[key] != container {
			continue
		}
		socks = append(socks, t.held[container][key])
		delete(t.held[container], key)
		delete(t.owner, key)
	}
	if len(t.held[container]) == 0 {
		delete(t.held, container)
	}
	t.mu.Unlock()
	var errs []error
	for _, s := range socks {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// closeAll lets go of every socket. The rules stay: containers outlive the daemon.
func (t *portTable) closeAll() error {
	t.mu.Lock()
	held := t.held
	t.held, t.owner = map[string]map[portKey]io.Closer{}, map[portKey]string{}
	t.mu.Unlock()
	var errs []error
	for _, socks := range held {
		for _, s := range socks {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// listen opens the socket that stands for a published port, in the namespace of
// this thread.
func listen(b binding) (io.Closer, error) {
	addr := netip.AddrPortFrom(b.HostIP, b.HostPort).String()
	var lc net.ListenConfig
	if b.Proto == "udp" {
		return lc.ListenPacket(context.Background(), "udp4", addr)
	}
	return lc.Listen(context.Background(), "tcp4", addr)
}

// conflict is an error of the kind errdefs.ErrConflict that keeps its cause.
type conflict struct {
	text  string
	cause error
}

func (e conflict) Error() string { return e.text }
func (e conflict) Unwrap() []error {
	return []error{cluster.Conflictf("%s", e.text), e.cause}
}
