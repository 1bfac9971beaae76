package control

import (
	"encoding/json"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// Bounds on what users may ask for. Docker has most of them only where something
// breaks; here they are far above what works and far below what hurts.
const (
	maxSpec      = 1 << 20 // bytes of a service's spec as JSON
	maxReplicas  = 1_000_000
	maxPorts     = 1024
	maxLabels    = 256 << 10 // bytes of all labels
	maxPlacement = 256
	minMemory    = 4 << 20
	minNanoCPU   = 1_000_000
	maxNameLen   = 63
)

var dnsName = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)

// normalize brings a service's spec into the form it is stored in and refuses
// words that mean nothing, as Docker's daemon does before its managers see it.
func normalize(s *swarm.ServiceSpec) error {
	switch b, err := json.Marshal(s); {
	case err != nil:
		return cluster.Invalidf("the service's spec cannot be written: %v", err)
	case len(b) > maxSpec:
		return cluster.Invalidf("the service's spec is larger than %d bytes", maxSpec)
	}
	s.Labels = orEmpty(s.Labels)
	t := &s.TaskTemplate
	switch t.Runtime {
	case "", swarm.RuntimeContainer:
		if t.ContainerSpec == nil || t.PluginSpec != nil || t.NetworkAttachmentSpec != nil {
			return cluster.Invalidf("mismatched Runtime and *Spec fields")
		}
		t.Runtime = swarm.RuntimeContainer
	case swarm.RuntimePlugin:
	default:
		return cluster.Invalidf("unsupported runtime")
	}
	if c := t.ContainerSpec; c != nil {
		n := *c
		if n.Isolation == "" {
			n.Isolation = container.IsolationDefault
		}
		t.ContainerSpec = &n
		if err := checkWords(&n); err != nil {
			return err
		}
	}
	if p := t.RestartPolicy; p != nil {
		switch p.Condition {
		case "", swarm.RestartPolicyConditionAny, swarm.RestartPolicyConditionNone, swarm.RestartPolicyConditionOnFailure:
		default:
			return cluster.Invalidf("invalid RestartCondition: %q", string(p.Condition))
		}
	}
	if err := normalizeMode(s); err != nil {
		return err
	}
	for _, u := range []*swarm.UpdateConfig{s.UpdateConfig, s.RollbackConfig} {
		if err := checkUpdateWords(u); err != nil {
			return err
		}
	}
	return normalizeEndpoint(s)
}

func checkWords(c *swarm.ContainerSpec) error {
	for _, m := range c.Mounts {
		switch m.Type {
		case mount.TypeBind, mount.TypeVolume, mount.TypeTmpfs, mount.TypeNamedPipe, mount.TypeCluster, mount.TypeImage:
		default:
			return cluster.Invalidf("invalid MountType: %q", string(m.Type))
		}
		if m.BindOptions == nil {
			continue
		}
		switch p := m.BindOptions.Propagation; p {
		case "", mount.PropagationPrivate, mount.PropagationRPrivate, mount.PropagationShared, mount.PropagationRShared,
			mount.PropagationSlave, mount.PropagationRSlave:
		default:
			return cluster.Invalidf("invalid MountPropagation: %q", string(p))
		}
	}
	return nil
}

func normalizeMode(s *swarm.ServiceSpec) error {
	m := &s.Mode
	set := 0
	for _, is := range []bool{m.Replicated != nil, m.Global != nil, m.ReplicatedJob != nil, m.GlobalJob != nil} {
		if is {
			set++
		}
	}
	if set > 1 {
		return cluster.Invalidf("must specify only one service mode")
	}
	if set == 0 || m.Replicated != nil && m.Replicated.Replicas == nil {
		one := uint64(1)
		m.Replicated = &swarm.ReplicatedService{Replicas: &one}
	}
	return nil
}

func checkUpdateWords(u *swarm.UpdateConfig) error {
	if u == nil {
		return nil
	}
	switch u.FailureAction {
	case "", swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue, swarm.UpdateFailureActionRollback:
	default:
		return cluster.Invalidf("unrecognized update failure action %s", u.FailureAction)
	}
	switch u.Order {
	case "", swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst:
	default:
		return cluster.Invalidf("unrecognized update order %s", u.Order)
	}
	return nil
}

func normalizeEndpoint(s *swarm.ServiceSpec) error {
	if s.EndpointSpec == nil {
		return nil
	}
	e := *s.EndpointSpec
	switch e.Mode {
	case "":
		e.Mode = swarm.ResolutionModeVIP
	case swarm.ResolutionModeVIP, swarm.ResolutionModeDNSRR:
	default:
		return cluster.Invalidf("invalid resolution mode: %q", string(e.Mode))
	}
	if len(e.Ports) > maxPorts {
		return invalid("EndpointSpec: %d ports are more than the %d a service may publish", len(e.Ports), maxPorts)
	}
	e.Ports = append([]swarm.PortConfig(nil), e.Ports...)
	for i := range e.Ports {
		p := &e.Ports[i]
		p.Protocol = network.IPProtocol(strings.ToLower(string(p.Protocol)))
		switch p.Protocol {
		case "":
			p.Protocol = network.TCP
		case network.TCP, network.UDP, network.SCTP:
		default:
			return cluster.Invalidf("invalid protocol value: %s", p.Protocol)
		}
		switch p.PublishMode {
		case "":
			p.PublishMode = swarm.PortConfigPublishModeIngress
		case swarm.PortConfigPublishModeIngress, swarm.PortConfigPublishModeHost:
		default:
			return cluster.Invalidf("invalid publish mode value: %q", string(p.PublishMode))
		}
	}
	s.EndpointSpec = &e
	return nil
}

// validateService checks a normalized spec, in the order and words of Docker's
// managers.
func validateService(s *swarm.ServiceSpec) error {
	if err := checkName(s.Name); err != nil {
		return err
	}
	if err := checkLabels(s.Labels); err != nil {
		return err
	}
	t := &s.TaskTemplate
	if err := validateResources(t.Resources); err != nil {
		return err
	}
	if err := validateRestart(t.RestartPolicy); err != nil {
		return err
	}
	if err := validatePlacement(t.Placement); err != nil {
		return err
	}
	if t.ContainerSpec != nil {
		if err := validateContainer(t.ContainerSpec); err != nil {
			return err
		}
	}
	for _, u := range []*swarm.UpdateConfig{s.UpdateConfig, s.RollbackConfig} {
		if err := validateUpdate(u); err != nil {
			return err
		}
	}
	if err := validateEndpoint(s.EndpointSpec); err != nil {
		return err
	}
	if r := s.Mode.Replicated; r != nil && *r.Replicas > maxReplicas {
		return invalid("Number of replicas must not be larger than %d", maxReplicas)
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "":
		return invalid("meta: name must be provided")
	case !dnsName.MatchString(name):
		return invalid("name must be valid as a DNS name component")
	case len(name) > maxNameLen:
		return invalid("name must be %d characters or fewer", maxNameLen)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	size := 0
	for k, v := range labels {
		size += len(k) + len(v)
		if k == "" || !utf8.ValidString(k) || !utf8.ValidString(v) {
			return invalid("the label %q=%q is not valid", k, v)
		}
	}
	if size > maxLabels {
		return invalid("labels of %d bytes are more than %d", size, maxLabels)
	}
	return nil
}

func validateResources(r *swarm.ResourceRequirements) error {
	if r == nil {
		return nil
	}
	if l := r.Limits; l != nil {
		if err := validateAmounts(l.NanoCPUs, l.MemoryBytes); err != nil {
			return err
		}
		if l.Pids < 0 {
			return invalid("invalid pids value %d: Must not be negative", l.Pids)
		}
	}
	if v := r.Reservations; v != nil {
		return validateAmounts(v.NanoCPUs, v.MemoryBytes)
	}
	return nil
}

func validateAmounts(nanoCPUs, memory int64) error {
	if nanoCPUs != 0 && nanoCPUs < minNanoCPU {
		return invalid("invalid cpu value %g: Must be at least %g", float64(nanoCPUs)/1e9, float64(minNanoCPU)/1e9)
	}
	if memory != 0 && memory < minMemory {
		return invalid("invalid memory value %d: Must be at least 4MiB", memory)
	}
	return nil
}

// span checks a length of time; what names it in Docker's words.
func span(what string, d time.Duration) error {
	if d < 0 {
		return invalid("TaskSpec: %s cannot be negative", what)
	}
	if d > longest {
		return invalid("TaskSpec: %s cannot be longer than %v", what, longest)
	}
	return nil
}

func validateRestart(p *swarm.RestartPolicy) error {
	if p == nil {
		return nil
	}
	if p.Delay != nil {
		if err := span("restart-delay", *p.Delay); err != nil {
			return err
		}
	}
	if p.Window != nil {
		if err := span("restart-window", *p.Window); err != nil {
			return err
		}
	}
	if p.MaxAttempts != nil && *p.MaxAttempts > math.MaxInt32 {
		return invalid("TaskSpec: restart-max-attempts cannot be larger than %d", math.MaxInt32)
	}
	return nil
}

func validatePlacement(p *swarm.Placement) error {
	if p == nil {
		return nil
	}
	if p.MaxReplicas > math.MaxInt32 {
		return invalid("TaskSpec: replicas-max-per-node cannot be larger than %d", math.MaxInt32)
	}
	if n := max(len(p.Constraints), len(p.Preferences), len(p.Platforms)); n > maxPlacement {
		return invalid("TaskSpec: %d placement rules are more than %d", n, maxPlacement)
	}
	if _, err := cluster.ParseConstraints(p.Constraints); err != nil {
		return unknown("%s", err.Error())
	}
	for _, pref := range p.Preferences {
		if pref.Spread == nil {
			return invalid("a placement preference without a spread means nothing")
		}
	}
	return nil
}

func validateContainer(c *swarm.ContainerSpec) error {
	if c.Image == "" {
		return invalid("ContainerSpec: image reference must be provided")
	}
	if _, err := reference.ParseNormalizedNamed(c.Image); err != nil {
		return invalid("ContainerSpec: %q is not a valid repository/tag", c.Image)
	}
	if err := validateWords(c); err != nil {
		return err
	}
	targets := map[string]bool{}
	for _, m := range c.Mounts {
		if targets[m.Target] {
			return invalid("ContainerSpec: duplicate mount point: %s", m.Target)
		}
		targets[m.Target] = true
	}
	if c.StopGracePeriod != nil {
		if err := span("stop-grace-period", *c.StopGracePeriod); err != nil {
			return err
		}
	}
	if err := checkTemplates(c); err != nil {
		return err
	}
	return validateHealth(c.Healthcheck)
}

// validateWords refuses what no container can be given. Docker's managers let it
// pass, and every node the task then tries fails.
func validateWords(c *swarm.ContainerSpec) error {
	for _, u := range c.Ulimits {
		if u == nil || u.Name == "" {
			return invalid("ContainerSpec: malformed ulimit")
		}
	}
	if i := strings.IndexFunc(c.Hostname, unicode.IsControl); i >= 0 {
		return invalid("ContainerSpec: the hostname %q holds a control character", c.Hostname)
	}
	words := []string{c.Dir, c.User, c.StopSignal}
	for _, m := range c.Mounts {
		words = append(words, m.Source, m.Target)
	}
	if slices.ContainsFunc(slices.Concat(words, c.Command, c.Args, c.Env, c.Groups, c.Hosts, c.CapabilityAdd, c.CapabilityDrop), hasNUL) {
		return invalid("ContainerSpec: no word of a command, variable, path, user or group may hold a zero byte")
	}
	p := c.Privileges
	if p == nil {
		return nil
	}
	if s := p.Seccomp; s != nil && !slices.Contains([]swarm.SeccompMode{"", swarm.SeccompModeDefault, swarm.SeccompModeCustom, swarm.SeccompModeUnconfined}, s.Mode) {
		return invalid("ContainerSpec: unknown seccomp mode %q", s.Mode)
	}
	if a := p.AppArmor; a != nil && !slices.Contains([]swarm.AppArmorMode{"", swarm.AppArmorModeDefault, swarm.AppArmorModeDisabled}, a.Mode) {
		return invalid("ContainerSpec: unknown AppArmor mode %q", a.Mode)
	}
	return nil
}

func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }

func validateHealth(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for what, d := range map[string]time.Duration{"Interval": h.Interval, "Timeout": h.Timeout, "StartPeriod": h.StartPeriod, "StartInterval": h.StartInterval} {
		if d != 0 && d < time.Millisecond {
			return invalid("ContainerSpec: %s in HealthConfig cannot be less than %s", what, time.Millisecond)
		}
		if d > longest {
			return invalid("ContainerSpec: %s in HealthConfig cannot be longer than %v", what, longest)
		}
	}
	if h.Retries < 0 {
		return invalid("ContainerSpec: Retries in HealthConfig cannot be negative")
	}
	return nil
}

func validateUpdate(u *swarm.UpdateConfig) error {
	if u == nil {
		return nil
	}
	if err := span("update-delay", u.Delay); err != nil {
		return err
	}
	if err := span("update-monitor", u.Monitor); err != nil {
		return err
	}
	if !(u.MaxFailureRatio >= 0 && u.MaxFailureRatio <= 1) { // also refuses NaN
		return invalid("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")
	}
	if u.Parallelism > math.MaxInt32 {
		return invalid("TaskSpec: update-parallelism cannot be larger than %d", math.MaxInt32)
	}
	return nil
}

func validateEndpoint(e *swarm.EndpointSpec) error {
	if e == nil {
		return nil
	}
	type key struct {
		proto network.IPProtocol
		port  uint32
	}
	taken := map[key]bool{}
	for _, p := range e.Ports {
		if p.TargetPort == 0 || p.TargetPort > 65535 || p.PublishedPort > 65535 {
			return invalid("EndpointSpec: the port %d:%d is not between 1 and 65535", p.PublishedPort, p.TargetPort)
		}
		if e.Mode == swarm.ResolutionModeDNSRR && !cluster.HostPort(p) {
			return invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		}
		if p.PublishedPort == 0 {
			continue
		}
		k := key{p.Protocol, p.PublishedPort}
		if taken[k] {
			return invalid("EndpointSpec: duplicate published ports provided")
		}
		taken[k] = true
	}
	return nil
}
