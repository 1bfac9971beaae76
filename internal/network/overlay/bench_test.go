package overlay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// BenchmarkOfPlain compares a TCP stream from task to task with one between
// namespaces on a VXLAN laid by hand, on the same two hosts. They take turns
// every few hundredths of a second, in any order, so that what else the machine
// does hits both alike; with a few hundred turns the medians stand still.
func BenchmarkOfPlain(b *testing.B) {
	l := newLab(b)
	startApp(l)
	for i := 1; i <= 2; i++ {
		l.plainVXLAN(i)
	}
	task, plain := l.pipe("skov-c1", "skov-c2", "10.0.1.12:90"), l.pipe("skov-p1", "skov-p2", "10.200.0.2:90")
	var speed, cost []float64
	for b.Loop() {
		first, second := task, plain
		if rand.IntN(2) == 0 {
			first, second = plain, task
		}
		first.burst()
		second.burst()
		speed = append(speed, task.speed/plain.speed)
		cost = append(cost, task.cost/plain.cost)
	}
	b.ReportMetric(median(speed), "of-plain-speed")
	b.ReportMetric(median(cost), "of-plain-CPU")
}

// plainVXLAN lays host i's half of a VXLAN between hosts 1 and 2: a namespace,
// a cable, a bridge.
func (l *lab) plainVXLAN(i int) {
	host, ns := fmt.Sprint("skov-h", i), fmt.Sprint("skov-p", i)
	l.netns(ns)
	for _, args := range []string{
		"link add plainbr mtu 1450 type bridge",
		fmt.Sprintf("link add plainvx mtu 1450 type vxlan id 4242 dstport 4799 local 10.99.0.%d remote 10.99.0.%d", i, 3-i),
		"link set plainvx master plainbr up",
		"link add plainv mtu 1450 type veth peer name eth0 mtu 1450 netns " + ns,
		"link set plainv master plainbr up",
		"link set plainbr up",
	} {
		l.ip(host, args)
	}
	l.ip(ns, fmt.Sprintf("addr add 10.200.0.%d/24 dev eth0", i))
	l.ip(ns, "link set eth0 up")
}

// pipe is a connection to a sink, and what its last burst was like.
type pipe struct {
	net.Conn
	got         atomic.Int64
	more        chan struct{} // got has changed; capacity 1
	sent        int64
	speed, cost float64 // bytes a second; CPU seconds a byte, both ends
}

func (l *lab) pipe(from, to, addr string) *pipe {
	l.t.Helper()
	p := &pipe{more: make(chan struct{}, 1)}
	l.sinkTo(to, ":90", func(n int) {
		p.got.Add(int64(n))
		select {
		case p.more <- struct{}{}:
		default:
		}
	})
	l.write(from, "/proc/sys/net/ipv4/tcp_slow_start_after_idle", "0") // it rests while others have their turn
	if err := l.in(from, func() (err error) { p.Conn, err = net.Dial("tcp4", addr); return }); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { p.Close() })
	p.burst() // to full speed
	return p
}

// burst sends for 40 ms and waits until all of it has arrived.
func (p *pipe) burst() {
	buf := make([]byte, 128<<10)
	before, start, spent := p.sent, time.Now(), cpuTime()
	for time.Since(start) < 40*time.Millisecond {
		n, err := p.Write(buf)
		p.sent += int64(n)
		if err != nil {
			return // the next figure will show it
		}
	}
	for p.got.Load() < p.sent {
		<-p.more
	}
	n := float64(p.sent - before)
	p.speed, p.cost = n/time.Since(start).Seconds(), (cpuTime()-spent).Seconds()/n
}

func cpuTime() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r) // it cannot fail
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// sink reads and forgets.
func (l *lab) sink(ns, addr string) { l.sinkTo(ns, addr, func(int) {}) }

// sinkTo is sink that tells how much it got.
func (l *lab) sinkTo(ns, addr string, got func(n int)) {
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
					n, err := c.Read(b)
					got(n)
					if err != nil {
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
