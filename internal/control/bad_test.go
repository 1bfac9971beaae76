package control

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// whole is a service's spec that uses every field; %s are the ids of a secret, a
// config and a network.
const whole = `{"Name":"whole","Labels":{"a":"b"},"TaskTemplate":{"ContainerSpec":{"Image":"busybox:1","Labels":{"x":"y"},"Command":["a"],"Args":["b"],
"Hostname":"h","Env":["A=b"],"Dir":"/","User":"0","Groups":["1"],"Privileges":{"Seccomp":{"Mode":"unconfined","Profile":"eA=="},"AppArmor":{"Mode":"default"},"NoNewPrivileges":true},
"Init":true,"StopSignal":"SIGTERM","TTY":false,"OpenStdin":false,"ReadOnly":true,"Mounts":[
{"Type":"volume","Source":"vol1","Target":"/v","VolumeOptions":{"NoCopy":true,"Labels":{"l":"m"},"DriverConfig":{"Name":"local","Options":{"o":"p"}},"Subpath":"s"}},
{"Type":"bind","Source":"/tmp","Target":"/b","BindOptions":{"Propagation":"rprivate"}},{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":1048576,"Mode":511,"Options":[["noexec"]]}}],
"StopGracePeriod":1000000000,"Healthcheck":{"Test":["CMD","x"],"Interval":1000000000,"Timeout":1000000000,"StartPeriod":1000000000,"StartInterval":1000000,"Retries":1},
"Hosts":["1.2.3.4 h"],"DNSConfig":{"Nameservers":["1.1.1.1"],"Search":["x"],"Options":["ndots:1"]},
"Secrets":[{"File":{"Name":"f","UID":"0","GID":"0","Mode":292},"SecretID":"%s","SecretName":"sec"}],"Configs":[{"File":{"Name":"/cf","UID":"0","GID":"0","Mode":292},"ConfigID":"%s","ConfigName":"cfg"}],
"Isolation":"default","Sysctls":{"net.core.somaxconn":"100"},"CapabilityAdd":["NET_ADMIN"],"CapabilityDrop":["CHOWN"],"Ulimits":[{"Name":"nofile","Soft":100,"Hard":100}],"OomScoreAdj":1},
"Resources":{"Limits":{"NanoCPUs":100000000,"MemoryBytes":10000000,"Pids":10},"Reservations":{"NanoCPUs":1000000,"MemoryBytes":10000000}},
"RestartPolicy":{"Condition":"none","Delay":1000000000,"MaxAttempts":1,"Window":1000000000},"Placement":{"Constraints":["node.hostname==x"],"Preferences":[{"Spread":{"SpreadDescriptor":"node.labels.x"}}],"MaxReplicas":1,"Platforms":[{"Architecture":"x86_64","OS":"linux"}]},
"Networks":[{"Target":"%s","Aliases":["al"]}],"LogDriver":{"Name":"json-file","Options":{"max-size":"1m"}},"ForceUpdate":1,"Runtime":"container"},
"Mode":{"Replicated":{"Replicas":1}},"UpdateConfig":{"Parallelism":1,"Delay":1000000000,"FailureAction":"pause","Monitor":1000000000,"MaxFailureRatio":0.5,"Order":"stop-first"},
"RollbackConfig":{"Parallelism":1,"Delay":1,"FailureAction":"pause","Monitor":1,"MaxFailureRatio":0.5,"Order":"stop-first"},
"EndpointSpec":{"Mode":"vip","Ports":[{"Name":"p","Protocol":"tcp","TargetPort":80,"PublishedPort":9090,"PublishMode":"ingress"}]}}`

// instead are what each value of a request is exchanged for, one at a time.
func instead() []any {
	return []any{
		nil, -1, 0, 1e18, 1.5, true, "", "a\x00b\nc", "../../etc/passwd", strings.Repeat("x", 9_000),
		map[string]any{}, map[string]any{"k": nil}, map[string]any{"": ""}, []any{}, []any{nil}, []any{map[string]any{}}, []any{""},
	}
}

// bend yields v with each of its parts, itself included, exchanged for x.
func bend(v, x any, yield func(where string, bent any)) {
	yield("", x)
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			bend(v[k], x, func(where string, bent any) {
				c := maps.Clone(v)
				c[k] = bent
				yield("."+k+where, c)
			})
		}
	case []any:
		for i := range v {
			bend(v[i], x, func(where string, bent any) {
				c := slices.Clone(v)
				c[i] = bent
				yield(fmt.Sprintf("[%d]%s", i, where), c)
			})
		}
	}
}

// state is everything users can see of a swarm.
func (s *swarmOf) state(t *testing.T) string {
	t.Helper()
	v := s.store.View()
	b, err := json.Marshal([]any{v.Cluster(), v.Nodes(), v.Services(), v.Networks(), v.Secrets(), v.Configs(), v.Tasks()})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// bendAll sends a request with every part of it bent in every way. Nothing may
// panic; what is refused is refused with a kind and words, and changes nothing.
func bendAll(t *testing.T, s *swarmOf, method, whole string, frame func(body []byte) string) (taken, refused int) {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(whole), &v); err != nil {
		t.Fatal(err)
	}
	for _, x := range instead() {
		bend(v, x, func(where string, bent any) {
			body, err := json.Marshal(bent)
			if err != nil {
				t.Fatal(err)
			}
			request := []byte(frame(body))
			before := s.store.View().Index()
			func() {
				defer func() {
					if p := recover(); p != nil {
						t.Errorf("%s%s = %.40q: panic: %v", method, where, fmt.Sprint(x), p)
					}
				}()
				_, err = s.apis["m1"].Handle(t.Context(), method, request)
			}()
			if err == nil {
				taken++
				if os.Getenv("SHOW") != "" {
					t.Logf("TAKEN %s%s = %.40q", method, where, fmt.Sprint(x))
				}
				return
			}
			refused++
			if s.store.View().Index() != before {
				t.Errorf("%s%s = %.40q: refused (%v), but something was written", method, where, fmt.Sprint(x), err)
			}
			kind := errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err) || errdefs.IsAlreadyExists(err) ||
				errdefs.IsConflict(err) || errdefs.IsFailedPrecondition(err) || strings.HasPrefix(err.Error(), "rpc error: code = Unknown desc = ")
			if !kind || err.Error() == "" {
				t.Errorf("%s%s = %.40q: an error of no kind: %.300v", method, where, fmt.Sprint(x), err)
			}
		})
	}
	return taken, refused
}

func TestBentRequests(t *testing.T) {
	s := newSwarm(t)
	a := s.apis["m1"]
	sec, err := a.CreateSecret(t.Context(), swarm.SecretSpec{Annotations: swarm.Annotations{Name: "sec"}, Data: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := a.CreateConfig(t.Context(), swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "cfg"}, Data: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	const network = `{"Name":"ovl","Driver":"overlay","Scope":"swarm","EnableIPv4":true,"EnableIPv6":false,"IPAM":{"Driver":"default","Options":{},
		"Config":[{"Subnet":"10.123.0.0/24","Gateway":"10.123.0.1"}]},"Internal":false,"Attachable":true,"Options":{"com.docker.network.driver.mtu":"1400"},"Labels":{"a":"b"}}`
	if _, err := a.Handle(t.Context(), "network.create", []byte(network)); err != nil {
		t.Fatal(err)
	}
	ovl, err := a.Network(t.Context(), "ovl")
	if err != nil {
		t.Fatal(err)
	}
	service := fmt.Sprintf(whole, sec, cfg, ovl.ID)
	check := func(method, whole string, frame func(body []byte) string) {
		taken, refused := bendAll(t, s, method, whole, frame)
		t.Logf("%s: %d taken, %d refused", method, taken, refused)
		if taken == 0 || refused == 0 {
			t.Errorf("%s: %d taken, %d refused", method, taken, refused)
		}
	}
	if _, err := a.Handle(t.Context(), "service.create", fmt.Appendf(nil, `{"Spec":%s}`, service)); err != nil {
		t.Fatal("the whole spec is refused:", err)
	}
	plain := func(body []byte) string { return string(body) }
	whole := func(body []byte) string { return fmt.Sprintf(`{"Spec":%s}`, body) }
	// What is taken must not be in the way of the next.
	mine := strings.Replace(strings.Replace(service, `"PublishedPort":9090,`, "", 1), `"Name":"whole",`, "", 1)
	check("service.create", mine, whole)
	check("service.update", service, func(body []byte) string {
		return fmt.Sprintf(`{"Ref":"whole","Version":%d,"Spec":%s}`, s.store.View().ServiceByName("whole").Version, body)
	})
	n := 0
	check("network.create", strings.ReplaceAll(network, `"10.123.0`, `"10.124.0`), func(body []byte) string {
		n++
		for _, n := range s.store.View().Networks() { // their address ranges must not meet
			if n.Spec.Name != "ovl" && !n.Spec.Ingress {
				s.propose(t, store.DeleteNetwork(n))
			}
		}
		return strings.Replace(string(body), `"ovl"`, fmt.Sprintf(`"ovl%d"`, n), 1)
	})
	for _, noun := range []string{"secret", "config"} {
		check(noun+".create", `{"Name":"n","Labels":{"a":"b"},"Data":"eA==","Templating":{"Name":"golang","Options":{"a":"b"}}}`, plain)
	}
	check("node.update", `{"Name":"","Labels":{"a":"b"},"Role":"manager","Availability":"active"}`, func(body []byte) string {
		return fmt.Sprintf(`{"Ref":"m1","Version":%d,"Spec":%s}`, s.store.View().Node("m1").Version, body)
	})
	check("swarm.update", `{"Name":"default","Labels":{},"Orchestration":{"TaskHistoryRetentionLimit":5},"Raft":{"SnapshotInterval":10000,"KeepOldSnapshots":0,"ElectionTick":10,"HeartbeatTick":1},
		"Dispatcher":{"HeartbeatPeriod":5000000000},"CAConfig":{"NodeCertExpiry":7776000000000000},"TaskDefaults":{"LogDriver":{"Name":"json-file","Options":{"a":"b"}}},"EncryptionConfig":{"AutoLockManagers":false}}`, func(body []byte) string {
		return fmt.Sprintf(`{"Version":%d,"Spec":%s}`, s.store.View().Cluster().Version, body)
	})
}

// TestOverLarge is what users get who ask for more than there can be.
func TestOverLarge(t *testing.T) {
	s := newSwarm(t)
	a := s.apis["m1"]
	big := strings.Repeat("x", 10<<20)
	many := func(n int, f func(i int) string) (out []string) {
		for i := range n {
			out = append(out, f(i))
		}
		return out
	}
	before := s.state(t)
	for _, c := range []struct {
		name string
		make func(*swarm.ServiceSpec)
		want string
	}{
		{"replicas", func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: ptr(uint64(1e18))} }, "Number of replicas must not be larger than 1000000"},
		{"label", func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"a": big} }, "the service's spec is larger than"},
		{"label key", func(s *swarm.ServiceSpec) { s.Labels = map[string]string{big[:300<<10]: ""} }, "labels of 307200 bytes are more than"},
		{"constraints", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: many(10_000, func(int) string { return "node.role==manager" })}
		}, "10000 placement rules are more than 256"},
		{"a million constraints", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: many(1_000_000, func(int) string { return "node.role==manager" })}
		}, "the service's spec is larger than"},
		{"a million variables", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Env = many(1_000_000, func(i int) string { return fmt.Sprintf("A%d=b", i) })
		}, "the service's spec is larger than"},
		{"ports", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: make([]swarm.PortConfig, 2000)}
		}, "2000 ports are more than the 1024 a service may publish"},
		{"port", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 70000}}}
		}, "the port 70000:80 is not between 1 and 65535"},
		{"target port", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 1 << 31}}}
		}, "is not between 1 and 65535"},
		{"memory", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{MemoryBytes: -1}}
		}, "invalid memory value -1: Must be at least 4MiB"},
		{"health check", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Healthcheck = &container.HealthConfig{Timeout: 1 << 62}
		}, "ContainerSpec: Timeout in HealthConfig cannot be longer than 87600h0m0s"},
		{"ulimit", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Ulimits = append(s.TaskTemplate.ContainerSpec.Ulimits, nil)
		}, "ContainerSpec: malformed ulimit"},
		{"hostname", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Hostname = "a\nb" }, `the hostname "a\nb" holds a control character`},
		{"variable", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Env = []string{"A=\x00"} }, "may hold a zero byte"},
		{"image", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "../../etc/passwd" }, `ContainerSpec: "../../etc/passwd" is not a valid repository/tag`},
		{"name", func(s *swarm.ServiceSpec) { s.Name = "../../x" }, "name must be valid as a DNS name component"},
		{"network", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "../x"}}
		}, "network ../x not found"},
	} {
		spec := webSpec("web")
		c.make(&spec)
		_, err := a.CreateService(t.Context(), spec, ServiceOptions{})
		if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 1000 {
			t.Errorf("%s\ngot  %.300v\nwant %s", c.name, err, c.want)
		}
	}
	if d := cmp.Diff(before, s.state(t)); d != "" {
		t.Errorf("refused requests have changed (-before +after):\n%s", d)
	}
}

// FuzzService feeds any JSON to what makes and changes services. What is taken
// keeps what the loops stand on.
func FuzzService(f *testing.F) {
	s := newSwarm(f)
	f.Add([]byte(fmt.Sprintf(whole, "s", "c", "n")))
	for _, seed := range []string{
		`{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"a","Ulimits":[null],"Mounts":[{"Type":"bind","Source":"/","Target":"/../x"}]}}}`,
		`{"TaskTemplate":{"ContainerSpec":{"Image":"a"}},"EndpointSpec":{"Ports":[{"TargetPort":70000,"PublishedPort":1}]}}`,
		`{"TaskTemplate":{"ContainerSpec":{"Image":"a","Env":["A={{.Service.Name}}"]},"Placement":{"Constraints":["node.labels.a!=b"],"Preferences":[{}]}},"Mode":{"Global":{}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var spec swarm.ServiceSpec
		if json.Unmarshal(body, &spec) != nil {
			return
		}
		if spec.Name == "" {
			spec.Name = "x"
		}
		if s.apis["m1"].settleSpec(s.store.View(), &spec, nil) != nil {
			return
		}
		c := spec.TaskTemplate.ContainerSpec
		if c == nil || slices.Contains(c.Ulimits, nil) || slices.Contains(c.Secrets, nil) || slices.Contains(c.Configs, nil) {
			t.Errorf("taken: %+v", c)
		}
		if p := spec.TaskTemplate.Placement; p != nil {
			if _, err := cluster.ParseConstraints(p.Constraints); err != nil {
				t.Error(err)
			}
			for _, pref := range p.Preferences {
				if pref.Spread == nil {
					t.Error("a preference without a spread was taken")
				}
			}
		}
		if r := spec.Mode.Replicated; r != nil && (r.Replicas == nil || *r.Replicas > maxReplicas) {
			t.Errorf("taken: %+v", r)
		}
		if e := spec.EndpointSpec; e != nil {
			for _, p := range e.Ports {
				if p.TargetPort == 0 || p.TargetPort > 65535 || p.PublishedPort > 65535 || p.PublishMode == "" || p.Protocol == "" {
					t.Errorf("taken: %+v", p)
				}
			}
		}
	})
}
