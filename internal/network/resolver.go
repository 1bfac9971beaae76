package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/network/namespace"
	"github.com/skep-dev/skep/internal/network/nft"
)

const (
	tableNames = "skep-names"
	// namesPort is where the resolver really listens, so that port 53 stays the
	// container's own. It lies outside of the range that ports are picked from.
	namesPort = 61053
	// namesTTL is short: who keeps an answer must not miss a container that moved.
	namesTTL       = 1
	forwardTimeout = 2 * time.Second
	maxForwards    = 256
)

// resolver answers names inside the sandboxes: those of the container's
// networks itself, all others by asking the servers of the outside.
type resolver struct {
	m        *Manager
	host     netns.NsHandle
	forwards chan struct{} // a token for each question that is asked outside

	mu      sync.Mutex
	serving map[string]*nameServer // by container
}

// nameServer is the resolver's door in one sandbox.
type nameServer struct {
	servers []*dns.Server
	done    sync.WaitGroup
}

func newResolver(m *Manager, host netns.NsHandle) *resolver {
	return &resolver{m: m, host: host, forwards: make(chan struct{}, maxForwards), serving: map[string]*nameServer{}}
}

// open starts answering in the sandbox ns of a container; it is idempotent.
func (r *resolver) open(container string, ns netns.NsHandle) error {
	r.mu.Lock()
	already := r.serving[container] != nil
	r.mu.Unlock()
	if already {
		return nil
	}
	var udp net.PacketConn
	var tcp net.Listener
	err := namespace.Do(ns, func() (err error) {
		udp, tcp, err = listenNames()
		return err
	})
	if err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	err = redirectNames(ns, udp.LocalAddr().(*net.UDPAddr).AddrPort(), tcp.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		return errors.Join(fmt.Errorf("resolver: %w", err), udp.Close(), tcp.Close())
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { r.serve(container, w, q) })
	s := &nameServer{servers: []*dns.Server{{PacketConn: udp, Handler: h}, {Listener: tcp, Handler: h}}}
	for _, srv := range s.servers {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		s.done.Add(1)
		go func() {
			defer s.done.Done()
			if err := srv.ActivateAndServe(); err != nil {
				r.m.log.Debug("resolver ended", "container", container, "err", err)
			}
		}()
		<-up // a server that does not serve yet cannot be shut down
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.serving[container] = s
	return nil
}

// close stops answering in a sandbox and waits until it has.
func (r *resolver) close(container string) {
	r.mu.Lock()
	s := r.serving[container]
	delete(r.serving, container)
	r.mu.Unlock()
	if s == nil {
		return
	}
	over, cancel := context.WithTimeout(context.Background(), forwardTimeout)
	defer cancel()
	for _, srv := range s.servers {
		if err := srv.ShutdownContext(over); err != nil {
			r.m.log.Debug("resolver is slow to end", "container", container, "err", err)
		}
	}
	s.done.Wait()
}

func (r *resolver) closeAll() {
	r.mu.Lock()
	all := sortedKeys(r.serving)
	r.mu.Unlock()
	var done sync.WaitGroup
	for _, c := range all {
		done.Go(func() { r.close(c) })
	}
	done.Wait()
}

// listenNames opens the resolver's sockets in this thread's namespace.
func listenNames() (net.PacketConn, net.Listener, error) {
	at := func(port uint16) string { return netip.AddrPortFrom(resolverAddr, port).String() }
	var lc net.ListenConfig
	udp, err := lc.ListenPacket(context.Background(), "udp4", at(namesPort))
	if errors.Is(err, unix.EADDRINUSE) {
		udp, err = lc.ListenPacket(context.Background(), "udp4", at(0))
	}
	if err != nil {
		return nil, nil, err
	}
	tcp, err := lc.Listen(context.Background(), "tcp4", at(namesPort))
	if errors.Is(err, unix.EADDRINUSE) {
		tcp, err = lc.Listen(context.Background(), "tcp4", at(0))
	}
	if err != nil {
		return nil, nil, errors.Join(err, udp.Close())
	}
	return udp, tcp, nil
}

// redirectNames leads the sandbox's questions from port 53 to the sockets.
func redirectNames(ns netns.NsHandle, udp, tcp netip.AddrPort) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableNames}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	out := c.AddChain(&nftables.Chain{Name: "output", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	for _, to := range []struct {
		proto byte
		addr  netip.AddrPort
	}{{unix.IPPROTO_UDP, udp}, {unix.IPPROTO_TCP, tcp}} {
		c.AddRule(&nftables.Rule{Table: t, Chain: out, Exprs: nft.Rule(
			nft.Is(nft.Dest, resolverAddr), nft.Transport(to.proto), nft.ToPort(53), nft.To(to.addr))})
	}
	return c.Flush()
}

// serve answers one question.
func (r *resolver) serve(container string, w dns.ResponseWriter, q *dns.Msg) {
	_, overTCP := w.RemoteAddr().(*net.TCPAddr)
	a := r.answer(container, q, overTCP)
	if !overTCP {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil && int(opt.UDPSize()) > size {
			size = int(opt.UDPSize())
		}
		a.Truncate(size)
	}
	if err := w.WriteMsg(a); err != nil {
		r.m.log.Debug("answer not sent", "container", container, "err", err)
	}
}

func (r *resolver) answer(container string, q *dns.Msg, overTCP bool) *dns.Msg {
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		return new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented)
	}
	ask := q.Question[0]
	name := strings.TrimSuffix(strings.ToLower(ask.Name), ".")
	if ask.Qclass == dns.ClassINET {
		if ask.Qtype == dns.TypePTR {
			if addr, ok := fromArpa(name); ok {
				if known, ok := r.m.lookupAddr(container, addr); ok {
					return ptrReply(q, known)
				}
			}
		} else if addrs, ok := r.m.lookup(container, name); ok {
			return addrReply(q, addrs)
		}
	}
	if !strings.Contains(name, ".") && r.m.unsure(container) {
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	select {
	case r.forwards <- struct{}{}:
		defer func() { <-r.forwards }()
		return r.forward(container, q, overTCP)
	default: // somebody floods us: the others must still be answered
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
}

// addrReply answers for a name of ours. Only IPv4 addresses exist; other
// questions get an empty answer, not "no such name".
func addrReply(q *dns.Msg, addrs []netip.Addr) *dns.Msg {
	a := new(dns.Msg).SetReply(q)
	a.RecursionAvailable = true
	if len(addrs) == 0 {
		return a.SetRcode(q, dns.RcodeNameError)
	}
	if t := q.Question[0].Qtype; t != dns.TypeA && t != dns.TypeANY {
		return a
	}
	for _, addr := range addrs {
		a.Answer = append(a.Answer, &dns.A{A: addr.AsSlice(), Hdr: dns.RR_Header{
			Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: namesTTL}})
	}
	return a
}

func ptrReply(q *dns.Msg, name string) *dns.Msg {
	a := new(dns.Msg).SetReply(q)
	a.RecursionAvailable = true
	a.Answer = []dns.RR{&dns.PTR{Ptr: dns.Fqdn(name), Hdr: dns.RR_Header{
		Name: q.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: namesTTL}}}
	return a
}

// fromArpa reads 4.3.2.1.in-addr.arpa.
func fromArpa(name string) (netip.Addr, bool) {
	rev, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(rev)
	if err != nil || !a.Is4() {
		return netip.Addr{}, false
	}
	b := a.As4()
	return netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]}), true
}

// forward asks the servers of the outside in turn. Without any, or with none
// that answers, it says so at once rather than let the container wait.
func (r *resolver) forward(container string, q *dns.Msg, overTCP bool) *dns.Msg {
	for _, up := range r.m.upstreams(container) {
		a, err := r.exchange(up, q, overTCP)
		if err != nil {
			r.m.log.Debug("name server does not answer", "server", up.addr, "err", err)
			continue
		}
		if a.Rcode == dns.RcodeServerFailure || a.Rcode == dns.RcodeRefused {
			continue
		}
		a.Id = q.Id
		a.Compress = true
		return a
	}
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}

// upstream is a name server and the namespace it is asked from.
type upstream struct {
	addr  netip.Addr
	netns string // "" for the host's
}

func (r *resolver) exchange(up upstream, q *dns.Msg, overTCP bool) (*dns.Msg, error) {
	network := "udp"
	if overTCP {
		network = "tcp"
	}
	var conn net.Conn
	dial := func() (err error) {
		d := net.Dialer{Timeout: forwardTimeout}
		conn, err = d.Dial(network, netip.AddrPortFrom(up.addr, 53).String())
		return err
	}
	var err error
	if up.netns == "" {
		err = namespace.Do(r.host, dial)
	} else {
		err = namespace.DoAt(up.netns, func(netns.NsHandle) error { return dial() })
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := &dns.Client{Net: network, Timeout: forwardTimeout, UDPSize: dns.MaxMsgSize}
	a, _, err := client.ExchangeWithConn(q, &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize})
	return a, err
}
