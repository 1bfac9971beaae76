package swarm

import (
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
)

// machine is a Host with these interfaces.
type machine []Interface

func (m machine) Interfaces() ([]Interface, error) { return m, nil }

func (m machine) IsLocal(a netip.Addr) bool {
	for _, i := range m {
		for _, b := range i.Addrs {
			if a == b {
				return true
			}
		}
	}
	return a.IsLoopback()
}

func iface(name string, addrs ...string) Interface {
	i := Interface{Name: name, Up: true, Loopback: name == "lo"}
	for _, a := range addrs {
		i.Addrs = append(i.Addrs, netip.MustParseAddr(a))
	}
	return i
}

func TestChooseAddresses(t *testing.T) {
	lo := iface("lo", "127.0.0.1", "::1")
	docker := iface("docker0", "172.17.0.1")
	solo := machine{lo, docker, iface("eth0", "10.99.0.15", "fe80::1")}
	two := machine{lo, iface("eth0", "10.99.0.15"), iface("eth1", "10.98.0.15")}
	twice := machine{lo, iface("eth0", "10.99.0.15", "10.99.0.115")}
	six := machine{lo, iface("eth0", "fe80::1", "fd00::5")}
	const badAdvertise = "advertise address must be a non-zero IP address or network interface (with optional port number)"
	const badListen = "listen address must be an IP address or network interface (with optional port number)"
	for _, c := range []struct {
		name                    string
		host                    machine
		listen, advertise, data string
		daemon                  string
		want                    string // listen, advertise, data
		err                     string
	}{
		{name: "one address", host: solo, want: "0.0.0.0:2377 10.99.0.15:2377 10.99.0.15"},
		{name: "the command line's default", host: solo, listen: "0.0.0.0:2377", want: "0.0.0.0:2377 10.99.0.15:2377 10.99.0.15"},
		{name: "IPv6 only", host: six, want: "[::]:2377 [fd00::5]:2377 fd00::5"},
		{name: "two interfaces", host: two,
			err: "could not choose an IP address to advertise since this system has multiple addresses on different interfaces (10.99.0.15 on eth0 and 10.98.0.15 on eth1)"},
		{name: "two addresses", host: twice,
			err: "could not choose an IP address to advertise since this system has multiple addresses on interface eth0 (10.99.0.15 and 10.99.0.115)"},
		{name: "none", host: machine{lo, docker}, err: "could not find the system's IP address"},
		{name: "by interface", host: two, advertise: "eth1", want: "0.0.0.0:2377 10.98.0.15:2377 10.98.0.15"},
		{name: "by interface and port", host: two, advertise: "eth1:4000", want: "0.0.0.0:2377 10.98.0.15:4000 10.98.0.15"},
		{name: "by an interface with two", host: twice, advertise: "eth0", err: "interface eth0 has more than one IPv4 address (10.99.0.15 and 10.99.0.115)"},
		{name: "by an interface with none", host: machine{iface("eth9")}, advertise: "eth9", err: "interface eth9 has no usable IPv4 or IPv6 address"},
		{name: "by address", host: two, advertise: "10.98.0.15", want: "0.0.0.0:2377 10.98.0.15:2377 10.98.0.15"},
		{name: "listen's port is advertised", host: two, listen: "eth0:3000", advertise: "eth1", want: "10.99.0.15:3000 10.98.0.15:3000 10.98.0.15"},
		{name: "listen's address is advertised", host: two, listen: "eth1", want: "10.98.0.15:2377 10.98.0.15:2377 10.98.0.15"},
		{name: "another data path", host: two, advertise: "eth0", data: "eth1", want: "0.0.0.0:2377 10.99.0.15:2377 10.98.0.15"},
		{name: "the daemon's default", host: two, daemon: "eth1", want: "0.0.0.0:2377 10.98.0.15:2377 10.98.0.15"},
		{name: "not of this host", host: solo, advertise: "10.99.9.9", err: "advertise address 10.99.9.9 is not an address of this host"},
		{name: "no such port", host: solo, advertise: "10.99.0.15:70000", err: badAdvertise},
		{name: "port 0", host: solo, advertise: "10.99.0.15:0", err: badAdvertise},
		{name: "bogus", host: solo, advertise: "bogus", err: badAdvertise},
		{name: "zero", host: solo, advertise: "0.0.0.0", err: badAdvertise},
		{name: "a bad listen address", host: solo, listen: "foo:2377", err: badListen},
		{name: "a bad listen port", host: solo, listen: "0.0.0.0:70000", err: badListen},
		{name: "listen elsewhere", host: solo, listen: "10.1.1.1", err: "listen address 10.1.1.1 is not an address of this host"},
		{name: "a bad data path", host: solo, data: "foo",
			err: "data path address must be a non-zero IP address or network interface (without a port number)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := chooser{host: c.host, advertise: c.daemon}.choose(c.listen, c.advertise, c.data, netip.Addr{})
			if c.err != "" {
				if err == nil || err.Error() != c.err || !errdefs.IsInvalidArgument(err) {
					t.Errorf("got %+v, %v; want %q", got, err, c.err)
				}
				return
			}
			if s := got.Listen.String() + " " + got.Advertise.String() + " " + got.Data.String(); err != nil || s != c.want {
				t.Errorf("got %s, %v; want %s", s, err, c.want)
			}
		})
	}
}

func FuzzAddresses(f *testing.F) {
	f.Add("eth0:2377", "[::1]:2377", "10.0.0.1")
	m := machine{iface("eth0", "10.99.0.15")}
	f.Fuzz(func(t *testing.T, listen, advertise, data string) {
		got, err := chooser{host: m}.choose(listen, advertise, data, netip.Addr{})
		if err == nil && (!got.Advertise.IsValid() || got.Advertise.Port() == 0 || got.Advertise.Addr().IsUnspecified() || got.Listen.Port() == 0) {
			t.Errorf("%q %q %q gave %+v", listen, advertise, data, got)
		}
	})
}

func TestThisHost(t *testing.T) {
	if !(thisHost{}).IsLocal(netip.MustParseAddr("127.0.0.1")) || (thisHost{}).IsLocal(netip.MustParseAddr("192.0.2.1")) {
		t.Error("this host does not know its own addresses")
	}
	all, err := thisHost{}.Interfaces()
	if err != nil || len(all) == 0 {
		t.Errorf("%v, %v", all, err)
	}
}
