package network

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/network"
)

func prefixes(in ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range in {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestPickSubnet(t *testing.T) {
	for _, c := range []struct {
		used []string
		want string
	}{
		{nil, "172.17.0.0/16"},
		{[]string{"172.17.0.0/16"}, "172.18.0.0/16"},
		{[]string{"172.17.200.0/24", "172.18.0.0/15"}, "172.20.0.0/16"}, // the host routes there
		{[]string{"172.16.0.0/12"}, "192.168.0.0/20"},
		{[]string{"172.16.0.0/12", "192.168.1.0/24"}, "192.168.16.0/20"},
		{[]string{"172.16.0.0/12", "192.168.0.0/16"}, ""},
	} {
		got, err := pickSubnet(defaultPools(), prefixes(c.used...))
		if c.want == "" {
			if err == nil || err.Error() != "all predefined address pools have been fully subnetted" {
				t.Errorf("%v: %v, %v", c.used, got, err)
			}
		} else if err != nil || got.String() != c.want {
			t.Errorf("%v: %v, %v; want %s", c.used, got, err, c.want)
		}
	}
	// A pool at the very end of the address space ends there.
	end := []Pool{{netip.MustParsePrefix("255.255.255.0/24"), 25}}
	if _, err := pickSubnet(end, prefixes("255.255.255.0/24")); err == nil {
		t.Error("a subnet beyond the last address")
	}
}

func TestPickAddr(t *testing.T) {
	r := &netRecord{ID: "id", Name: "n", Subnet: netip.MustParsePrefix("10.1.0.0/29"), Gateway: netip.MustParseAddr("10.1.0.1"),
		Aux: map[string]netip.Addr{"router": netip.MustParseAddr("10.1.0.3")}}
	taken := map[netip.Addr]bool{}
	var got []string
	for {
		a, err := pickAddr(r, taken, netip.Addr{})
		if err != nil {
			if !strings.Contains(err.Error(), "no available IPv4 addresses") {
				t.Error(err)
			}
			break
		}
		if taken[a] {
			t.Fatalf("%s given twice", a)
		}
		taken[a] = true
		got = append(got, a.String())
	}
	if diff := cmp.Diff([]string{"10.1.0.2", "10.1.0.4", "10.1.0.5", "10.1.0.6"}, got); diff != "" {
		t.Error(diff)
	}
	delete(taken, netip.MustParseAddr("10.1.0.4"))
	for want, ok := range map[string]bool{"10.1.0.4": true, "10.1.0.3": true, "10.1.0.2": false, "10.1.0.1": false,
		"10.1.0.0": false, "10.1.0.7": false, "10.1.0.8": false, "fd00::1": false} {
		if _, err := pickAddr(r, taken, netip.MustParseAddr(want)); (err == nil) != ok {
			t.Errorf("%s: %v", want, err)
		}
	}
	r.Range = netip.MustParsePrefix("10.1.0.4/31")
	if a, err := pickAddr(r, map[netip.Addr]bool{}, netip.Addr{}); err != nil || a.String() != "10.1.0.4" {
		t.Errorf("in a range: %v, %v", a, err)
	}
}

func TestParsePorts(t *testing.T) {
	ports := portsOf(t, map[string]string{"80/tcp": "8000-8005", "81/tcp": "8000", "53/udp": "", "443/tcp": "127.0.0.1:8443", "22/tcp": "2222"})
	ports[network.MustParsePort("9/tcp")] = nil // only exposed
	wishes, err := parsePorts(ports, netip.IPv4Unspecified())
	must(t, err)
	var got []string
	for _, w := range wishes {
		data, _ := json.Marshal([]any{w.ContainerPort, w.Proto, w.HostIP, w.from, w.to})
		got = append(got, string(data))
	}
	want := []string{`[22,"tcp","0.0.0.0",2222,2222]`, `[81,"tcp","0.0.0.0",8000,8000]`, `[443,"tcp","127.0.0.1",8443,8443]`,
		`[80,"tcp","0.0.0.0",8000,8005]`, `[53,"udp","0.0.0.0",0,0]`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"x", "70000", "10-", "9-8", "-1", "0-5"} {
		if _, err := parsePorts(portsOf(t, map[string]string{"80/tcp": bad}), netip.IPv4Unspecified()); err == nil {
			t.Errorf("%q is taken for a port", bad)
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 10.0.0.1\n# no\nsearch a b\noptions ndots:1\nnameserver ::1%eth0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		host := parseResolvConf(data)
		if again := parseResolvConf(host.text()); !reflect.DeepEqual(again, host) {
			t.Errorf("a container would be told %+v of %+v", again, host)
		}
	})
}

func FuzzTakesAway(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) { takesAway(data) }) // must end, and not reach beyond data
}
