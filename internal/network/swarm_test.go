package network

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// swarmItems describe one service "web" with a task on each of two nodes, in the
// ingress network and one of the user's, published on 8080.
func swarmItems(self netip.Addr, nodes []netip.Addr) []cluster.Item {
	var items []cluster.Item
	for k, n := range []cluster.WantedNetwork{
		{ID: "ingressid", Name: "ingress", Subnet: netip.MustParsePrefix("10.0.0.0/24"), VNI: 4096, Ingress: true},
		{ID: "netid", Name: "net1", Subnet: netip.MustParsePrefix("10.0.1.0/24"), VNI: 4097, Attachable: true},
	} {
		n.Driver, n.Port, n.Gateway = "overlay", 4789, pickGateway(n.Subnet)
		for i, data := range nodes {
			var own netip.Addr
			if n.Ingress {
				own = netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", 2+i))
			}
			if data == self {
				n.NodeAddr = own
			}
			node := fmt.Sprint("node", i)
			items = append(items,
				cluster.Item{Kind: cluster.ItemPeer, ID: n.ID + "/" + node, Peer: &cluster.Peer{NetworkID: n.ID, NodeID: node, DataAddr: data, NodeAddr: own}},
				cluster.Item{Kind: cluster.ItemEndpoint, ID: fmt.Sprintf("%s/task%d", n.ID, i), Endpoint: &cluster.Endpoint{
					NetworkID: n.ID, TaskID: fmt.Sprint("task", i), NodeID: node, DataAddr: data, Addr: taskAddr(k, i),
					ServiceID: "webid", Names: []string{fmt.Sprint("web.", i+1)}, Serving: true}})
		}
		svc := cluster.VirtualService{NetworkID: n.ID, ServiceID: "webid", Name: "web", VIP: netip.MustParseAddr(fmt.Sprintf("10.0.%d.100", k))}
		if n.Ingress {
			svc.Ports = []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeIngress}}
		}
		items = append(items, cluster.Item{Kind: cluster.ItemNetwork, ID: n.ID, Network: &n},
			cluster.Item{Kind: cluster.ItemService, ID: n.ID + "/webid", Service: &svc})
	}
	return items
}

func taskAddr(network, node int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", network, 10+node))
}

func TestSwarm(t *testing.T)            { testSwarm(t, true) }
func TestSwarmFindsItself(t *testing.T) { testSwarm(t, false) }

// testSwarm runs two nodes that are told their own addresses, or are not.
func testSwarm(t *testing.T, told bool) {
	world := newWorld(t)
	ctx := context.Background()
	hosts := []*testHost{newHostIn(t, world, "10.99.0.11"), newHostIn(t, world, "10.99.0.12")}
	if !told {
		for _, h := range hosts {
			h.stop()
			h.untold = true
			h.start()
		}
	}
	nodes := []netip.Addr{hosts[0].addr, hosts[1].addr}
	var boxes []*Sandbox
	for i, h := range hosts {
		must(t, h.Apply(ctx, true, swarmItems(h.addr, nodes)))
		req := h.request(fmt.Sprint("web", i), map[string]string{"80/tcp": "9090", "80/udp": "9090"})
		req.Endpoints = []EndpointRequest{{Network: "netid", Addr: taskAddr(1, i)}, {Network: "ingressid", Addr: taskAddr(0, i)}}
		sb, err := h.Join(ctx, req)
		must(t, err)
		t.Cleanup(func() { must(t, h.Leave(ctx, req.ContainerID)) })
		if got := sb.Endpoints[0].NetworkName; got != "ingress" {
			t.Errorf("eth0 is in %s", got)
		}
		if len(sb.Endpoints) != 2 {
			t.Errorf("endpoints: %v", sb.Endpoints)
		}
		echo(t, sb.NetNS, "tcp", 80)
		echo(t, sb.NetNS, "udp", 80)
		boxes = append(boxes, sb)
	}
	check := func(what string) {
		t.Helper()
		for i, h := range hosts {
			ns := boxes[i].NetNS
			reaches(t, what+": mesh", world, "tcp", h.addr.String()+":8080", outsideAddr)
			reaches(t, what+": mesh from the host", h.ns, "tcp", "127.0.0.1:8080", "")
			for _, proto := range []string{"tcp", "udp"} {
				reaches(t, what+": host port", world, proto, h.addr.String()+":9090", outsideAddr)
				reaches(t, what+": host port from the host", h.ns, proto, "127.0.0.1:9090", "")
			}
			reaches(t, what+": task to task", ns, "tcp", taskAddr(1, 1-i).String()+":80", taskAddr(1, i).String())
			reaches(t, what+": virtual address", ns, "tcp", "10.0.1.100:80", taskAddr(1, i).String())
			reaches(t, what+": mesh from a task", ns, "tcp", h.addr.String()+":8080", "")
			knows(t, ns, "web", "10.0.1.100")
			knows(t, ns, "tasks.web", "10.0.1.10", "10.0.1.11")
			knows(t, ns, "tasks.web.net1", "10.0.1.10", "10.0.1.11")
			knows(t, ns, "web.2", "10.0.1.11")
			reaches(t, what+": outside", ns, "tcp", outsideAddr+":80", h.addr.String())
		}
	}
	echo(t, world, "tcp", 80)
	check("at first")

	h := hosts[0]
	n, err := h.Inspect(ctx, "net1")
	must(t, err)
	if n.Scope != "swarm" || len(n.Peers) != 2 || len(n.Containers) != 1 {
		t.Errorf("inspect: %+v", n)
	}
	gw, err := h.Inspect(ctx, "docker_gwbridge")
	must(t, err)
	if len(gw.Containers) != 1 || gw.Options[optICC] != "false" {
		t.Errorf("inspect: %+v", gw)
	}
	h.stop()
	h.start()
	must(t, h.Adopt(ctx, []string{containerID("web0")}))
	knows(t, boxes[0].NetNS, "web", "SERVFAIL") // not told yet: no name is denied
	must(t, h.Apply(ctx, true, swarmItems(h.addr, nodes)))
	check("after a restart")

	must(t, h.Leave(ctx, containerID("web0")))
	must(t, h.LeaveSwarm(ctx))
	for _, name := range h.linkNames() {
		switch name {
		case "lo", "up0", "skep0", gatewayLink:
		default:
			t.Errorf("left over: %s", name)
		}
	}
}
