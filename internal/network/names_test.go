package network

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/network/namespace"
)

// ask puts a question to 127.0.0.11 in a namespace.
func ask(t *testing.T, ns, proto, name string, typ uint16) (*dns.Msg, error) {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), typ)
	var a *dns.Msg
	err := namespace.DoAt(ns, func(netns.NsHandle) error {
		conn, err := net.DialTimeout(proto, "127.0.0.11:53", time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		c := &dns.Client{Net: proto, Timeout: 5 * time.Second}
		a, _, err = c.ExchangeWithConn(q, &dns.Conn{Conn: conn})
		return err
	})
	return a, err
}

// resolve returns the addresses, sorted, or the code of the answer.
func resolve(t *testing.T, ns, proto, name string) []string {
	t.Helper()
	a, err := ask(t, ns, proto, name, dns.TypeA)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return nil
	}
	if a.Rcode != dns.RcodeSuccess {
		return []string{dns.RcodeToString[a.Rcode]}
	}
	var out []string
	for _, rr := range a.Answer {
		if rr, ok := rr.(*dns.A); ok {
			out = append(out, rr.A.String())
		}
	}
	slices.Sort(out)
	return out
}

func knows(t *testing.T, ns, name string, want ...string) {
	t.Helper()
	for _, proto := range []string{"udp", "tcp"} {
		if diff := cmp.Diff(want, resolve(t, ns, proto, name)); diff != "" {
			t.Errorf("%s over %s: (-want +got)\n%s", name, proto, diff)
		}
	}
}

// nameServer answers outside.example.org in a namespace.
func serveNames(t *testing.T, ns string) {
	t.Helper()
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		if q.Question[0].Name == "outside.example.org." && q.Question[0].Qtype == dns.TypeA {
			a.Answer = []dns.RR{&dns.A{A: net.ParseIP("192.0.2.7"), Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}}}
		} else {
			a.Rcode = dns.RcodeNameError
		}
		w.WriteMsg(a)
	})
	must(t, namespace.DoAt(ns, func(netns.NsHandle) error {
		pc, err := net.ListenPacket("udp4", outsideAddr+":53")
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp4", outsideAddr+":53")
		if err != nil {
			return err
		}
		for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
			up := make(chan struct{})
			s.NotifyStartedFunc = func() { close(up) }
			go s.ActivateAndServe()
			<-up
			t.Cleanup(func() { s.Shutdown() })
		}
		return nil
	}))
}

func TestNames(t *testing.T) {
	h := newTestHost(t)
	h.network(network.CreateRequest{Name: "front"})
	h.network(network.CreateRequest{Name: "back"})
	h.network(network.CreateRequest{Name: "closed", Internal: true})
	req := h.request("web", nil, "front", "back")
	req.Endpoints[0].Aliases = []string{"www", "Shop"}
	web, err := h.Join(context.Background(), req)
	must(t, err)
	defer h.Leave(context.Background(), req.ContainerID)
	twin := h.request("twin", nil, "front")
	twin.Endpoints[0].Aliases = []string{"www"}
	_, err = h.Join(context.Background(), twin)
	must(t, err)
	defer h.Leave(context.Background(), twin.ContainerID)
	cl := h.request("client", nil, "front")
	cl.Endpoints[0].Links = []string{"web:linked"}
	client, err := h.Join(context.Background(), cl)
	must(t, err)
	defer h.Leave(context.Background(), cl.ContainerID)
	plain := h.join("plain", nil, "bridge")
	closed := h.join("closed", nil, "closed")

	webFront, webBack := web.Endpoints[0].Addr.Addr().String(), web.Endpoints[1].Addr.Addr().String()
	knows(t, client.NetNS, "web", webFront)
	knows(t, client.NetNS, "WEB", webFront)
	knows(t, client.NetNS, "shop", webFront)
	knows(t, client.NetNS, "linked", webFront)
	knows(t, client.NetNS, "web.front", webFront)
	knows(t, client.NetNS, req.ContainerID[:12], webFront)
	knows(t, client.NetNS, "www", webFront, "172.18.0.3")
	knows(t, web.NetNS, "web.back", webBack)
	// Nobody answers outside yet: that is told at once, not after a time-out.
	knows(t, client.NetNS, "plain", "SERVFAIL")
	knows(t, client.NetNS, "web.back", "SERVFAIL")

	serveNames(t, h.outside)
	knows(t, client.NetNS, "outside.example.org", "192.0.2.7")
	knows(t, client.NetNS, "plain", "NXDOMAIN")
	knows(t, closed.NetNS, "outside.example.org", "SERVFAIL")
	if a, err := ask(t, client.NetNS, "udp", "web", dns.TypeAAAA); err != nil || a.Rcode != dns.RcodeSuccess || len(a.Answer) > 0 {
		t.Errorf("AAAA: %v, %v", a, err)
	}
	rev, _ := dns.ReverseAddr(webFront)
	if a, err := ask(t, client.NetNS, "udp", rev, dns.TypePTR); err != nil || len(a.Answer) != 1 || a.Answer[0].(*dns.PTR).Ptr != "web.front." {
		t.Errorf("PTR: %v, %v", a, err)
	}
	if _, err := ask(t, plain.NetNS, "tcp", "web", dns.TypeA); err == nil {
		t.Error("names are answered on the default bridge")
	}
	must(t, h.Rename(context.Background(), req.ContainerID, "shopfront"))
	knows(t, client.NetNS, "shopfront", webFront)
	knows(t, client.NetNS, "web", "NXDOMAIN")

	for file, want := range map[string]string{
		"resolv.conf": "nameserver 127.0.0.11\nsearch example.org\noptions ndots:0\n",
		"hosts":       hostsHead + webFront + "\th-web\n" + webBack + "\th-web\n",
		"hostname":    "h-web\n",
	} {
		got, err := os.ReadFile(req.Dir + "/" + file)
		must(t, err)
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", file, diff)
		}
	}
}

func TestConnect(t *testing.T) {
	h := newTestHost(t)
	ctx := context.Background()
	h.network(network.CreateRequest{Name: "front", IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("172.18.0.0/16")}}}})
	req := h.request("web", map[string]string{"80/tcp": "8080"}, "bridge")
	sb, err := h.Join(ctx, req)
	must(t, err)
	defer h.Leave(ctx, req.ContainerID)
	client := h.join("client", nil, "front")
	echo(t, sb.NetNS, "tcp", 80)
	ep, err := h.Connect(ctx, req.ContainerID, EndpointRequest{Network: "front", Aliases: []string{"www"}})
	must(t, err)
	knows(t, client.NetNS, "www", ep.Addr.Addr().String())
	knows(t, sb.NetNS, "client", client.Endpoints[0].Addr.Addr().String())
	reaches(t, "connected", client.NetNS, "tcp", ep.Addr.Addr().String()+":80", "")
	reaches(t, "published", h.outside, "tcp", hostAddr+":8080", outsideAddr)
	hosts, err := os.ReadFile(req.Dir + "/hosts")
	must(t, err)
	if !strings.HasSuffix(string(hosts), "172.17.0.2\th-web\n172.18.0.3\th-web\n") {
		t.Errorf("hosts: %s", hosts)
	}
	if _, err := h.Connect(ctx, req.ContainerID, EndpointRequest{Network: "front"}); err == nil || err.Error() != "endpoint with name web already exists in network front" {
		t.Errorf("connected twice: %v", err)
	}
	// The default route and the published ports move to the network that is left.
	must(t, h.Disconnect(ctx, req.ContainerID, "bridge", false))
	echo(t, h.outside, "tcp", 80)
	reaches(t, "outside after a disconnect", sb.NetNS, "tcp", outsideAddr+":80", hostAddr)
	reaches(t, "published after a disconnect", h.outside, "tcp", hostAddr+":8080", outsideAddr)
	must(t, h.Disconnect(ctx, req.ContainerID, "front", false))
	blocked(t, "published with no network left", h.outside, "tcp", hostAddr+":8080")
	hosts, err = os.ReadFile(req.Dir + "/hosts")
	must(t, err)
	if string(hosts) != hostsHead {
		t.Errorf("hosts: %s", hosts)
	}
	if err := h.Disconnect(ctx, req.ContainerID, "front", false); err == nil {
		t.Error("disconnected twice")
	}
	_, err = h.Connect(ctx, req.ContainerID, EndpointRequest{Network: "front", Addr: netip.MustParseAddr("172.18.7.7")})
	must(t, err)
	reaches(t, "published again", h.outside, "tcp", hostAddr+":8080", outsideAddr)
}
