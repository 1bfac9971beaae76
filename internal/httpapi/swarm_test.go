package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/servicelogs"
)

// fakeSwarm is a manager that remembers what it was asked.
type fakeSwarm struct {
	noMember
	Control  // nil: what is not below is not called
	calls    []string
	networks []network.Inspect
}

func (f *fakeSwarm) called(format string, args ...any) {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeSwarm) Info(context.Context) swarm.Info {
	return swarm.Info{LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true}
}

func (f *fakeSwarm) Init(_ context.Context, req swarm.InitRequest) (string, error) {
	f.called("init %s", req.ListenAddr)
	return "n0", nil
}

func (f *fakeSwarm) UpdateSwarm(_ context.Context, version uint64, _ swarm.Spec, flags UpdateFlags) error {
	f.called("update swarm %d %+v", version, flags)
	return nil
}

func (f *fakeSwarm) Services(_ context.Context, filters Filters, status bool) ([]swarm.Service, error) {
	f.called("services %v %v", filters, status)
	return nil, nil
}

func (f *fakeSwarm) CreateService(_ context.Context, spec swarm.ServiceSpec, _ ServiceOptions) (swarm.ServiceCreateResponse, error) {
	f.called("create %s", spec.Name)
	return swarm.ServiceCreateResponse{ID: "s0"}, nil
}

func (f *fakeSwarm) UpdateService(_ context.Context, ref string, version uint64, _ swarm.ServiceSpec, opts ServiceOptions) (swarm.ServiceUpdateResponse, error) {
	if version == 1 {
		return swarm.ServiceUpdateResponse{}, cluster.ErrStale
	}
	f.called("update %s %d %+v", ref, version, opts)
	return swarm.ServiceUpdateResponse{}, nil
}

func (f *fakeSwarm) RemoveService(_ context.Context, ref string) error {
	return cluster.NotFoundf("service %s not found", ref)
}

func (f *fakeSwarm) CreateSecret(_ context.Context, spec swarm.SecretSpec) (string, error) {
	f.called("secret %s %s", spec.Name, spec.Data)
	return "x0", nil
}

func (f *fakeSwarm) RemoveSecret(context.Context, string) error { return nil }

func (f *fakeSwarm) Networks(context.Context) ([]network.Inspect, error) { return f.networks, nil }

func (f *fakeSwarm) Network(_ context.Context, ref string) (network.Inspect, error) {
	for _, n := range f.networks {
		if n.ID == ref || n.Name == ref {
			return n, nil
		}
	}
	return network.Inspect{}, cluster.NotFoundf("network %s not found", ref)
}

func (f *fakeSwarm) CreateNetwork(_ context.Context, req network.CreateRequest) (string, error) {
	f.called("network %s", req.Name)
	return "w1", nil
}

func (f *fakeSwarm) RemoveNetwork(_ context.Context, ref string) error {
	f.called("remove network %s", ref)
	return nil
}

func (f *fakeSwarm) Logs(_ context.Context, service, task string, _ engine.LogsOptions, head func(bool), yield func(servicelogs.Entry) error) error {
	f.called("logs %s%s", service, task)
	head(false)
	return yield(servicelogs.Entry{LogEntry: engine.LogEntry{Stream: "stdout", Line: []byte("hi\n"), Attrs: map[string]string{"a": "1", "x": "y z", "com.docker.swarm.task.id": "another"}}, NodeID: "n", ServiceID: "s", TaskID: "t"})
}

// fakeNetworks are a host's own networks.
type fakeNetworks struct {
	Networks
	list    []network.Inspect
	removed []string
}

func (f *fakeNetworks) List(context.Context) ([]network.Inspect, error) { return f.list, nil }

func (f *fakeNetworks) Inspect(_ context.Context, ref string) (network.Inspect, error) {
	for _, n := range f.list {
		if n.ID == ref || n.Name == ref {
			return n, nil
		}
	}
	return network.Inspect{}, cluster.NotFoundf("network %s not found", ref)
}

func (f *fakeNetworks) Remove(_ context.Context, ref string) error {
	f.removed = append(f.removed, ref)
	return nil
}

func aNetwork(id, name, scope, driver string) network.Inspect {
	return network.Inspect{Network: network.Network{ID: id, Name: name, Scope: scope, Driver: driver}}
}

func serveSwarm(t *testing.T, sw *fakeSwarm, nets Networks) (*httptest.Server, *client.Client) {
	t.Helper()
	s := &Server{Networks: nets, Member: noMember{}, Logs: noMember{}, Control: noControl, Log: slog.New(slog.DiscardHandler)}
	if sw != nil {
		s.Member, s.Logs, s.Control = sw, sw, func() (Control, error) { return sw, nil }
	}
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(srv.Close)
	c, err := client.New(client.WithHost("tcp://" + srv.Listener.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return srv, c
}

func TestSwarmRoutes(t *testing.T) {
	sw := &fakeSwarm{}
	srv, _ := serveSwarm(t, sw, &fakeNetworks{})
	for _, c := range []struct {
		method, path, body string
		code               int
		answer             string
	}{
		{"POST", "/v1.41/swarm/init", `{"ListenAddr":"0.0.0.0:2377"}`, 200, `"n0"`},
		{"POST", "/v1.41/swarm/update?version=7&rotateWorkerToken=true", `{}`, 200, ""},
		{"POST", "/v1.41/swarm/update?version=x", `{}`, 400, `{"message":"invalid swarm version 'x': strconv.ParseUint: parsing \"x\": invalid syntax"}`},
		{"GET", "/v1.41/services?status=true&filters={\"name\":[\"a\"]}", "", 200, "[]"},
		{"GET", "/v1.40/services?status=true", "", 200, "[]"},
		{"GET", "/v1.41/services?filters={\"colour\":[\"a\"]}", "", 400, `{"message":"Invalid filter 'colour'"}`},
		{"POST", "/v1.41/services/create", `{"Name":"api"}`, 201, `{"ID":"s0","Warnings":null}`},
		{"POST", "/v1.41/services/api/update?version=9&rollback=previous&registryAuthFrom=spec", `{}`, 200, `{"Warnings":null}`},
		{"POST", "/v1.41/services/api/update?version=1", `{}`, 500, `{"message":"update out of sequence"}`},
		{"POST", "/v1.41/services/api/update?version=9&rollback=sideways", `{}`, 400, `{"message":"unrecognized rollback option sideways"}`},
		{"DELETE", "/v1.41/services/nosuch", "", 404, `{"message":"service nosuch not found"}`},
		{"POST", "/v1.41/secrets/create", `{"Name":"s1","Data":"eA=="}`, 201, `{"ID":"x0"}`},
		{"DELETE", "/v1.41/secrets/x0", "", 204, ""},
	} {
		code, body, _ := call(t, srv, c.method, strings.ReplaceAll(c.path, `"`, "%22"), c.body)
		if code != c.code || body != c.answer {
			t.Errorf("%s %s: got %d %s, want %d %s", c.method, c.path, code, body, c.code, c.answer)
		}
	}
	want := []string{
		"init 0.0.0.0:2377", "update swarm 7 {RotateWorkerToken:true RotateManagerToken:false RotateUnlockKey:false}",
		"services map[name:map[a:true]] true", "services map[] false", "create api",
		"update api 9 {RegistryAuth: AuthFrom:spec Rollback:previous}", "secret s1 x",
	}
	if diff := cmp.Diff(want, sw.calls); diff != "" {
		t.Error(diff)
	}
}

func TestOutsideASwarm(t *testing.T) {
	srv, _ := serveSwarm(t, nil, &fakeNetworks{})
	for path, want := range map[string]string{
		"GET /nodes": errNotManager().Error(), "GET /services": errNotManager().Error(), "GET /swarm": errNotManager().Error(),
		"POST /swarm/leave": "This node is not part of a swarm",
	} {
		method, path, _ := strings.Cut(path, " ")
		code, body, _ := call(t, srv, method, path, "")
		var got struct{ Message string }
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		if code != 503 || got.Message != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

func TestNetworksOfHostAndSwarmAreOneList(t *testing.T) {
	part := aNetwork("w0", "wide", "swarm", "overlay")
	part.Containers = map[string]network.EndpointResource{"c": {Name: "here"}}
	nets := &fakeNetworks{list: []network.Inspect{aNetwork("l0", "local", "local", "bridge"), part}}
	whole := aNetwork("w0", "wide", "swarm", "overlay")
	whole.Attachable = true
	sw := &fakeSwarm{networks: []network.Inspect{whole, aNetwork("w9", "elsewhere", "swarm", "overlay")}}
	srv, c := serveSwarm(t, sw, nets)

	list, err := c.NetworkList(t.Context(), client.NetworkListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	if diff := cmp.Diff([]string{"local", "wide", "elsewhere"}, names); diff != "" {
		t.Error(diff)
	}
	got, err := c.NetworkInspect(t.Context(), "wide", client.NetworkInspectOptions{})
	if err != nil || !got.Network.Attachable || got.Network.Containers["c"].Name != "here" {
		t.Errorf("got %+v, %v", got.Network, err)
	}
	for _, ref := range []string{"wide", "elsewhere", "local"} {
		if code, body, _ := call(t, srv, "DELETE", "/networks/"+ref, ""); code != 204 {
			t.Errorf("%s: %d %s", ref, code, body)
		}
	}
	if diff := cmp.Diff([]string{"l0"}, nets.removed); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"remove network w0", "remove network w9"}, sw.calls); diff != "" {
		t.Error(diff)
	}
	code, body, _ := call(t, srv, "POST", "/networks/create", `{"Name":"local","Driver":"overlay"}`)
	if code != 409 || body != `{"message":"network with name local already exists"}` {
		t.Errorf("%d %s", code, body)
	}
	code, body, _ = call(t, srv, "POST", "/networks/create", `{"Name":"new","Driver":"overlay"}`)
	if code != 201 || body != `{"Id":"w1","Warning":""}` {
		t.Errorf("%d %s", code, body)
	}
}

func TestServiceLogsSayWhose(t *testing.T) {
	_, c := serveSwarm(t, &fakeSwarm{}, &fakeNetworks{})
	rc, err := c.ServiceLogs(t.Context(), "web", client.ServiceLogsOptions{ShowStdout: true, Details: true})
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, rc); err != nil {
		t.Fatal(err)
	}
	want := "a=1,com.docker.swarm.node.id=n,com.docker.swarm.service.id=s,com.docker.swarm.task.id=t,x=y+z hi\n"
	if out.String() != want {
		t.Errorf("got %q", out.String())
	}
}
