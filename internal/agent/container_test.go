package agent

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

func wanted(change func(*cluster.WantedTask)) *cluster.WantedTask {
	t := &cluster.WantedTask{
		ID: "t1", Name: "web.3.t1", ServiceID: "s1", ServiceName: "web", ServiceLabels: map[string]string{"tier": "front"},
		Slot: 3, NodeID: "n1", Spec: &swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "img"}},
	}
	if change != nil {
		change(t)
	}
	return t
}

var here = &swarm.NodeDescription{Hostname: "worker1", Platform: swarm.Platform{Architecture: "x86_64", OS: "linux"}}

func TestRequest(t *testing.T) {
	grace, yes, swap, swappiness := 1500*time.Millisecond, true, int64(100), int64(10)
	task := wanted(func(w *cluster.WantedTask) {
		w.LogDriver = &swarm.Driver{Name: "none"}
		w.HostPorts = []swarm.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp"}, {TargetPort: 53, Protocol: "udp"}}
		w.Networks = []cluster.Attachment{{NetworkID: "ingress", Addr: netip.MustParseAddr("10.0.0.9")}, {NetworkID: "front", Addr: netip.MustParseAddr("10.0.1.9"), Aliases: []string{"www"}}}
		w.Spec.Resources = &swarm.ResourceRequirements{
			Limits: &swarm.Limit{NanoCPUs: 5e8, MemoryBytes: 1000, Pids: 7}, Reservations: &swarm.Resources{MemoryBytes: 500}, SwapBytes: &swap, MemorySwappiness: &swappiness,
		}
		*w.Spec.ContainerSpec = swarm.ContainerSpec{
			Image: "img", Labels: map[string]string{"mine": "x", "com.docker.swarm.task.id": "forged"}, Command: []string{"run"}, Args: []string{"-v"},
			Hostname: "{{.Node.Hostname}}-{{.Task.Slot}}", Env: []string{"NAME={{.Service.Name}}", "PLAIN", "L={{index .Service.Labels \"tier\"}}"}, Dir: "/w", User: "1:2", Groups: []string{"9"},
			Privileges: &swarm.Privileges{NoNewPrivileges: true, Seccomp: &swarm.SeccompOpts{Mode: swarm.SeccompModeUnconfined}},
			Init:       &yes, StopSignal: "SIGQUIT", TTY: true, OpenStdin: true, ReadOnly: true,
			Mounts:          []mount.Mount{{Type: mount.TypeVolume, Source: "data-{{.Task.Slot}}", Target: "/d", VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{"of": "{{.Task.ID}}"}}}},
			StopGracePeriod: &grace, Hosts: []string{"10.1.1.1 db database"}, Sysctls: map[string]string{"net.core.somaxconn": "1"},
			DNSConfig:     &swarm.DNSConfig{Nameservers: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, Search: []string{"x"}, Options: []string{"ndots:2"}},
			CapabilityAdd: []string{"CAP_NET_ADMIN"}, CapabilityDrop: []string{"ALL"}, OomScoreAdj: 5,
		}
	})
	nets := map[string]*cluster.WantedNetwork{"ingress": {ID: "ingress", Name: "ingress", Driver: "overlay", Ingress: true}, "front": {ID: "front", Name: "front-net", Driver: "overlay"}}
	got, err := request(task, Image{}, nets, here)
	if err != nil {
		t.Fatal(err)
	}
	two, pids := 2, int64(7)
	want := container.CreateRequest{
		Config: &container.Config{
			Image: "img", Hostname: "worker1-3", Env: []string{"NAME=web", "PLAIN", "L=front"}, Entrypoint: []string{"run"}, Cmd: []string{"-v"}, WorkingDir: "/w", User: "1:2",
			Tty: true, OpenStdin: true, StopSignal: "SIGQUIT", StopTimeout: &two,
			Labels:       map[string]string{"mine": "x", cluster.LabelTask: "", cluster.LabelTaskID: "t1", cluster.LabelTaskName: "web.3.t1", cluster.LabelNodeID: "n1", cluster.LabelServiceID: "s1", cluster.LabelServiceName: "web"},
			ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}, network.MustParsePort("53/udp"): {}},
		},
		HostConfig: &container.HostConfig{
			NetworkMode: "front", Init: &yes, ReadonlyRootfs: true, GroupAdd: []string{"9"}, CapAdd: []string{"CAP_NET_ADMIN"}, CapDrop: []string{"ALL"}, OomScoreAdj: 5,
			Mounts:      []mount.Mount{{Type: mount.TypeVolume, Source: "data-3", Target: "/d", VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{"of": "t1"}}}},
			SecurityOpt: []string{"no-new-privileges=true", "seccomp=unconfined"}, ExtraHosts: []string{"db:10.1.1.1", "database:10.1.1.1"}, Sysctls: map[string]string{"net.core.somaxconn": "1"},
			DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, DNSSearch: []string{"x"}, DNSOptions: []string{"ndots:2"}, LogConfig: container.LogConfig{Type: "none"},
			Resources:    container.Resources{NanoCPUs: 5e8, Memory: 1000, MemoryReservation: 500, MemorySwap: 1100, MemorySwappiness: &swappiness, PidsLimit: &pids},
			PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "8080"}}, network.MustParsePort("53/udp"): {{}}},
		},
		NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{
			"ingress": {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.0.0.9")}},
			"front":   {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.0.1.9")}, Aliases: []string{"www"}},
		}},
	}
	if diff := cmp.Diff(want, got.Request, cmpopts.EquateComparable(netip.Addr{}, network.Port{})); diff != "" {
		t.Error(diff)
	}
	if !got.Swarm || got.Name != "web.3.t1" {
		t.Errorf("%+v", got)
	}
	if task.Spec.ContainerSpec.Mounts[0].Source != "data-{{.Task.Slot}}" || task.Spec.ContainerSpec.Mounts[0].VolumeOptions.Labels["of"] != "{{.Task.ID}}" {
		t.Error("the spec was changed, which others share")
	}
}

func TestNetworkModes(t *testing.T) {
	nets := map[string]*cluster.WantedNetwork{"h": {ID: "h", Name: "host", Driver: "host"}, "i": {ID: "i", Name: "ingress", Driver: "overlay", Ingress: true}}
	for _, c := range []struct {
		at        []cluster.Attachment
		mode      container.NetworkMode
		endpoints int
	}{
		{nil, "default", 0},
		{[]cluster.Attachment{{NetworkID: "h"}}, "host", 0},
		{[]cluster.Attachment{{NetworkID: "i"}}, "i", 1},
	} {
		mode, eps := attachments(wanted(func(w *cluster.WantedTask) { w.Networks = c.at }), nets)
		if mode != c.mode || len(eps) != c.endpoints {
			t.Errorf("%v: %s %v", c.at, mode, eps)
		}
	}
}

func TestImageEnvTemplates(t *testing.T) {
	img := Image{Env: []string{"SKEP_SERVICE_NAME={{.Service.Name}}", "SKEP_TASK_SLOT={{.Task.Slot}}"}}
	task := wanted(func(w *cluster.WantedTask) { w.Spec.ContainerSpec.Env = []string{"SKEP_SERVICE_NAME=mine"} })
	req, err := request(task, img, nil, here)
	if err != nil || len(req.Request.Env) != 1 {
		t.Errorf("without the label: %q %v", req.Request.Env, err)
	}
	img.Labels = map[string]string{LabelEnvTemplates: "true"}
	req, err = request(task, img, nil, here)
	if diff := cmp.Diff([]string{"SKEP_SERVICE_NAME=web", "SKEP_TASK_SLOT=3", "SKEP_SERVICE_NAME=mine"}, req.Request.Env); diff != "" || err != nil {
		t.Errorf("%s %v", diff, err) // the engine takes the last of each name
	}
}

func TestWhatIsRefused(t *testing.T) {
	for _, c := range []struct {
		change func(*cluster.WantedTask)
		want   string
		kind   func(error) bool
	}{
		{func(w *cluster.WantedTask) { w.Spec.ContainerSpec.Env = []string{"A={{.Bogus}}"} }, `expanding env failed: expanding env "A={{.Bogus}}": template: expansion:1:2: executing "expansion" at <.Bogus>: can't evaluate field Bogus`, nil},
		{func(w *cluster.WantedTask) { w.Spec.ContainerSpec.Env = []string{`A={{.Service.Labels.nope}}`} }, `map has no entry for key "nope"`, nil},
		{func(w *cluster.WantedTask) { w.Spec.ContainerSpec.Hostname = "{{" }, "expanding hostname failed", nil},
		{func(w *cluster.WantedTask) {
			w.Spec.ContainerSpec.Env = []string{`A={{range $i, $e := .Service.Labels}}{{printf "%9999999s" "x"}}{{end}}`}
		}, "too wide", nil},
		{func(w *cluster.WantedTask) {
			w.Spec.ContainerSpec.Mounts = []mount.Mount{{Type: mount.TypeCluster, Target: "/x"}}
		}, "cluster volumes are not supported yet", errdefs.IsNotImplemented},
		{func(w *cluster.WantedTask) { w.HostPorts = []swarm.PortConfig{{TargetPort: 70000, Protocol: "tcp"}} }, "invalid port", errdefs.IsInvalidArgument},
	} {
		_, err := request(wanted(c.change), Image{}, nil, here)
		if err == nil || !strings.Contains(err.Error(), c.want) || c.kind != nil && !c.kind(err) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

func TestBoundPorts(t *testing.T) {
	have := network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "8080"}}, network.MustParsePort("53/udp"): {{HostPort: "40001"}}}
	got := bound([]swarm.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp"}, {TargetPort: 53, Protocol: "udp"}, {TargetPort: 99, Protocol: "tcp"}}, have)
	want := []swarm.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp"}, {TargetPort: 53, PublishedPort: 40001, Protocol: "udp"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("{{.Service.Name}}-{{.Task.Slot}}")
	f.Add(`{{join "," "a" "b"}}{{join}}`)
	facts := factsOf(wanted(nil), here)
	f.Fuzz(func(t *testing.T, s string) {
		if out, err := facts.expand(s); err == nil && len(out) > maxExpansion && len(out) > len(s) {
			t.Errorf("%d bytes from %q", len(out), s)
		}
	})
}

func TestDescribe(t *testing.T) {
	d, err := Describe("worker1", "1.0", map[string]string{"a": "b"})
	if err != nil || d.Resources.NanoCPUs < 1e9 || d.Resources.MemoryBytes < 1<<20 || d.Platform.OS != "linux" || len(d.Engine.Plugins) == 0 {
		t.Errorf("%+v %v", d, err)
	}
}
