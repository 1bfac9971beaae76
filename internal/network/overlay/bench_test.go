package overlay

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
)

// crowd is a network of services with ten tasks each, here and elsewhere.
func crowd(services int) *plan {
	p := &plan{net: cluster.WantedNetwork{
		ID: "crowd", Name: "crowd", Driver: "overlay", VNI: 0x2000, Port: 4789,
		Subnet: netip.MustParsePrefix("10.32.0.0/16"), Gateway: netip.MustParseAddr("10.32.0.1"),
	}}
	for s := range services {
		id := fmt.Sprint("s", s)
		for i := range 10 {
			p.endpoint(fmt.Sprint(id, ".", i), 1+i%3, fmt.Sprintf("10.32.%d.%d", 1+s, 10+i), id, fmt.Sprint(id, ".", i))
		}
		p.services = append(p.services, cluster.VirtualService{
			NetworkID: "crowd", ServiceID: id, Name: id, VIP: netip.MustParseAddr(fmt.Sprintf("10.32.%d.5", 1+s)),
		})
	}
	return p
}

// BenchmarkChange is one back end leaving or coming back, in a network of 200
// services and 2,000 tasks, with 100 of the tasks on this host.
func BenchmarkChange(b *testing.B) {
	l := newLab(b)
	p := crowd(200)
	h := l.hosts[1]
	start := time.Now()
	if err := h.Apply(context.Background(), true, p.items(1)); err != nil {
		b.Fatal(err)
	}
	b.Logf("first Apply, 2000 tasks: %v", time.Since(start))
	var spent time.Duration
	for i := range 100 {
		ns := fmt.Sprint("skov-b", i)
		l.netns(ns)
		start := time.Now()
		h.attach("crowd", fmt.Sprint("b", i), ns, fmt.Sprintf("10.32.250.%d", 1+i), "eth0", nil)
		spent += time.Since(start)
	}
	b.Logf("Attach with 200 services: %v each", spent/100)
	e := p.endpoints[5]
	for b.Loop() {
		e.Serving = !e.Serving
		if err := h.Apply(context.Background(), false, []cluster.Item{endpointItem(e)}); err != nil {
			b.Fatal(err)
		}
	}
	start = time.Now()
	if err := h.Apply(context.Background(), true, p.items(1)); err != nil {
		b.Fatal(err)
	}
	b.Logf("complete Apply that changes nothing: %v", time.Since(start))
}

// BenchmarkThroughput prints what a TCP stream between two hosts carries by the
// task's address, by the service's and by the mesh, in one run.
func BenchmarkThroughput(b *testing.B) {
	l := newLab(b)
	startApp(l)
	ingress := ingressPlan()
	l.tell(appPlan(), ingress)
	ns, gw := l.hosts[2].container("m2")
	l.hosts[2].attach("ingress", "m2", ns, "10.0.9.12", "eth0", gw)
	l.sink("skov-c2", ":90")
	l.sink(ns, ":80")
	one := appPlan()
	one.endpoints[0].Serving, one.endpoints[2].Serving = false, false // the service is one task, on host 2
	l.tell(one, ingress)
	for b.Loop() {
		direct := l.stream("skov-c1", "10.0.1.12:90")
		vip := l.stream("skov-c1", "10.0.1.100:90")
		hosts := l.stream("skov-cl1", "10.99.0.2:8080")
		mesh := l.stream("skov-cl1", "10.99.0.1:8080")
		b.ReportMetric(direct, "Gbit/s-task")
		b.ReportMetric(vip/direct, "vip/task")
		b.ReportMetric(hosts, "Gbit/s-mesh-own-node")
		b.ReportMetric(mesh/hosts, "other-node/own-node")
	}
}

// sink reads and forgets.
func (l *lab) sink(ns, addr string) {
	var s net.Listener
	if err := l.in(ns, func() (err error) { s, err = net.Listen("tcp4", addr); return }); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { s.Close() })
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 1<<20)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// stream sends for a second and returns Gbit/s.
func (l *lab) stream(ns, addr string) float64 {
	var c net.Conn
	err := l.in(ns, func() (err error) { c, err = net.DialTimeout("tcp4", addr, patience); return })
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Close()
	start, sent, b := time.Now(), 0, make([]byte, 1<<20)
	for time.Since(start) < time.Second {
		n, err := c.Write(b)
		if err != nil {
			l.t.Fatal(err)
		}
		sent += n
	}
	return float64(sent) * 8 / 1e9 / time.Since(start).Seconds()
}

// BenchmarkAttach is a container coming and going in a network of five services.
func BenchmarkAttach(b *testing.B) {
	l := newLab(b)
	h := l.hosts[1]
	if err := h.Apply(context.Background(), true, crowd(5).items(1)); err != nil {
		b.Fatal(err)
	}
	l.netns("skov-b")
	var in, out time.Duration
	n := 0
	for b.Loop() {
		start := time.Now()
		h.attach("crowd", "b", "skov-b", "10.32.250.1", "eth0", nil)
		in += time.Since(start)
		start = time.Now()
		if err := h.Detach(context.Background(), "crowd", "b"); err != nil {
			b.Fatal(err)
		}
		out += time.Since(start)
		n++
	}
	b.ReportMetric(in.Seconds()*1e3/float64(n), "ms/attach")
	b.ReportMetric(out.Seconds()*1e3/float64(n), "ms/detach")
}
