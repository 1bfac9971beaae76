package engine

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/filters"
)

// List returns what ps shows, newest first.
func (e *Engine) List(ctx context.Context, opts ListOptions) ([]container.Summary, error) {
	f, err := e.listFilter(opts)
	if err != nil {
		return nil, err
	}
	out := []container.Summary{}
	for _, c := range e.all() {
		rec := c.view()
		if !f.passes(rec) {
			continue
		}
		s := summary(rec)
		if opts.Size {
			s.SizeRw = e.size(rec)
			s.SizeRootFs = s.SizeRw + e.imageSize(ctx, rec)
		}
		out = append(out, s)
		if opts.Limit > 0 && len(out) == opts.Limit {
			break
		}
	}
	return out, nil
}

func summary(rec record) container.Summary {
	s := container.Summary{
		ID: rec.ID, Names: []string{"/" + rec.Name}, Image: rec.ImageName, ImageID: rec.ImageID,
		Command: command(rec), Created: rec.Created.Unix(), Labels: rec.Config.Labels, State: rec.State.Status,
		Status: status(rec.State, time.Now()), Mounts: apiMounts(rec), Ports: ports(rec),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: apiNetwork(rec).Networks},
	}
	s.HostConfig.NetworkMode = string(rec.HostConfig.NetworkMode)
	s.HostConfig.Annotations = rec.HostConfig.Annotations
	s.Health = &container.HealthSummary{Status: container.NoHealthcheck}
	if h := rec.State.Health; h != nil {
		s.Health = &container.HealthSummary{Status: h.Status, FailingStreak: h.FailingStreak}
	}
	return s
}

func command(rec record) string {
	parts := []string{rec.Path}
	for _, a := range rec.Args {
		if strings.ContainsAny(a, " ") {
			a = "'" + a + "'"
		}
		parts = append(parts, a)
	}
	return strings.Join(parts, " ")
}

// status is the sentence ps shows.
func status(st state, now time.Time) string {
	ago := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	switch st.Status {
	case container.StateRunning:
		s := "Up " + ago(st.Started)
		if st.Health == nil {
			return s
		}
		h := string(st.Health.Status)
		if st.Health.Status == container.Starting {
			h = "health: starting"
		}
		return s + " (" + h + ")"
	case container.StatePaused:
		return "Up " + ago(st.Started) + " (Paused)"
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, ago(st.Finished))
	case container.StateRemoving:
		return "Removal In Progress"
	case container.StateDead:
		return "Dead"
	case container.StateExited:
		return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, ago(st.Finished))
	}
	return "Created"
}

// ports lists what is published, and what is exposed only.
func ports(rec record) []container.PortSummary {
	list := []container.PortSummary{}
	if !rec.State.running() {
		return list
	}
	all := apiNetwork(rec).Ports
	for p, bindings := range all {
		if len(bindings) == 0 {
			list = append(list, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
		for _, b := range bindings {
			pub, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil {
				continue
			}
			list = append(list, container.PortSummary{IP: b.HostIP, PrivatePort: p.Num(), PublicPort: uint16(pub), Type: string(p.Proto())})
		}
	}
	slices.SortFunc(list, func(a, b container.PortSummary) int {
		if a.PrivatePort != b.PrivatePort {
			return int(a.PrivatePort) - int(b.PrivatePort)
		}
		if c := strings.Compare(a.Type, b.Type); c != 0 {
			return c
		}
		if a.PublicPort != b.PublicPort {
			return int(a.PublicPort) - int(b.PublicPort)
		}
		return a.IP.Compare(b.IP)
	})
	return list
}

// filter is ps's filters, checked.
type filter struct {
	opts          ListOptions
	before, since *record
	exited        map[int]bool
	names         []*regexp.Regexp
	images        map[string]bool // ids that the ancestors resolved to
}

func (e *Engine) listFilter(opts ListOptions) (*filter, error) {
	f := &filter{opts: opts, exited: map[int]bool{}, images: map[string]bool{}}
	for key, values := range opts.Filters {
		for v := range values {
			if err := e.addFilter(f, key, v); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

func (e *Engine) addFilter(f *filter, key, v string) error {
	bad := func() error { return cluster.Invalidf("invalid filter '%s=%s'", key, v) }
	switch key {
	case "id", "label", "network", "volume", "publish", "expose", "isolation":
	case "is-task":
		if _, err := strconv.ParseBool(v); err != nil {
			return bad()
		}
	case "name":
		re, err := regexp.Compile(v)
		if err != nil {
			return bad()
		}
		f.names = append(f.names, re)
	case "ancestor":
		f.images[v] = true
		if img, err := e.cfg.Images.Resolve(e.ctx, v); err == nil {
			f.images[img.ID] = true
		}
	case "exited":
		code, err := strconv.Atoi(v)
		if err != nil {
			return bad()
		}
		f.exited[code] = true
	case "status":
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return cluster.Invalidf("%s", err)
		}
	case "health":
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return cluster.Invalidf("%s", err)
		}
	case "before", "since":
		c, err := e.find(v)
		if err != nil {
			return err
		}
		rec := c.view()
		if key == "before" {
			f.before = &rec
		} else {
			f.since = &rec
		}
	default:
		return cluster.Invalidf("invalid filter '%s'", key)
	}
	return nil
}

func (f *filter) passes(rec record) bool {
	want := f.opts.Filters
	// A state asked for, or a place in time, shows stopped ones too.
	all := f.opts.All || f.opts.Limit > 0 || len(want["status"]) > 0 || len(f.exited) > 0 || f.before != nil || f.since != nil
	if !all && !rec.State.running() && rec.State.Status != container.StateRestarting {
		return false
	}
	switch {
	case f.before != nil && !rec.Created.Before(f.before.Created):
	case f.since != nil && !rec.Created.After(f.since.Created):
	case len(f.exited) > 0 && !(f.exited[rec.State.ExitCode] && !rec.State.running() && !rec.State.Finished.IsZero()):
	case len(f.names) > 0 && !slices.ContainsFunc(f.names, func(re *regexp.Regexp) bool { return re.MatchString(rec.Name) || re.MatchString("/"+rec.Name) }):
	case len(want["id"]) > 0 && !anyPrefix(want["id"], rec.ID, ""):
	case !filters.HasLabels(rec.Config.Labels, want["label"]):
	case len(want["status"]) > 0 && !want["status"][string(rec.State.Status)]:
	case len(want["health"]) > 0 && !want["health"][string(healthOf(rec))]:
	case len(want["is-task"]) > 0 && !isTask(rec, want["is-task"]):
	case len(f.images) > 0 && !f.images[rec.ImageID] && !f.images[rec.ImageName] && !f.images[rec.ChainID]:
	case len(want["network"]) > 0 && !inNetwork(rec, want["network"]):
	case len(want["volume"]) > 0 && !hasVolume(rec, want["volume"]):
	case len(want["publish"]) > 0 && !hasPort(want["publish"], rec, true):
	case len(want["expose"]) > 0 && !hasPort(want["expose"], rec, false):
	default:
		return true
	}
	return false
}

func healthOf(rec record) container.HealthStatus {
	if rec.State.Health == nil {
		return container.NoHealthcheck
	}
	return rec.State.Health.Status
}

func isTask(rec record, values map[string]bool) bool {
	for v := range values {
		if want, _ := strconv.ParseBool(v); want == rec.Swarm {
			return true
		}
	}
	return false
}

func inNetwork(rec record, values map[string]bool) bool {
	return slices.ContainsFunc(rec.Endpoints, func(ep endpoint) bool {
		return values[ep.Network] || ep.Settings.NetworkID != "" && anyPrefix(values, ep.Settings.NetworkID, "")
	})
}

func hasVolume(rec record, values map[string]bool) bool {
	return slices.ContainsFunc(rec.Mounts, func(m mountPoint) bool {
		return values[m.Name] || values[m.Destination] || values[m.Source]
	})
}

// hasPort matches "80", "80/tcp" and "8000-8080/udp".
func hasPort(values map[string]bool, rec record, published bool) bool {
	for v := range values {
		nums, proto, _ := strings.Cut(v, "/")
		if proto == "" {
			proto = "tcp"
		}
		from, to, ranged := strings.Cut(nums, "-")
		if !ranged {
			to = from
		}
		lo, err1 := strconv.ParseUint(from, 10, 16)
		hi, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil {
			continue
		}
		match := func(p apinetwork.Port) bool {
			n := uint64(p.Num())
			return n >= lo && n <= hi && string(p.Proto()) == proto
		}
		if published {
			for p := range rec.HostConfig.PortBindings {
				if match(p) {
					return true
				}
			}
			continue
		}
		for p := range rec.Config.ExposedPorts {
			if match(p) {
				return true
			}
		}
	}
	return false
}

// pruneUntil reads prune's "until": a time, or how long ago.
func pruneUntil(f filters.Filters) (time.Time, error) {
	for key, values := range f {
		switch key {
		case "label", "label!":
		case "until":
			for v := range values {
				if t, ok := filters.Moment(v, time.Now()); ok {
					return t, nil
				}
				return time.Time{}, cluster.Invalidf("invalid filter 'until=%s'", v)
			}
		default:
			return time.Time{}, cluster.Invalidf("invalid filter '%s'", key)
		}
	}
	return time.Time{}, nil
}
